"""A server that stalls in the middle of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class StallAfter(Fault):
    """Does nothing for `seconds` (None: for ever) after `tokens` tokens.

    A stream has sent them by then, with 0 its headers and opening events; any other answer nothing.
    """

    tokens: int
    seconds: float | None = None

    def before_token(self, exchange: Exchange, index: int) -> None:
        if index == self.tokens:
            exchange.wait(self.seconds)
