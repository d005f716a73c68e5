"""Waiting for one's turn on a connection that several calls share (HTTP/2), where a cancel can reach it.

In stock httpcore a thread waits for a lock until it gets it. Here it waits on behalf of a call: no longer than that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional

import anyio

from deadstop.calls.call import Call, Interruption, active_call
from deadstop.calls.timers import LONGEST
from deadstop.core.model import Interrupted

__all__ = [
    "PATIENCE",
    "Overdue",
    "Permits",
    "ReadLock",
    "TaskLock",
    "TaskPermits",
    "call_here",
    "check",
    "leaving",
    "on_behalf_of",
    "terms",
    "undisturbed",
]

PATIENCE = 1.0
"""How long (seconds) a call that is leaving waits for another that is writing, to say that it leaves."""

_FOREVER = float("inf")

_here = threading.local()


class Overdue(BaseException):
    """The time of one call is up, on a connection that has more time for others.

    Not an `Exception`: httpcore ends every call on a connection whose read failed with one.
    """


def call_here() -> Optional[Call]:
    """The call that this thread is waiting on the network for. A stream is read in whatever thread has got it."""
    return getattr(_here, "call", None) or active_call()


def terms() -> tuple[Optional[Call], Optional[float]]:
    """How this thread waits now: for which call, which may be cancelled; or else until when (monotonic seconds)."""
    until = getattr(_here, "until", None)
    if until is None:
        return call_here(), None
    return None, None if until == _FOREVER else until


@contextlib.contextmanager
def on_behalf_of(call: Optional[Call]) -> Iterator[None]:
    """In here this thread works for `call`, whatever context it runs in."""
    before, _here.call = getattr(_here, "call", None), call
    try:
        yield
    finally:
        _here.call = before


@contextlib.contextmanager
def _until(moment: float) -> Iterator[None]:
    before, _here.until = getattr(_here, "until", None), moment
    try:
        yield
    finally:
        _here.until = before


def leaving() -> contextlib.AbstractContextManager[None]:
    """In here a cancel changes nothing, and what takes longer than `PATIENCE` ends with `Overdue`."""
    return _until(time.monotonic() + PATIENCE)


def undisturbed() -> contextlib.AbstractContextManager[None]:
    """In here a cancel changes nothing: what is done is done for everybody on the connection."""
    return _until(_FOREVER)


def check(call: Call) -> None:
    """Raise `Interruption` or `Overdue` when `call` is not to wait any longer."""
    if call.must_stop():
        if call.interrupted is Interrupted.NOTHING:
            call.interrupted = Interrupted.WAKE
        raise Interruption(call)
    if call.read_deadline is not None and time.monotonic() >= call.read_deadline:
        raise Overdue


class _Waiter:
    """Who is in the queue: a thread or a task."""

    __slots__ = ("ready", "turn")

    def __init__(self, ready: Optional[Callable[[], Any]], turn: Any) -> None:
        self.ready = ready
        self.turn = turn


def _first_of(waiting: Iterable[_Waiter]) -> Optional[_Waiter]:
    everyone = list(waiting)
    # Those who wait for something to be read are told of it by whoever reads. The others must look themselves.
    return next((each for each in everyone if each.ready is None), everyone[0] if everyone else None)


def _wake(waiting: Iterable[_Waiter]) -> None:
    """Wake whose turn it is, and those who need no turn any more."""
    first = _first_of(waiting)
    if first is not None:
        first.turn.set()
    for each in list(waiting):
        if each.ready is not None and each.ready():
            each.turn.set()


class Permits:
    """httpcore's semaphore for threads (with one permit: its lock), which a cancelled call does not wait for.

    First come, first served.
    """

    def __init__(self, count: int = 1) -> None:
        self._semaphore = threading.Semaphore(count)
        self._waiting: deque[_Waiter] = deque()

    def acquire(self) -> None:
        """Take a permit. Raises `Interruption` or `Overdue` instead of waiting on for it."""
        self._acquire(None)

    def acquire_if_available(self) -> bool:
        """Take a permit if there is one."""
        return self._semaphore.acquire(blocking=False)

    def release(self) -> None:
        """Give a permit back."""
        self._semaphore.release()
        _wake(self._waiting)

    def _acquire(self, ready: Optional[Callable[[], Any]]) -> bool:
        """Whether a permit was taken. False when it is not needed any more: `ready()` is true."""
        if not self._waiting and self.acquire_if_available():
            return True
        call, until = terms()
        mine = _Waiter(ready, threading.Event())
        waker = None
        if call is not None:
            waker, call.waker = call.waker, mine.turn.set
        self._waiting.append(mine)
        try:
            while True:
                if ready is not None and ready():
                    return False
                if _first_of(self._waiting) is mine and self.acquire_if_available():
                    return True
                left = None
                if call is not None:
                    check(call)
                    left = call.timeout(None)
                elif until is not None:
                    left = until - time.monotonic()
                    if left <= 0:
                        raise Overdue
                mine.turn.wait(None if left is None else min(left, LONGEST))
                mine.turn.clear()
        finally:
            if call is not None:
                call.waker = waker
            self._waiting.remove(mine)
            _wake(self._waiting)  # it may have been woken for a permit that it did not take, or there may be one more

    def __enter__(self) -> Permits:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class ReadLock(Permits):
    """The lock of whoever reads for everybody. Who gets what it waits for passes, while another thread reads on.

    With httpcore's own a thread whose answer is there may wait behind one that waits for the next data.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mine = threading.local()

    @contextlib.contextmanager
    def until(self, ready: Callable[[], Any]) -> Iterator[None]:
        """In here the lock is wanted for as long as `ready()` is false."""
        self._mine.ready = ready
        try:
            yield
        finally:
            self._mine.ready = None

    def __enter__(self) -> ReadLock:
        self._mine.held = self._acquire(getattr(self._mine, "ready", None))
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine.held:
            self.release()


