"""A refusal of a cancel that could be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault
from deadstop.testing.render_other import error

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class FalseConflict(Fault):
    """Answers a cancel request with `status` (400, 409), whatever the run does."""

    status: int = 409

    def before_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "cancel":
            exchange.answer(self.status, error("The run cannot be cancelled."))
