"""A cancel that takes effect at once, and is answered late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class CancelReplySlow(Fault):
    """Answers a cancel request `seconds` late; None: never."""

    seconds: float | None = None

    def after_run(self, exchange: RunExchange) -> None:
        if exchange.asked.action == "cancel":
            exchange.wait(self.seconds)
