"""A server that a second cancel of the same run breaks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class WedgesOnDuplicate(Fault):
    """Never answers a second cancel of the same run, whose status then hangs, as does the run if it still works."""

    def before_run(self, exchange: RunExchange) -> None:
        run, now = exchange.run_now, time.monotonic()
        if exchange.asked.action == "cancel" and run is not None and run.cancels > 1:
            run.hang(now)
            run.tell(run.kind.cancelling or run.kind.active, now)
            exchange.runs.touch()
            exchange.wait(None)
