"""A stream of events that does not tell of a cancel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class CancelEventAbsent(Fault):
    """Ends a run's stream in good order, and without the event that the run was cancelled."""

    def before_end(self, exchange: RunExchange, status: str) -> bool:
        return status != exchange.asked.kind.cancelled
