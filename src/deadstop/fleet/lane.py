"""One thread for work that may block on the ledger, in the order given. It is there only while there is work."""

from __future__ import annotations

import _thread
import logging
import os
import queue
import threading
import weakref
from typing import Callable, Optional, TypeVar

__all__ = ["Lane"]

log = logging.getLogger("deadstop")

IDLE = 2.0
"""How long (seconds) the thread waits for more work before it ends."""

Work = Callable[[], object]
T = TypeVar("T")


class Lane:
    """Runs work one after the other in a daemon thread.

    ``submit`` never blocks and takes no lock, so a signal handler may call it on top of anything.
    """

    def __init__(self) -> None:
        self._forget_thread()
        _every.add(self)

    def _forget_thread(self) -> None:
        self._queue: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._free: list[None] = [None]  # empty while there is a thread: list.pop is atomic

    def submit(self, work: Work) -> None:
        """Have ``work`` run soon, after all that was submitted before. What it raises is logged."""
        self._queue.put(work)
        self._start()

    def do(
        self, job: Callable[[], T], done: Optional[Callable[[Optional[T], Optional[Exception]], object]] = None
    ) -> None:
        """As `submit`; ``done(value, error)`` is called there."""
        self.submit(lambda: _work(job, done))

    def _start(self) -> bool:
        try:
            self._free.pop()
        except IndexError:
            return False
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # the interpreter is shutting down, or there are no more threads to be had
            self._free.append(None)
        return True

    def _run(self) -> None:
        waiting = self._queue
        while True:
            try:
                work = waiting.get(timeout=IDLE)
            except queue.Empty:
                self._free.append(None)
                if not waiting.empty():  # work came in the moment between
                    self._start()
                return
            try:
                work()
            except BaseException:
                log.exception("Work on the ledger failed unexpectedly.")

    def drain(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until all that was submitted so far is done. Not from the lane itself."""
        done = threading.Event()
        self.submit(done.set)
        return done.wait(timeout)


def _work(job: Callable[[], T], done: Optional[Callable[[Optional[T], Optional[Exception]], object]]) -> None:
    value, failed = None, None
    try:
        value = job()
    except Exception as error:
        failed = error
        if done is None:
            log.warning("Not on record: %s", error)
    except BaseException as error:  # a callback of the user's that means to leave, in a thread that is not theirs
        failed = RuntimeError(repr(error))
        log.warning("Work on the ledger was left by %r.", error)
    if done is not None:
        done(value, failed)


_every: weakref.WeakSet[Lane] = weakref.WeakSet()


def _forked() -> None:
    for each in list(_every):
        each._forget_thread()  # the thread is the parent's, and so is its work


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
