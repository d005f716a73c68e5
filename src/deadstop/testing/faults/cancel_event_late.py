"""A stream of events that tells of a cancel late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class CancelEventLate(Fault):
    """Lets a run's stream be silent for `seconds` before it tells that the run was cancelled; None: for ever."""

    seconds: float | None = None

    def before_end(self, exchange: RunExchange, status: str) -> bool:
        if status == exchange.asked.kind.cancelled:
            exchange.wait(self.seconds)
        return True
