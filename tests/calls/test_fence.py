"""Nothing passes after the cancel, by whichever door the caller takes the answer out."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from worlds import CHAT, MESSAGES, until

import deadstop
from deadstop import RunCancelledError
from deadstop.calls.queued import lock_of
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


def take(world: Any, client: Any, opened: Any, each: Any, seen: list[Any], after: int = 3) -> BaseException:
    """Iterate what `opened()` gives inside a run that is cancelled at the `after`-th item; how it ended."""

    def look(item: Any) -> None:
        seen.append(item)
        if len(seen) == after:
            client.runs.get("r").cancel_soon()

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("r"), opened() as thing:
                async for item in each(thing):
                    look(item)

    else:

        def program() -> None:  # type: ignore[misc]
            with client.runs.open("r"), opened() as thing:
                for item in each(thing):
                    look(item)

    error = world.start(program).failure()
    assert isinstance(error, RunCancelledError), repr(error)
    return error  # type: ignore[no-any-return]


def has(resource: Any, name: str) -> bool:
    return hasattr(resource, name)


def test_lines_of_a_streaming_response(world: Any, client: Any) -> None:
    """`with_streaming_response`: forty lines in one read, none after the cancel."""
    if not has(client.chat.completions, "with_streaming_response"):
        pytest.skip("this openai has no with_streaming_response")
    seen: list[Any] = []
    create = client.chat.completions.with_streaming_response.create
    take(world, client, lambda: create(**CHAT, stream=True), lambda response: response.iter_lines(), seen)
    assert len(seen) == 3


def test_bytes_and_text_of_a_streaming_response(world: Any, client: Any) -> None:
    """The same for its bytes, in small pieces."""
    if not has(client.chat.completions, "with_streaming_response"):
        pytest.skip("this openai has no with_streaming_response")
    for read in (lambda response: response.iter_bytes(10), lambda response: response.iter_text(10)):
        seen: list[Any] = []
        create = client.chat.completions.with_streaming_response.create
        take(world, client, lambda: create(**CHAT, stream=True), read, seen)  # noqa: B023
        assert len(seen) == 3


@pytest.mark.parametrize("in_thread", [False, True])
def test_the_stream_parsed_from_a_raw_response(world: Any, client: Any, in_thread: bool) -> None:
    """`with_raw_response` and `parse()`, here or in a thread: the stream is fenced like any other, and one."""
    seen: list[Any] = []

    def parsed(raw: Any) -> Any:
        with ThreadPoolExecutor() as pool:
            stream = pool.submit(raw.parse).result(20) if in_thread else raw.parse()
        assert raw.parse() is stream
        return stream

    class Opened:
        """The parsed stream, in the shape of a context manager of either world."""

        def __enter__(self) -> Any:
            return parsed(client.chat.completions.with_raw_response.create(**CHAT, stream=True))

        def __exit__(self, *_: Any) -> None: ...

        async def __aenter__(self) -> Any:
            return parsed(await client.chat.completions.with_raw_response.create(**CHAT, stream=True))

        async def __aexit__(self, *_: Any) -> None: ...

    take(world, client, Opened, lambda stream: stream, seen)
    assert len(seen) == 3


@pytest.mark.parametrize("after", [2, 3, 4, 5])
def test_events_that_the_chat_helper_derives(world: Any, client: Any, after: int) -> None:
    """`chat.completions.stream()` makes several events of one chunk: none of them after the cancel."""
    completions = client.chat.completions
    if not has(completions, "stream"):
        completions = getattr(getattr(getattr(client, "beta", None), "chat", None), "completions", None)
    if completions is None or not has(completions, "stream"):
        pytest.skip("this openai has no stream helper")
    seen: list[Any] = []
    take(world, client, lambda: completions.stream(**CHAT), lambda stream: stream, seen, after)
    assert len(seen) == after


@pytest.mark.parametrize("after", [1, 5, 6])
def test_events_that_the_responses_helper_derives(world: Any, client: Any, after: int) -> None:
    """`responses.stream()`: the same."""
    if not has(getattr(client, "responses", None), "stream"):
        pytest.skip("this openai has no responses")
    seen: list[Any] = []
    take(world, client, lambda: client.responses.stream(model="m", input="hi"), lambda stream: stream, seen, after)
    assert len(seen) == after


def test_a_helper_still_works(world: Any, client: Any) -> None:
    """A helper that nobody cancels ends with the final completion."""
    if not has(client.chat.completions, "stream"):
        pytest.skip("this openai has no stream helper")
    if world.is_async:

        async def program() -> Any:
            async with client.chat.completions.stream(**CHAT) as stream:
                return await stream.get_final_completion()

    else:

        def program() -> Any:
            with client.chat.completions.stream(**CHAT) as stream:
                return stream.get_final_completion()

    final = world.start(program).result()
    assert final.choices[0].message.content.startswith("t0 t1")
    assert client.runs.list() == []


def test_a_stream_that_is_cancelled_between_two_events(world: Any, client: Any, server: FakeOpenAI) -> None:
    """While the caller is busy with a chunk the connection is closed for it, and the cancel confirmed."""
    held: dict[str, Any] = {}
    if world.is_async:

        async def begin() -> Any:
            held["stream"] = await client.chat.completions.create(**CHAT, stream=True)
            return await held["stream"].__anext__()

        async def go_on() -> Any:
            return await held["stream"].__anext__()

    else:

        def begin() -> Any:
            held["stream"] = client.chat.completions.create(**CHAT, stream=True)
            return next(held["stream"])

        def go_on() -> Any:
            return next(held["stream"])

    server.clear()
    server.rate = 50
    world.start(begin).result()
    receipt = world.run(client.runs.cancel, held["stream"], reason="never mind")
    assert receipt.outcome == "cancelled"
    assert receipt.calls[0].phase == "between_events"
    assert receipt.calls[0].socket_closed
    server.wait_for(lambda requests: requests[-1].state == "disconnected")
    error = world.start(go_on).failure()
    assert isinstance(error, RunCancelledError)
    assert error.receipt is not None
    assert "never mind" in str(error)
    assert isinstance(world.start(go_on).failure(), RunCancelledError), "and so it stays"


def test_a_stream_left_early_is_closed_without_the_garbage_collector(
    world: Any, client: Any, server: FakeOpenAI
) -> None:
    """When nobody holds a stream any more its connection goes at once."""
    server.clear()
    server.rate = 50

    if world.is_async:

        async def leave() -> None:
            async for _ in await client.chat.completions.create(**CHAT, stream=True):
                break

    else:

        def leave() -> None:
            for _ in client.chat.completions.create(**CHAT, stream=True):
                break

    gc.collect()
    gc.disable()
    try:
        world.start(leave).result()
        server.wait_for(lambda requests: requests[-1].state == "disconnected")
        until(lambda: client._client._transport._pool._requests == [], "the slot")
        assert client.runs.list() == []
    finally:
        gc.enable()


@pytest.mark.parametrize("where", ["in another thread", "while its pool is busy"])
def test_a_stream_that_is_dropped_elsewhere_is_closed_and_gives_its_slot_back(server: FakeOpenAI, where: str) -> None:
    """The last reference may go in a thread that has not read it, or while others are at the pool."""
    server.clear()
    server.rate = 50
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url)
    pool: Any = client._client._transport._pool  # type: ignore[attr-defined]
    held: list[Any] = [client.chat.completions.create(**CHAT, stream=True)]
    next(held[0])
    gc.collect()
    gc.disable()
    try:
        if where == "in another thread":
            thread = threading.Thread(target=held.clear)
            thread.start()
            thread.join()
        else:
            with lock_of(pool):
                held.clear()
        server.wait_for(lambda requests: requests[-1].state == "disconnected")
        until(lambda: pool._requests == [] and all(each.is_idle() for each in pool.connections), "the slot")
        assert client.runs.list() == []
    finally:
        gc.enable()
        client.close()


def test_a_stream_left_early_in_a_scope_is_closed_with_it(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A stream that is still held when its scope is left is closed by the scope."""
    server.clear()
    server.rate = 50
    held: list[Any] = []
    if world.is_async:

        async def program() -> None:
            async with client.runs.open("r"):
                held.append(await client.chat.completions.create(**CHAT, stream=True))
                await held[0].__anext__()

    else:

        def program() -> None:
            with client.runs.open("r"):
                held.append(client.chat.completions.create(**CHAT, stream=True))
                next(held[0])

    world.start(program).result()
    server.wait_for(lambda requests: requests[-1].state == "disconnected")
    until(lambda: client._client._transport._pool._requests == [], "the slot")


