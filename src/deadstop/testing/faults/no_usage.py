"""A server that does not count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class NoUsage(Fault):
    """Never reports usage, asked or not."""

    def before_headers(self, exchange: Exchange) -> None:
        exchange.reply = replace(exchange.reply, usage=False)
