"""A server that says `cancelled` and works on to the end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class CancelledButRunsOn(Fault):
    """Says of a run that it is cancelled, while it generates all of its tokens. Seen on real servers."""

    def before_run(self, exchange: RunExchange) -> None:
        run, now = exchange.run_now, time.monotonic()
        if exchange.asked.action == "cancel" and run is not None and not run.is_over(now):
            run.tell(run.kind.cancelled, now)
            exchange.handled = True
