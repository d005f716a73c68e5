"""A server that looks at its connection only when it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class NoticeOnWrite(Fault):
    """Notices a disconnect only by a write that fails, as most real servers do.

    A streamed answer stops within a write or two; any other is generated to its end.
    """

    def on_disconnect(self, exchange: Exchange, writing: bool) -> bool:
        return writing
