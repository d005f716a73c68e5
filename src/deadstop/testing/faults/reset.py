"""A server that resets the connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class Reset(Fault):
    """Resets the connection (a TCP RST) after `after_tokens` tokens; with 0, before anything was answered."""

    after_tokens: int = 0

    def before_headers(self, exchange: Exchange) -> None:
        if self.after_tokens == 0:
            exchange.hang_up(reset=True)

    def before_token(self, exchange: Exchange, index: int) -> None:
        if index == self.after_tokens:
            exchange.hang_up(reset=True)
