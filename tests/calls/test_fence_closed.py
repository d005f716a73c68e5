"""A stream that was closed early holds events still: they are behind the fence like all others."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import AsyncGeneratorType, GeneratorType
from typing import Any

import pytest
from worlds import CHAT

from deadstop import RunCancelledError
from deadstop.testing import FakeOpenAI, faults


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    """Forty events in each read, as fast as it can."""
    with FakeOpenAI(rate=0, tokens=200, faults=[faults.Burst(40)]) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    yield one
    world.close(one)


def read_on(world: Any, client: Any, opened: Any, cancel: Any, events: Any = lambda thing: thing) -> Any:
    """In the scope `turn` inside `chat-42`: take one event of what `opened()` gives, close it, `cancel(it)`, go on.

    What was read after that, and the error that it ended with, if any.
    """
    seen: list[Any] = []

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("chat-42"), client.runs.open("turn"):
                thing = await opened()
                items = events(thing).__aiter__()
                await items.__anext__()
                await (thing.response.aclose() if not hasattr(thing, "close") else thing.close())
                await cancel(thing)
                async for item in items:
                    seen.append(item)  # noqa: PERF401 - what came before an error counts

    else:

        def program() -> None:  # type: ignore[misc]
            with client.runs.open("chat-42"), client.runs.open("turn"):
                thing = opened()
                items = iter(events(thing))
                next(items)
                (thing.response if not hasattr(thing, "close") else thing).close()
                cancel(thing)
                seen.extend(items)

    pending = world.start(program)
    pending.wait()
    return seen, pending.error


@pytest.mark.parametrize("how", ["by name", "the scope around", "the stream", "soon"])
def test_a_stream_that_was_closed_gives_nothing_after_the_cancel(world: Any, client: Any, how: str) -> None:
    """I4: the events that came with the last read are not delivered, though the call was over before the cancel."""

    async def soon(_: Any) -> None:
        client.runs.get("turn").cancel_soon()

    cancels = {
        "by name": lambda _: client.runs.cancel("turn", reason="stop"),
        "the scope around": lambda _: client.runs.cancel("chat-42", reason="stop"),
        "the stream": client.runs.cancel,
        "soon": soon if world.is_async else lambda _: client.runs.get("turn").cancel_soon(),
    }
    create = client.chat.completions.create
    seen, error = read_on(world, client, lambda: create(**CHAT, stream=True), cancels[how])
    assert isinstance(error, RunCancelledError), repr(error)
    assert seen == []


def test_so_it_is_when_the_scope_inside_was_left(world: Any, client: Any) -> None:
    """I4: the scope that the stream was begun and closed in is over, and the one around it is cancelled."""
    seen: list[Any] = []

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("chat-42") as run:
                async with client.runs.open("turn"):
                    stream = await client.chat.completions.create(**CHAT, stream=True)
                    await stream.__anext__()
                    await stream.response.aclose()
                await run.cancel(reason="stop")
                async for item in stream:
                    seen.append(item)  # noqa: PERF401 - what came before an error counts

    else:

        def program() -> None:  # type: ignore[misc]
            with client.runs.open("chat-42") as run:
                with client.runs.open("turn"):
                    stream = client.chat.completions.create(**CHAT, stream=True)
                    next(stream)
                    stream.response.close()
                run.cancel(reason="stop")
                seen.extend(stream)

    error = world.start(program).failure()
    assert isinstance(error, RunCancelledError)
    assert (error.run, error.reason, seen) == ("chat-42", "stop", [])


def test_a_call_of_its_own_that_was_closed_gives_nothing_after_the_cancel(world: Any, client: Any) -> None:
    """I4: the same outside of any scope, where the stream is what is cancelled."""
    seen: list[Any] = []

    if world.is_async:

        async def program() -> None:
            stream = await client.chat.completions.create(**CHAT, stream=True)
            await stream.__anext__()
            await stream.response.aclose()
            await client.runs.cancel(stream)
            async for item in stream:
                seen.append(item)  # noqa: PERF401 - what came before an error counts

    else:

        def program() -> None:  # type: ignore[misc]
            stream = client.chat.completions.create(**CHAT, stream=True)
            next(stream)
            stream.response.close()
            client.runs.cancel(stream)
            seen.extend(stream)

    assert isinstance(world.start(program).failure(), RunCancelledError)
    assert seen == []


def test_the_stream_of_a_raw_response_that_was_closed(world: Any, client: Any) -> None:
    """I4: the same for `with_raw_response` and `parse()`."""
    create = client.chat.completions.with_raw_response.create

    if world.is_async:

        async def opened() -> Any:
            return (await create(**CHAT, stream=True)).parse()

    else:

        def opened() -> Any:  # type: ignore[misc]
            return create(**CHAT, stream=True).parse()

    seen, error = read_on(world, client, opened, lambda _: client.runs.cancel("turn"))
    assert isinstance(error, RunCancelledError)
    assert seen == []


def test_a_stream_that_was_closed_and_not_cancelled_is_as_the_sdk_has_it(world: Any, client: Any) -> None:
    """Without a cancel nothing is changed: what was read already can be taken."""

    async def nothing(_: Any) -> None:
        pass

    create = client.chat.completions.create
    seen, _ = read_on(world, client, lambda: create(**CHAT, stream=True), nothing if world.is_async else lambda _: 0)
    assert len(seen) > 30


def suspended() -> list[Any]:
    """The SDK's generators that have begun and are not over."""
    # By `type()`: the SDK has proxies for what it needs not, and to ask one for its class imports that.
    made = [each for each in gc.get_objects() if type(each) in (GeneratorType, AsyncGeneratorType)]
    streams: list[Any] = [each for each in made if each.__name__ == "__stream__"]
    return [each for each in streams if getattr(each, "gi_frame", None) or getattr(each, "ag_frame", None)]


def test_an_error_that_is_kept_keeps_no_stream_open(world: Any) -> None:
    """The SDK's generator is ended with the stream: at the end of the process its clean-up can crash Python."""
    before = suspended()
    with FakeOpenAI(rate=0, tokens=40) as server:
        client = world.client(server.base_url)
        error = world.start(
            world.read,
            client,
            "r",
            lambda: client.chat.completions.create(**CHAT, stream=True),
            lambda _: client.runs.get("r").cancel_soon(),
        ).failure()
        assert isinstance(error, RunCancelledError)
        assert [each for each in suspended() if not any(each is one for one in before)] == []
        world.close(client)
