"""Whose a socket is just now: it is shut down for the call that uses it, and for no other (I9)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from deadstop.calls.sockets import Owned


class Stream:
    """What a socket is looked for in."""

    def get_extra_info(self, name: str) -> Any:
        return None


class Caller:
    """As much of a call as `Owned` looks at."""

    socket: Any = None


class Held:
    """A `shutdown` that takes its time."""

    def __init__(self) -> None:
        self.entered, self.go_on, self.over = threading.Event(), threading.Event(), False

    def __call__(self, how: int) -> None:
        self.entered.set()
        assert self.go_on.wait(20.0)
        self.over = True


def owned(shut: Any) -> tuple[Any, Any]:
    stream, call = Owned(Stream()), Caller()
    stream.take(call)  # type: ignore[arg-type]
    stream._shut = shut
    return stream, call


@pytest.mark.parametrize("change", ["let_go", "take", "closing", "hang_up"])
def test_nobody_changes_a_stream_under_who_shuts_it_down(change: str) -> None:
    """The next owner would be shut down, or whoever the system gave the descriptor to."""
    held, seen = Held(), []
    stream, call = owned(held)
    striker = threading.Thread(target=stream.interrupt, args=(call,))
    striker.start()
    assert held.entered.wait(20.0)

    def do() -> None:
        getattr(stream, change)(*([call] if change == "let_go" else [Caller()] if change == "take" else []))
        seen.append(held.over)

    changing = threading.Thread(target=do)
    changing.start()
    changing.join(0.1)
    assert changing.is_alive()
    held.go_on.set()
    changing.join(20.0)
    striker.join(20.0)
    assert seen == [True]
    assert stream.interrupt(call) is False
    assert stream._strikers == []


@pytest.mark.parametrize("change", ["let_go", "closing", "hang_up"])
def test_a_signal_handler_on_top_of_who_shuts_it_down_does_not_wait(change: str) -> None:
    """It would wait for itself."""
    done = []

    def on_top(how: int) -> None:
        getattr(stream, change)(*([call] if change == "let_go" else []))
        done.append(change)

    stream, call = owned(on_top)
    assert stream.interrupt(call)
    assert done == [change]


def test_what_breaks_off_a_shutdown_holds_nobody_up() -> None:
    """Such as Ctrl-C: whoever lets go later is not to wait for one that is gone."""

    def broken_off(how: int) -> None:
        raise KeyboardInterrupt

    stream, call = owned(broken_off)
    striking = []

    def strike() -> None:
        with pytest.raises(KeyboardInterrupt):
            stream.interrupt(call)
        striking.append(True)

    thread = threading.Thread(target=strike)
    thread.start()
    thread.join(20.0)
    assert striking
    stream.let_go(call)


def test_two_may_shut_it_down_at_once() -> None:
    """A second canceller is not held up by the first, and nothing is left of either."""
    both = threading.Barrier(2, timeout=20.0)
    stream, call = owned(lambda how: both.wait())
    told: list[bool] = []
    strikers = [threading.Thread(target=lambda: told.append(stream.interrupt(call))) for _ in range(2)]
    for each in strikers:
        each.start()
    for each in strikers:
        each.join(20.0)
    stream.let_go(call)
    assert told == [True, True]
    assert stream._strikers == []


def test_one_that_is_gone_is_not_waited_for() -> None:
    """Ctrl-C may break anything off, at its very end, too: its thread is gone, or at something else by now."""
    stream, call = owned(lambda how: None)
    at_something_else = threading.Event()
    thread = threading.Thread(target=at_something_else.wait, args=(20.0,))
    thread.start()
    stream._strikers += [-1, thread.ident or 0]
    began = time.monotonic()
    stream.let_go(call)
    assert time.monotonic() - began < 1
    assert stream._strikers == []
    at_something_else.set()
    thread.join(20.0)
