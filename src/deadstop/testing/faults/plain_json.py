"""A server that ignores the wish for a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class PlainJSON(Fault):
    """Answers with plain JSON even when a stream was asked for."""

    def before_headers(self, exchange: Exchange) -> None:
        exchange.streamed = False
