"""The one thread for all deadlines."""

from __future__ import annotations

import threading
import time

from worlds import until

from deadstop.calls import timers


def test_a_stopped_deadline_keeps_no_thread() -> None:
    """One that was stopped while another was before it is not waited for when that one has passed."""
    fired = threading.Event()
    first = timers.at(time.monotonic() + 0.05, fired.set)
    timers.at(time.monotonic() + 600, fired.clear).stop()
    try:
        assert fired.wait(5)
        until(lambda: not any("deadlines" in thread.name for thread in threading.enumerate()), "the thread's end")
    finally:
        first.stop()
