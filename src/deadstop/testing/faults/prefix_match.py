"""A server that looks runs up by the beginning of their ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class PrefixMatch(Fault):
    """Takes for the run that is asked about any one whose id begins so."""

    def before_run(self, exchange: RunExchange) -> None:
        if exchange.run_now is None and exchange.asked.action in ("cancel", "read"):
            exchange.take(exchange.runs.like(exchange.asked.kind, exchange.asked.ids))
