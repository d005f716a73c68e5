"""A run that is made, and whose id nobody is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class CreateReplyLost(Fault):
    """Makes the run, then resets the connection instead of answering."""

    def after_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "create":
            exchange.hang_up(reset=True)
