"""A server that does not know a run at first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault
from deadstop.testing.render_other import error

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange


@dataclass(frozen=True)
class NotYetKnown(Fault):
    """Answers 404 to all requests about a run in its first `seconds`."""

    seconds: float = 0.2

    def before_run(self, exchange: RunExchange) -> None:
        run = exchange.run_now
        if run is not None and time.monotonic() < run.created_at + self.seconds:
            exchange.answer(404, error(f"No {exchange.asked.kind.name} found with id '{run.id}'.", code="not_found"))
