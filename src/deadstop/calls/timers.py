"""One thread for all deadlines of a process. It is there only while there is a deadline to wait for."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import threading
import time
from typing import Callable

__all__ = ["LONGEST", "Timer", "at"]

log = logging.getLogger("deadstop")

_lock = threading.Condition()
_heap: list[Timer] = []
_running = False
_order = itertools.count()
_stopped = 0  # of those in the heap, about
_SPARSE = 100

LONGEST = 2_000_000.0
"""How long (seconds, 23 days) one wait may be. No system waits for ever so long: `poll` takes 2**31 milliseconds."""

PAUSE = 1.0
"""How long (seconds) the thread rests after what should not have happened, should it happen again at once."""


class Timer:
    """Work that is due at a moment, until it is stopped."""

    __slots__ = ("_work", "due", "order")

    def __init__(self, due: float, work: Callable[[], None]) -> None:
        self.due = due
        self.order = next(_order)
        self._work: Callable[[], None] | None = work

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.order) < (other.due, other.order)

    def stop(self) -> None:
        """The work is not wanted any more."""
        global _stopped
        with _lock:
            if self._work is not None:
                self._work = None
                _stopped += 1
            _drop_stopped()
            if _stopped > _SPARSE and _stopped > len(_heap) / 2:
                _heap[:] = [each for each in _heap if each._work is not None]
                heapq.heapify(_heap)
                _stopped = 0
            if not _heap:
                _lock.notify()  # the thread has nothing left to wait for, and ends

    def fire(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work()


def _drop_stopped() -> None:
    """Forget timers that were stopped and are next in line."""
    while _heap and _heap[0]._work is None:
        heapq.heappop(_heap)


def at(due: float, work: Callable[[], None]) -> Timer:
    """Have `work` called at `due` (seconds, `time.monotonic`), in a thread of ours. It must not block."""
    global _running
    timer = Timer(due, work)
    with _lock:
        heapq.heappush(_heap, timer)
        if _running:
            if _heap[0] is timer:  # or the thread wakes up in time anyway
                _lock.notify()
        else:
            threading.Thread(target=_run, name="deadstop deadlines", daemon=True).start()
            _running = True  # not before: there may be no thread to be had, and the next deadline asks again
    return timer


def _run() -> None:
    over = False
    while not over:
        try:
            over = _fire_next()
        except BaseException:  # nothing that may happen here is to end the other deadlines
            with contextlib.suppress(BaseException):  # no memory for that either, say
                log.exception(
                    "The wait for the next deadline failed; the deadlines stand, and may be %g s late.", PAUSE
                )
            time.sleep(PAUSE)


def _fire_next() -> bool:
    """Wait for the next deadline, and do what is due. Whether there was none: the thread ends."""
    global _running
    with _lock:
        _drop_stopped()  # one that was stopped while another was before it
        while _heap and (left := _heap[0].due - time.monotonic()) > 0:
            _lock.wait(min(left, LONGEST))
            _drop_stopped()
        if not _heap:
            _running = False
            return True
        timer = heapq.heappop(_heap)
    try:
        timer.fire()
    except BaseException:  # a callback of the user's that means to leave, in a thread that is not theirs
        log.exception("A deadline's cancel failed; the other deadlines stand.")
    return False


def _forked() -> None:
    global _lock, _running
    _lock, _running = threading.Condition(), False  # the thread is the parent's, and so are its deadlines
    _heap.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
