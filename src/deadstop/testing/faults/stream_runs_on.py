"""A stream of events that goes on after a cancel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class StreamRunsOn(Fault):
    """Goes on with a run's stream as long as it generates in truth, though it says that it is cancelled.

    Takes requests for a stream; goes with faults that say `cancelled` and work on. Reported of real servers."""

    def before_run(self, exchange: RunExchange) -> None:
        exchange.by_truth = True
