"""A stream that is still open when its scope is left: closed, and its reader is told so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from remote_runs import needs_named_events, stream
from worlds import CHAT

from deadstop import UsageError
from deadstop.testing import FakeOpenAI, faults


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    """Forty events in each read, as fast as it can."""
    with FakeOpenAI(rate=0, tokens=3000, faults=[faults.Burst(40)]) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    yield one
    world.close(one)


def outside(world: Any, client: Any, inside: Any, **body: Any) -> tuple[list[Any], Any]:
    """Begin a stream in the scope `chat-42`, do something with it, and read on outside. What came, and the error."""
    seen: list[Any] = []

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("chat-42"):
                events = await client.chat.completions.create(**{**CHAT, **body}, stream=True)
                await inside(events)
            async for event in events:
                seen.append(event)  # noqa: PERF401 - what came before an error counts

    else:

        def program() -> None:  # type: ignore[misc]
            with client.runs.open("chat-42"):
                events = client.chat.completions.create(**{**CHAT, **body}, stream=True)
                inside(events)
            seen.extend(events)

    pending = world.start(program)
    pending.wait()
    return seen, pending.error


def test_a_stream_that_is_taken_out_of_its_scope_says_what_is_wrong(world: Any, client: Any) -> None:
    """At its first event outside, whatever was read ahead: an error that names the scope and what to do, and that
    nobody who retries what the network did will take for that."""

    async def nothing_async(_: Any) -> None: ...

    seen, error = outside(world, client, nothing_async if world.is_async else lambda _: None)
    assert seen == []
    assert isinstance(error, UsageError), repr(error)
    assert not isinstance(error, (openai.APIError, ConnectionError))
    assert "'chat-42' was left" in str(error)
    assert "inside the `with` block" in str(error)


def test_so_does_one_that_was_begun_inside(world: Any, client: Any) -> None:
    """The same after an event that was read in the scope, with more of them at hand."""

    async def begin_async(events: Any) -> None:
        await events.__anext__()

    seen, error = outside(world, client, begin_async if world.is_async else next)
    assert seen == []
    assert isinstance(error, UsageError), repr(error)


def test_a_stream_that_was_read_to_its_end_is_over(world: Any, client: Any) -> None:
    """Whoever iterates it once more, outside, gets nothing and no error."""

    async def read_async(events: Any) -> None:
        assert len([event async for event in events]) >= 20

    def read(events: Any) -> None:
        assert len(list(events)) >= 20

    assert outside(world, client, read_async if world.is_async else read, max_tokens=20) == ([], None)


def test_lines_that_are_read_outside_of_the_scope(world: Any, client: Any) -> None:
    """`with_streaming_response`: the same error."""
    if not hasattr(client.chat.completions, "with_streaming_response"):
        pytest.skip("this openai has no with_streaming_response")
    create = client.chat.completions.with_streaming_response.create

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("chat-42"):
                manager = create(**CHAT, stream=True)
                response = await manager.__aenter__()
            try:
                async for _ in response.iter_lines():
                    pass
            finally:
                await manager.__aexit__(None, None, None)

    else:

        def program() -> None:  # type: ignore[misc]
            with client.runs.open("chat-42"):
                manager = create(**CHAT, stream=True)
                response = manager.__enter__()
            try:
                for _ in response.iter_lines():
                    pass
            finally:
                manager.__exit__(None, None, None)

    error = world.start(program).failure()
    assert isinstance(error, UsageError), repr(error)
    assert "'chat-42' was left" in str(error)


def test_a_stream_of_a_background_response_names_the_scope(world: Any, client: Any) -> None:
    """It belongs to its remote run, which nobody knows by name: the error names the scope."""
    needs_named_events()

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("chat-42"):
                events = await stream(client)()
            async for _ in events:
                pass

    else:

        def program() -> None:  # type: ignore[misc]
            with client.runs.open("chat-42"):
                events = stream(client)()
            for _ in events:
                pass

    error = world.start(program).failure()
    assert isinstance(error, UsageError), repr(error)
    assert "'chat-42' was left" in str(error)
