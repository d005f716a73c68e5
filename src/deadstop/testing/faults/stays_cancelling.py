"""A run that takes its time over a cancel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class StaysCancelling(Fault):
    """Lets a run say `cancelling` for `seconds` before it is cancelled; None: for ever.

    A kind that has no such word goes on saying that it works."""

    seconds: float | None = None

    def before_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "cancel" and exchange.run_now is not None:
            exchange.run_now.cancelling_for = math.inf if self.seconds is None else self.seconds
