"""A server that is slow to shake hands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.wire import Wire


@dataclass(frozen=True)
class SlowTLS(Fault):
    """Accepts the connection and begins the TLS handshake only `seconds` later (None: never)."""

    seconds: float | None

    def on_accept(self, wire: Wire) -> None:
        wire.pause(self.seconds)
