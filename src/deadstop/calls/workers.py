"""A few threads for requests of our own: cancels and status reads. They are there only while there is work."""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import queue
import weakref
from typing import Callable

__all__ = ["LIMIT", "Workers"]

log = logging.getLogger("deadstop")

LIMIT = 16
"""How many requests of our own may be under way at once for one client."""

IDLE = 2.0
"""How long (seconds) a thread waits for more work before it ends."""

Work = Callable[[], None]


class Workers:
    """Runs work in at most `limit` daemon threads, in the order given. Never keeps a process alive.

    `submit` never blocks and takes no lock, so a signal handler may call it on top of anything: every change is one
    atomic operation on a list or a `SimpleQueue` (whose `put` is reentrant), and threads are started by `_thread`,
    since `threading.Thread.start` takes locks of its own.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._forget_threads()
        _every.add(self)

    def _forget_threads(self) -> None:
        self._queue: queue.SimpleQueue[tuple[bool, Work]] = queue.SimpleQueue()
        self._idle: list[None] = []  # one for each thread that waits and that nobody has spoken for
        self._alive: list[None] = []

    def submit(self, work: Work) -> None:
        """Have `work` run soon. What it raises is logged."""
        try:
            self._idle.pop()
        except IndexError:
            self._queue.put((False, work))
            if len(self._alive) < self._limit:
                self._alive.append(None)
                try:
                    _thread.start_new_thread(self._run, ())
                except RuntimeError:  # the interpreter is shutting down, or there are no more threads to be had
                    self._alive.pop()
        else:
            self._queue.put((True, work))

    def _run(self) -> None:
        while True:
            self._idle.append(None)
            try:
                promised, work = self._queue.get(timeout=IDLE)
            except queue.Empty:
                try:
                    self._idle.pop()
                except IndexError:
                    continue  # somebody has spoken for this thread just now
                self._alive.pop()
                if self._queue.empty():
                    return
                self._alive.append(None)  # work came in the moment between
                continue
            if not promised:
                with contextlib.suppress(IndexError):
                    self._idle.pop()
            try:
                work()
            except BaseException:
                log.exception("A request of deadstop's own failed unexpectedly.")


_every: weakref.WeakSet[Workers] = weakref.WeakSet()


def _forked() -> None:
    for each in list(_every):
        each._forget_threads()  # the threads are the parent's, and so is their work


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
