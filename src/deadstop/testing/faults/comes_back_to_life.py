"""A run that is said to be cancelled, and is seen at work later."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class ComesBackToLife(Fault):
    """Says of a run that it is cancelled, and `seconds` later that it works, which it has done all the time.

    The next cancel after that is a real one."""

    seconds: float = 0.2

    def before_run(self, exchange: RunExchange) -> None:
        run, now = exchange.run_now, time.monotonic()
        if exchange.asked.action == "cancel" and run is not None and not run.told and not run.is_over(now):
            run.tell(run.kind.cancelled, now)
            run.tell(None, now + self.seconds)
            exchange.handled = True
