"""A run that fails by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class RunFails(Fault):
    """Lets a run that is made fail `seconds` after its making, unless it is over before."""

    seconds: float = 0.0

    def after_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "create" and exchange.run_now is not None:
            exchange.run_now.fail(exchange.run_now.created_at + self.seconds)
            exchange.runs.touch()
