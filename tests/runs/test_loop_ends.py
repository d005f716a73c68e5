"""A loop that ends while requests of ours are under way on it: nothing of that is its business, and another goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from remote_runs import QUICK, create, truth
from worlds import WORLDS

import deadstop
from deadstop import RunCancellationTimeoutError
from deadstop.calls import loops
from deadstop.calls.workers import LIMIT
from deadstop.clients.adopted import adopt_async
from deadstop.kinds.base import Request
from deadstop.testing import FakeOpenAI, faults

READ = Request("GET", "/responses/resp_1", {}, {})

backends = pytest.mark.parametrize("backend", [each for each in WORLDS if each != "threads"])


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=200, tokens=10_000) as one:
        yield one


@pytest.fixture
def client(server: FakeOpenAI) -> Any:
    one = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0)
    one.runs.policy = QUICK
    return one


def cancels(requests: Any) -> int:
    """How many cancels have come."""
    return sum(each.path.endswith("/cancel") for each in requests)


@backends
def test_a_program_ends_while_its_cancel_goes_on_in_the_background(
    client: Any, server: FakeOpenAI, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends as it would have without; nothing more leaves; and a cancel from another loop is confirmed."""
    server.add(faults.SlowHeaders(None), path="/cancel")

    async def start() -> str:
        function, args, kwargs = create(client)
        data = await function(*args, **kwargs)
        with pytest.raises(RunCancellationTimeoutError):
            await client.runs.cancel(f"response:{data['id']}", timeout=0.2, policy=QUICK.replace(attempt_timeout=60.0))
        await anyio.to_thread.run_sync(server.wait_for, lambda requests: cancels(requests) == 2)
        await client._client.aclose()  # as it must be: its connections end with the loop
        return f"response:{data['id']}"

    async def stop(name: str) -> Any:
        try:
            return await client.runs.cancel(name, timeout=5.0)
        finally:
            await client.close()

    name = anyio.run(start, backend=backend)
    assert cancels(server.requests) == 2
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
    server.clear()
    assert anyio.run(stop, name, backend=backend).outcome == "cancelled"
    assert truth(server).truth == "cancelled"


@backends
def test_all_are_told_of_a_loop_that_ends(client: Any, server: FakeOpenAI, backend: str) -> None:
    """Those whose request is under way and those who wait for their turn; what they then want sent is not. On another
    loop, as many can be sent as before."""
    many, told, again = LIMIT + 4, [], []
    server.add(faults.SlowHeaders(None))

    async def first() -> Any:
        channel = adopt_async(client).channel(client)

        def done(result: Any) -> None:
            told.append(result.attempt.error)
            channel.send(READ, 0, 9.0, lambda: None, again.append)

        for number in range(many):
            channel.send(READ, number, 9.0, lambda: None, done)
        await anyio.to_thread.run_sync(server.wait_for, lambda requests: len(requests) == LIMIT)
        return channel

    async def second() -> None:
        done, left = anyio.Event(), list(range(many))

        def one(result: Any) -> None:
            if left.remove(result.attempt.number) is None and result.status == 404 and not left:
                done.set()

        channel = adopt_async(client).channel(client)
        for number in range(many):
            channel.send(READ, number, 9.0, lambda: None, one)
        with anyio.fail_after(20):
            await done.wait()
        await client.close()

    channel = anyio.run(first, backend=backend)
    assert told == ["the event loop is closing"] * many
    assert [each.attempt.error for each in again] == ["the event loop is closed"] * many
    assert channel._home.running == 0
    server.clear()
    anyio.run(second, backend=backend)


def test_a_request_is_answered_whose_task_was_ended_before_it_began(client: Any, server: FakeOpenAI) -> None:
    """A task of asyncio that is cancelled before its first step never runs; who waits for its request hears of it."""
    told: list[Any] = []

    async def main() -> None:
        adopt_async(client).channel(client).send(READ, 1, 9.0, lambda: None, told.append)

    asyncio.run(main())
    assert [each.attempt.error for each in told] == ["the event loop is closing"]
    assert not server.requests


def test_a_request_is_answered_that_was_left_on_a_loop_that_was_closed(client: Any, server: FakeOpenAI) -> None:
    """Its tasks were not even cancelled. Whoever waits for one hears of it as soon as there is another loop."""
    told: list[Any] = []

    async def main() -> None:
        adopt_async(client).channel(client).send(READ, 1, 9.0, lambda: None, told.append)

    async def after() -> None:
        adopt_async(client).channel(client)
        assert [each.attempt.error for each in told] == ["the event loop was closed"]
        await client.close()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    assert not told
    asyncio.run(after())
    for task in [each for each in loops._kept if each.get_loop() is loop]:  # or it is complained of
        loops._kept.discard(task)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()  # type: ignore[union-attr]


@pytest.mark.skipif("trio" not in WORLDS, reason="there is no trio here")
def test_what_goes_wrong_in_trio_is_logged(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An error of ours, or of the user's kind of run, is no error of trio's own, which would end the program."""

    async def main() -> str:
        channel, passed = adopt_async(client).channel(client), anyio.Event()

        def fail() -> None:
            raise LookupError("of the user's own")

        async def fail_in_task() -> None:
            fail()

        channel.spawn(fail)
        channel._home.loop.spawn(fail_in_task)
        channel.spawn(passed.set)
        with anyio.fail_after(10):
            await passed.wait()
        await client.close()
        return "ended well"

    assert anyio.run(main, backend="trio") == "ended well"
    assert [each.exc_info[0] for each in caplog.records if each.exc_info] == [LookupError] * 2
