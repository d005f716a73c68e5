"""The clock that cancels go by: the real one, or a test's."""

from __future__ import annotations

import time
from typing import Any, Callable, Protocol

from deadstop.calls import timers

__all__ = ["REAL", "Clock"]


class Clock(Protocol):
    """Monotonic seconds, and work at a moment of them."""

    def now(self) -> float:
        """Now, in seconds."""

    def at(self, due: float, work: Callable[[], None]) -> Any:
        """Have `work` called at `due`, unless the `stop()` of what is returned is called before. Never blocks."""


class _Real:
    now = staticmethod(time.monotonic)
    at = staticmethod(timers.at)


REAL: Clock = _Real()
