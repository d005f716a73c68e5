"""A signal that comes while the main thread is about to wait is handled at once all the same.

Python's own handler only makes a mark; what `signal.signal` was given runs when the main thread looks next. It looks
when a signal interrupts what it waits for. But a signal that comes between its last look and the start of its wait, or
that the system delivers to another thread, interrupts nothing: the handler would run when the wait ends, which may be
never. `signal.set_wakeup_fd` tells of each mark as it is made. A thread that is told of one interrupts the main thread
a few times, with a signal that means nothing.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import signal
import threading
import warnings

__all__ = ["Wake"]

AFTER = (0.001, 0.01, 0.1, 1.0)
"""When (seconds, each after the one before) the main thread is made to look. Each can miss as the signal did; the odds
of all four are nil."""


class Wake:
    """Sees that the handlers of `signals` run. Made in the main thread; at work from `start` on.

    What has its own use for the wakeup descriptor, as an event loop with signal handlers has, or for SIGURG, gets it.
    """

    def __init__(self, signals: tuple[int, ...]) -> None:
        self._signals = frozenset(signals)
        self._started = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        if signal.getsignal(signal.SIGURG) == signal.SIG_DFL:  # which is: ignored
            signal.signal(signal.SIGURG, lambda number, frame: None)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._forget)
        # trio takes the descriptor, gives it back at its end, and says so.
        warnings.filterwarnings("ignore", "It looks like Trio's signal handling code might have collided")

    def start(self) -> None:
        """Begin. What came before is made good, too."""
        if not self._started:
            self._started = True
            _thread.start_new_thread(self._watch, ())

    def _watch(self) -> None:
        left: list[float] = []
        while True:
            if select.select([self._reader], [], [], left[0] if left else None)[0]:
                # A forked child, and one on its way to an exec, may write here, too: to look is harmless.
                if self._signals & set(os.read(self._reader, 4096)):
                    left = list(AFTER)
            else:
                left.pop(0)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    def _forget(self) -> None:
        with contextlib.suppress(ValueError):
            before = signal.set_wakeup_fd(-1)
            if before not in (-1, self._writer):
                signal.set_wakeup_fd(before)
