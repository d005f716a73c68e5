"""A server that swallows connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.wire import Wire


@dataclass(frozen=True)
class Blackhole(Fault):
    """Accepts the connection and reads nothing at all, so that a large body blocks its sender.

    There is no record of such a request; `open_connections` counts its connection. A peer that leaves with
    unsent data behind it is not seen to leave: its FIN stands behind that data.
    """

    def on_accept(self, wire: Wire) -> None:
        wire.hold()