class TaskPermits:
    """httpcore's semaphore for tasks, which suspends nobody who need not wait.

    A new connection takes 99 permits out of it. Its own would let a cancellation come in between, and with the rest
    of them left in it, the connection breaks at the server's settings.
    """

    def __init__(self, count: int) -> None:
        self._semaphore = anyio.Semaphore(count)

    async def acquire(self) -> None:
        if not self.acquire_if_available():
            await self._semaphore.acquire()

    def acquire_if_available(self) -> bool:
        try:
            self._semaphore.acquire_nowait()
        except anyio.WouldBlock:
            return False
        return True

    async def release(self) -> None:
        self._semaphore.release()


class TaskLock:
    """httpcore's lock for tasks, and `ReadLock` for them.

    anyio's own (up to 4.12, on asyncio) is lost when a waiter is cancelled, the holder lets go, and a third task asks
    for it before the cancelled one has run: that one waits for a holder who is not there.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiter] = deque()
        self._holder: Optional[int] = None
        self._awaited: dict[int, Callable[[], Any]] = {}  # by task

    @contextlib.contextmanager
    def until(self, ready: Callable[[], Any]) -> Iterator[None]:
        """In here the lock is wanted for as long as `ready()` is false."""
        me = anyio.get_current_task().id
        self._awaited[me] = ready
        try:
            yield
        finally:
            del self._awaited[me]

    async def __aenter__(self) -> TaskLock:
        me = anyio.get_current_task().id
        if self._holder is None and not self._waiting:
            self._holder = me
            return self
        ready = self._awaited.get(me)
        mine = _Waiter(ready, anyio.Event())
        self._waiting.append(mine)
        try:
            while ready is None or not ready():
                if self._holder is None and _first_of(self._waiting) is mine:
                    self._holder = me
                    break
                await mine.turn.wait()
                mine.turn = anyio.Event()
        finally:
            self._waiting.remove(mine)
            if self._holder is None:  # it was woken for a turn that it did not take
                _wake(self._waiting)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._holder == anyio.get_current_task().id:
            self._holder = None
            _wake(self._waiting)
