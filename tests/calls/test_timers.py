"""The one thread for all deadlines."""

from __future__ import annotations

import importlib.util
import threading
import time

import pytest
from worlds import until

from deadstop.calls import timers


def no_thread() -> bool:
    return not any("deadlines" in thread.name for thread in threading.enumerate())


def test_a_stopped_deadline_keeps_no_thread() -> None:
    """One that was stopped while another was before it is not waited for when that one has passed."""
    fired = threading.Event()
    first = timers.at(time.monotonic() + 0.05, fired.set)
    timers.at(time.monotonic() + 600, fired.clear).stop()
    try:
        assert fired.wait(5)
        until(no_thread, "the thread's end")
    finally:
        first.stop()


def test_a_thread_that_could_not_be_started_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system had no more threads once. That is told, and the next deadline is kept again."""
    found = importlib.util.find_spec("deadstop.calls.timers")
    assert found is not None
    assert found.loader is not None
    timers = importlib.util.module_from_spec(found)  # one that has no thread yet, whatever other tests have left
    found.loader.exec_module(timers)
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if "deadlines" in self.name:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        timers.at(time.monotonic() + 0.01, no_thread)
    monkeypatch.undo()
    fired = threading.Event()
    timers.at(time.monotonic() + 0.01, fired.set)
    assert fired.wait(5)


def test_stopped_deadlines_do_not_pile_up() -> None:
    """A server that gives each of its requests an hour keeps little of those that were done sooner."""
    earlier = timers.at(time.monotonic() + 600, no_thread)
    try:
        for _ in range(5000):
            timers.at(time.monotonic() + 3600, no_thread).stop()
        assert len(timers._heap) < 500
    finally:
        earlier.stop()
