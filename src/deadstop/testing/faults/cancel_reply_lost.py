"""A cancel that takes effect, and whose answer is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class CancelReplyLost(Fault):
    """Does what a cancel request asks, then resets the connection instead of answering."""

    def after_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "cancel":
            exchange.hang_up(reset=True)
