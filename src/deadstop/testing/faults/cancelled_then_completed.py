"""A run that is said to be cancelled, and completes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class CancelledThenCompleted(Fault):
    """Says of a cancelled run that it is, and `seconds` later that it is completed, which is true."""

    seconds: float = 0.2

    def before_run(self, exchange: RunExchange) -> None:
        run, now = exchange.run_now, time.monotonic()
        if exchange.asked.action == "cancel" and run is not None and not run.is_over(now):
            run.tell(run.kind.cancelled, now)
            run.tell(run.kind.completed, now + self.seconds)
            run.complete(now + self.seconds)
            exchange.handled = True
