"""A server that does not know `stream_options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault
from deadstop.testing.render_other import error

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class RefuseStreamOptions(Fault):
    """Refuses, with `status` and an error that names `stream_options`, each request that carries them."""

    status: int = 400

    def before_headers(self, exchange: Exchange) -> None:
        if "stream_options" in exchange.body:
            refusal = error("Unknown parameter: 'stream_options'.", param="stream_options", code="unknown_parameter")
            exchange.answer(self.status, refusal)
