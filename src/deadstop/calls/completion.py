"""A flag that is set once and that threads and tasks of any event loop can wait for."""

from __future__ import annotations

import asyncio
import threading
from typing import Callable, Optional

import anyio

from deadstop.calls.loops import Loop

__all__ = ["Completion"]


class Completion:
    """Set once; waited for from threads and from asyncio or trio tasks alike.

    Cheap while nobody waits: a call that is never cancelled pays for two attributes.
    """

    __slots__ = ("done", "waiters")

    def __init__(self) -> None:
        self.done = False
        self.waiters: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        return self.done

    def set(self) -> None:
        """Set the flag and wake everybody. Never blocks."""
        self.done = True
        # list.pop is atomic, so each waiter is woken by exactly one setter, or sees the flag itself.
        while self.waiters:
            try:
                wake = self.waiters.pop()
            except IndexError:
                return
            wake()

    def notify(self, callback: Callable[[], object]) -> None:
        """Have `callback` called (once, in the setter's thread) when the flag is set; at once if it is."""
        self.waiters.append(callback)
        if self.done:
            self.set()

    def wait(self, timeout: Optional[float] = None, unwoken: float = 0.0) -> bool:
        """Block this thread for at most `timeout` seconds, and as many as `unwoken` on top; whether the flag is set.

        For the time of `unwoken` nobody wakes this one: that takes the setter longer than much else that it does.
        """
        if not self.done:
            # Not an `Event`, whose code is long and cold: the thread that was interrupted waits for this one to block.
            woken = threading.Lock()
            woken.acquire()
            if unwoken:
                woken.acquire(timeout=unwoken)
            self.notify(woken.release)
            woken.acquire(timeout=-1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX))
        return self.done

    async def wait_async(self, timeout: Optional[float] = None, here: Optional[Loop] = None, turns: int = 0) -> bool:
        """Suspend this task for at most `timeout` seconds; whether the flag is set. `here`: its loop, if known.

        It sits out some `turns` of the loop first: what the other task needs, if all goes well, and cheaper than to be
        woken.
        """
        if self.done:
            return True
        loop = here or Loop.current()
        while turns and not self.is_set():
            turns -= 1
            await loop.give_way()
        woken = None if self.is_set() else loop.future()
        if woken is not None:
            await self._wait_for(woken, loop, timeout)
        elif not self.is_set():
            event = anyio.Event()
            self.notify(lambda: loop.call(event.set))
            with anyio.move_on_after(timeout):
                await event.wait()
        return self.done

    async def _wait_for(self, woken: asyncio.Future[None], loop: Loop, timeout: Optional[float]) -> None:
        # By hand: the task that was interrupted has its turn when this one is suspended.
        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        self.notify(lambda: loop.call(wake))
        timer = None if timeout is None else woken.get_loop().call_later(max(timeout, 0.0), wake)
        try:
            await woken
        finally:
            if timer is not None:
                timer.cancel()
