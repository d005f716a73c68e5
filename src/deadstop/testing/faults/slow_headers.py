"""A server that takes its time before it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class SlowHeaders(Fault):
    """Reads the request, and only `seconds` later begins to work on it and to answer."""

    seconds: float

    def before_headers(self, exchange: Exchange) -> None:
        exchange.wait(self.seconds)
