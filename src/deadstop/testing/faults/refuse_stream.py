"""A server that can't stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault
from deadstop.testing.render_other import error

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class RefuseStream(Fault):
    """Refuses, with `status` and an error that names `stream`, each request for a stream."""

    status: int = 400

    def before_headers(self, exchange: Exchange) -> None:
        if exchange.body.get("stream"):
            refusal = error(
                "Unsupported value: 'stream' does not support true here.",
                param="stream",
                code="unsupported_value",
            )
            exchange.answer(self.status, refusal)