def test_a_stream_can_be_left_and_taken_up_again(world: Any, client: Any, server: FakeOpenAI) -> None:
    """As with the SDK: breaking out of a loop does not end a stream that is still held."""
    server.clear()
    if world.is_async:

        async def program() -> int:
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True, max_tokens=20)
            async for _ in stream:
                break
            return len([each async for each in stream])

    else:

        def program() -> int:
            stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True, max_tokens=20)
            for _ in stream:
                break
            return len(list(stream))

    assert world.start(program).result() >= 19


def test_a_callback_inside_the_call_cancels_it(world: Any, server: FakeOpenAI) -> None:
    """A cancel from a hook that the call itself runs does not wait for itself: it is accepted, then takes effect."""
    probe = world.client(server.base_url)
    kind = next(
        cls
        for cls in type(probe._client).__mro__
        if cls.__name__ in ("Client", "AsyncClient") and cls.__module__.startswith("httpx")
    )
    world.close(probe)
    receipts: list[Any] = []

    async def async_hook(_request: Any) -> None:
        receipts.append(await client.runs.cancel("r"))

    def hook(_request: Any) -> None:
        receipts.append(client.runs.cancel("r"))

    own = kind(event_hooks={"request": [async_hook if world.is_async else hook]})
    client = world.client(server.base_url, http_client=own)
    error = world.start(world.create, client, "r").failure()
    assert isinstance(error, RunCancelledError)
    assert receipts[0].outcome == "accepted"
    assert client.runs.get("r").receipt.outcome == "cancelled"
    assert server.requests == []
    world.close(client)
