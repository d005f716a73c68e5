"""A server that never answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class LostHeaders(Fault):
    """Reads the request, never answers it, and keeps the connection."""

    def before_headers(self, exchange: Exchange) -> None:
        exchange.wait(None)
