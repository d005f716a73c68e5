"""A run that is quicker than its cancel."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class CompletesFirst(Fault):
    """Completes a run at the moment its cancel arrives."""

    def before_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "cancel" and exchange.run_now is not None:
            exchange.run_now.complete(time.monotonic())
