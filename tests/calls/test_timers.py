"""The one thread for all deadlines."""

from __future__ import annotations

import importlib.util
import threading
import time
from typing import Any

import pytest
from worlds import until

from deadstop.calls import timers


def no_thread() -> bool:
    return not any("deadlines" in thread.name for thread in threading.enumerate())


def fresh() -> Any:
    """A module that has no thread yet, whatever other tests have left."""
    found = importlib.util.find_spec("deadstop.calls.timers")
    assert found is not None
    assert found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


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
    timers = fresh()
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


@pytest.mark.parametrize("seconds", [3e6, 1e10, 1e18, 1e308])
def test_a_deadline_that_is_never_due_leaves_the_others_alone(seconds: float) -> None:
    """The system can't wait for so long at a time. The next deadlines, beside it and after it, come in time."""
    beside, after = threading.Event(), threading.Event()
    never = timers.at(time.monotonic() + seconds, no_thread)
    try:
        timers.at(time.monotonic() + 0.05, beside.set)
        assert beside.wait(5)
    finally:
        never.stop()
    timers.at(time.monotonic() + 0.05, after.set)
    assert after.wait(5)


def test_what_breaks_the_wait_does_not_end_the_deadlines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread has no memory for its wait, say. It says so and waits on: a deadline comes late, not never."""
    timers, broken, fired = fresh(), threading.Event(), threading.Event()
    wait = timers._lock.wait

    def no_memory(seconds: float) -> bool:
        timers._lock.wait = wait
        broken.set()
        raise MemoryError

    timers._lock.wait = no_memory
    monkeypatch.setattr(timers, "PAUSE", 0.01)
    timers.at(time.monotonic() + 0.1, fired.set)
    assert broken.wait(5)
    assert fired.wait(5)
    assert [each.message for each in caplog.records if "MemoryError" in (each.exc_text or "")]


def test_stopped_deadlines_do_not_pile_up() -> None:
    """A server that gives each of its requests an hour keeps little of those that were done sooner."""
    earlier = timers.at(time.monotonic() + 600, no_thread)
    try:
        for _ in range(5000):
            timers.at(time.monotonic() + 3600, no_thread).stop()
        assert len(timers._heap) < 500
    finally:
        earlier.stop()
