"""The SDK's pauses between two looks at something (`create_and_poll()` and its kin) end once the run is cancelled.

No call is under way meanwhile, so the cancel has nothing to interrupt and is confirmed at once; it is the caller who
would find out late.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from typing import Any, Optional

import anyio

from deadstop.calls.call import GLANCE
from deadstop.calls.completion import Completion
from deadstop.runs.run import BaseRun, current_run

__all__ = ["with_pauses"]


def with_pauses(cls: Any) -> type:
    """A resource whose `_sleep()` ends with the run that it happens in."""
    if inspect.iscoroutinefunction(cls._sleep):

        class AsyncResource(cls):  # type: ignore[misc]
            @functools.wraps(cls._sleep)
            async def _sleep(self, seconds: float) -> None:
                run = _run_around(cls._sleep)
                if run is None:
                    await super()._sleep(seconds)
                else:
                    await _pause_task(run, seconds)

        return AsyncResource

    class Resource(cls):  # type: ignore[misc]
        @functools.wraps(cls._sleep)
        def _sleep(self, seconds: float) -> None:
            run = _run_around(cls._sleep)
            if run is None:
                super()._sleep(seconds)
            else:
                _pause_thread(run, seconds)

    return Resource


def _run_around(sleep: Any) -> Optional[BaseRun]:
    """The run that ends the pause. None if there is none, or if somebody has put a sleep of theirs in the place of the
    SDK's (tests do): it is theirs to end."""
    around = current_run.get()
    run = None if around is None else around.nearest()
    if run is None or run.cancelled:
        return run
    of_the_sdk: str = getattr(sleep, "__module__", "")
    plain = all(str(each.sleep.__module__).partition(".")[0] == each.__name__ for each in (time, anyio, asyncio))
    return run if plain and of_the_sdk.endswith("._resource") else None


def _pause_thread(run: BaseRun, seconds: float) -> None:
    """Wait for `seconds`, or until the run is cancelled: then raise its error. Blocks the thread."""
    # A lock, because a signal handler that cancels may run on top of this: an `Event` can't be set from just anywhere.
    woken = threading.Lock()
    woken.acquire()
    forget = run.on_cancel(lambda _: woken.release())
    try:
        left = float(seconds)
        while left > 0 and not run.cancelled and not woken.acquire(timeout=min(left, GLANCE)):
            left -= GLANCE  # counted: people's tests stop the clock
    finally:
        forget()
    run.check()


async def _pause_task(run: BaseRun, seconds: float) -> None:
    """As `_pause_thread`, of a task."""
    # Without a cancel scope: nothing here can be taken for a native cancellation, or swallow one.
    woken = Completion()
    forget = run.on_cancel(lambda _: woken.set())
    try:
        await woken.wait_async(seconds)
    finally:
        forget()
    run.check()
