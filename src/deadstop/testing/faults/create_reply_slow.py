"""A run that is made at once, and whose id is told late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class CreateReplySlow(Fault):
    """Answers a create `seconds` late."""

    seconds: float = 1.0

    def after_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "create":
            exchange.wait(self.seconds)
