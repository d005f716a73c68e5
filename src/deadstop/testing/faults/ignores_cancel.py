"""A server that takes a cancel and does nothing about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class IgnoresCancel(Fault):
    """Answers a cancel request with 200 and the run as it is."""

    def before_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "cancel":
            exchange.handled = True
