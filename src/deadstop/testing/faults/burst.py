"""A server that writes in gulps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class Burst(Fault):
    """Writes the events of a stream `n` in one send; what is left goes at the end or before a stall."""

    n: int

    def before_headers(self, exchange: Exchange) -> None:
        exchange.burst = self.n
