"""A flag that is set once and that threads and tasks of any event loop can wait for."""

from __future__ import annotations

import threading
from typing import Callable, Optional

import anyio

from deadstop.calls.loops import Loop

__all__ = ["Completion"]


class Completion:
    """Set once; waited for from threads and from asyncio or trio tasks alike.

    Cheap while nobody waits: a call that is never cancelled pays for two attributes.
    """

    __slots__ = ("_done", "_waiters")

    def __init__(self) -> None:
        self._done = False
        self._waiters: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        return self._done

    def set(self) -> None:
        """Set the flag and wake everybody. Never blocks."""
        self._done = True
        # list.pop is atomic, so each waiter is woken by exactly one setter, or sees the flag itself.
        while self._waiters:
            try:
                wake = self._waiters.pop()
            except IndexError:
                return
            wake()

    def notify(self, callback: Callable[[], object]) -> None:
        """Have `callback` called (once, in the setter's thread) when the flag is set; at once if it is."""
        self._waiters.append(callback)
        if self._done:
            self.set()

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Block this thread for at most `timeout` seconds; whether the flag is set."""
        if not self._done:
            woken = threading.Event()
            self.notify(woken.set)
            woken.wait(timeout)
        return self._done

    async def wait_async(self, timeout: Optional[float] = None) -> bool:
        """Suspend this task for at most `timeout` seconds; whether the flag is set."""
        if not self._done:
            woken = anyio.Event()
            loop = Loop.current()
            self.notify(lambda: loop.call(woken.set))
            with anyio.move_on_after(timeout):
                await woken.wait()
        return self._done
