"""A run that has to wait before it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class StaysQueued(Fault):
    """Lets a run that is made say `queued` (or its kind's word for that) for `seconds` before it works."""

    seconds: float = 1.0

    def before_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "create":
            exchange.queued_for = self.seconds
