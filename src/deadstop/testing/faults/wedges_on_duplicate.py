"""A server that a second cancel of the same run breaks."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class WedgesOnDuplicate(Fault):
    """Never answers a second cancel of the same run, and the run never ends after it."""

    def before_run(self, exchange: RunExchange) -> None:
        run = exchange.run_now
        if exchange.asked.action == "cancel" and run is not None and run.cancels > 1:
            run.cancel_at = run.done_at = math.inf
            run.tell(run.kind.cancelling or run.kind.active, time.monotonic())
            exchange.wait(None)
