"""A server that never stops for a disconnect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class Deaf(Fault):
    """Generates to the end, whether or not anybody is there to read it."""

    def on_disconnect(self, exchange: Exchange, writing: bool) -> bool:
        return False
