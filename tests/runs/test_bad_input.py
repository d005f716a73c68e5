"""Bad input gets an error that says what to do, and leaves nothing half open."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from deadstop import RunAlreadyOpenError, UnknownRunError, UsageError
from deadstop.testing import FakeOpenAI


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=4, tokens=1000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    yield one
    world.close(one)


def generating(server: FakeOpenAI) -> None:
    server.wait_for(lambda requests: any(each.state == "generating" for each in requests))


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda runs: runs.open(""), UsageError, "empty"),
    (lambda runs: runs.open("  "), UsageError, "empty"),
    (lambda runs: runs.open(7), UsageError, "string"),
    (lambda runs: runs.open("x", timeout=-1), UsageError, "timeout"),
    (lambda runs: runs.open("x", timeout=0), UsageError, "timeout"),
    (lambda runs: runs.open("x", timeout="soon"), UsageError, "timeout"),
    (lambda runs: runs.open("x", timeout=float("nan")), UsageError, "timeout"),
    (lambda runs: runs.open("x", policy=3), UsageError, "policy"),
    (lambda runs: runs.open("x", metadata=3), UsageError, "metadata"),
    (lambda runs: runs.get("nobody"), UnknownRunError, "nobody"),
    (lambda runs: runs.get(""), UsageError, "empty"),
]


@pytest.mark.parametrize(("use", "kind", "word"), BAD)
def test_bad_input_is_refused_and_nothing_is_left_open(
    world: Any, client: Any, use: Any, kind: type[Exception], word: str
) -> None:
    """Bad input gets an error that names it, and leaves nothing half open."""
    with pytest.raises(kind, match=word):
        use(client.runs)
    assert client.runs.list() == []


@pytest.mark.parametrize(
    ("target", "kwargs", "kind"),
    [
        ("nobody", {}, UnknownRunError),
        ("", {}, UsageError),
        (object(), {}, UnknownRunError),
        (None, {}, UnknownRunError),
        ("r", {"timeout": -1}, UsageError),
        ("r", {"timeout": 0}, UsageError),
        ("r", {"wait": "done"}, UsageError),
        ("r", {"policy": "fast"}, UsageError),
        ("r", {"reason": ValueError("too slow")}, UsageError),
        ("r", {"actor": 7}, UsageError),
        ("r", {"request_id": 7}, UsageError),
    ],
)
def test_a_bad_cancel_cancels_nothing(
    world: Any, client: Any, server: FakeOpenAI, target: Any, kwargs: Any, kind: type[Exception]
) -> None:
    """A cancel with bad input raises, and the run goes on."""
    pending = world.start(world.consume, client, "r", max_tokens=10)
    generating(server)
    error = world.start(lambda: client.runs.cancel(target, **kwargs)).failure()
    assert isinstance(error, kind), repr(error)
    assert str(error).endswith("."), "a full sentence"
    server.rate = 0  # it has seen what it was to see
    assert pending.result() >= 10


def test_what_is_said_of_a_cancel_is_text(world: Any, client: Any) -> None:
    """An exception as the reason, a number as the actor: refused by whoever takes it, before anything is cancelled. The
    callers of the run would get an `AttributeError`, and the record nothing."""
    run = client.runs.open("r")
    for told in ({"reason": ValueError("too slow")}, {"actor": 7}):
        with pytest.raises(UsageError, match="give text"):
            run.cancel_soon(**told)
        for cancel in (functools.partial(client.runs.cancel_all, **told), functools.partial(run.cancel, **told)):
            assert isinstance(world.start(cancel).failure(), UsageError)
    run.check()


def test_a_name_that_is_open_can_not_be_opened_again(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The second opening is refused, the first run goes on, and once it has ended the name is free."""
    pending = world.start(world.consume, client, "r", max_tokens=10)
    generating(server)
    with pytest.raises(RunAlreadyOpenError, match="'r'"):
        client.runs.open("r")
    server.rate = 0
    assert pending.result() >= 10
    world.start(world.consume, client, "r", max_tokens=2).result()


def test_the_wrong_sort_of_with_says_which_is_right(world: Any, client: Any, server: FakeOpenAI) -> None:
    """And the name is free again once that is mended; in the next cell, say. A scope that is open stays open."""
    server.rate = 0
    run = client.runs.open("r")
    right = "async with" if world.is_async else "with"
    enter = type(run).__enter__ if world.is_async else type(run).__aenter__
    with pytest.raises(UsageError, match=f"by `{right}`"):
        enter(run)
    assert client.runs.list() == []

    def twice(_: Any) -> None:
        with pytest.raises(UsageError):
            enter(client.runs.get("r"))

    assert world.start(world.consume, client, "r", twice, max_tokens=2).result() > 1
    assert client.runs.list() == []


async def clean_up(*_: Any) -> None:
    """What somebody may want done at a cancel."""


class CleanUp:
    async def __call__(self, _run: Any) -> None:
        """As `clean_up`."""


@pytest.mark.parametrize(
    "callback", [clean_up, functools.partial(clean_up, 1), CleanUp()], ids=["", "partial", "object"]
)
def test_a_callback_that_would_have_to_be_awaited_is_refused(world: Any, client: Any, callback: Any) -> None:
    """`on_cancel()` calls a plain function, in any thread: a coroutine function would never be run, and is an error
    that says what to give instead. A class, whatever its objects are like, is a plain function."""
    called: list[Any] = []

    class Note(CleanUp):
        def __init__(self, run: Any) -> None:
            called.append(run.name)

    def body(run: Any) -> None:
        with pytest.raises(UsageError, match="run_coroutine_threadsafe"):
            run.on_cancel(callback)
        run.on_cancel(Note)
        run.cancel_soon()

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("r") as run:
                body(run)

    else:

        def program() -> None:
            with client.runs.open("r") as run:
                body(run)

    world.start(program).result()
    assert called == ["r"]
