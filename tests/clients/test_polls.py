"""What the SDK sleeps between two looks at something ends with the run that it happens in."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest
from remote_runs import begin
from worlds import until

import deadstop
from deadstop.testing import FakeOpenAI

LONG = 15.0
"""Seconds that the SDK would sleep, where it is not to."""

SOON = 3.0
"""Seconds: far from LONG, and room for a slow machine."""

PATHS = ["files", "videos", "vector_stores.files", "vector_stores.file_batches", "beta.vector_stores.files",
         "beta.vector_stores.file_batches", "beta.threads.runs", "beta.agents.sessions"]  # fmt: skip


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=100_000) as one:
        yield one


@pytest.fixture(params=["drop-in", "attached"])
def client(request: pytest.FixtureRequest, world: Any, server: FakeOpenAI) -> Iterator[Any]:
    if request.param == "drop-in":
        one = world.client(server.base_url)
    else:
        one = (openai.AsyncOpenAI if world.is_async else openai.OpenAI)(api_key="k", base_url=server.base_url)
        one.runs = deadstop.attach(one)
        assert one.files is not None
        begin(world, one)  # as whoever polls has done: from a client's next request on its resource is ours
    yield one
    world.close(one)


def resource_of(client: Any, path: str) -> Any:
    """The resource at a dotted path; a skip if this SDK has none that polls there."""
    for name in path.split("."):
        client = getattr(client, name, None)
    if client is None:
        pytest.skip(f"this SDK has no {path}")
    return client


def asleep(client: Any) -> bool:
    return any(run.callbacks for run in client.runs.list())


@pytest.mark.parametrize("path", PATHS)
def test_a_cancel_ends_the_sleep_of_every_resource_that_polls(world: Any, server: FakeOpenAI, path: str) -> None:
    """The caller gets its error when the run is cancelled, and not when the sleep is over."""
    client = world.client(server.base_url)
    pending = world.start(world.call, client, "r", resource_of(client, path)._sleep, LONG)
    until(lambda: asleep(client), "the sleep")
    began = time.monotonic()
    world.run(client.runs.cancel, "r", reason="stop")
    failure = pending.failure()
    assert isinstance(failure, deadstop.RunCancelledError)
    assert (failure.run, failure.reason) == ("r", "stop")
    assert pending.ended - began < SOON
    world.close(client)


@pytest.mark.parametrize("helper", ["create_and_poll", "poll"])
def test_a_poll_of_the_sdk_ends_with_its_scope(world: Any, client: Any, server: FakeOpenAI, helper: str) -> None:
    """By the SDK's own helper, between its requests; what it looked at is cancelled, too."""
    batches = resource_of(client, "vector_stores.file_batches" if hasattr(client, "vector_stores") else PATHS[5])
    if not hasattr(batches, helper):
        pytest.skip(f"this SDK has no {helper}()")
    pending = world.start(world.call, client, "r", poll, world, batches, helper)
    until(lambda: bool(server.runs) and server.runs[-1].reads > 0 and asleep(client), "the sleep")
    began = time.monotonic()
    receipt = world.run(client.runs.cancel, "r")
    assert isinstance(pending.failure(), deadstop.RunCancelledError)
    assert pending.ended - began < SOON
    assert (receipt.outcome, server.runs[-1].truth) == ("cancelled", "cancelled")


def poll(world: Any, batches: Any, helper: str) -> Any:
    if world.is_async:
        return poll_async(batches, helper)
    if helper == "create_and_poll":
        return batches.create_and_poll("vs_1", file_ids=["f"], poll_interval_ms=int(LONG * 1000))
    batch = batches.create("vs_1", file_ids=["f"])
    return batches.poll(batch.id, vector_store_id="vs_1", poll_interval_ms=int(LONG * 1000))


async def poll_async(batches: Any, helper: str) -> Any:
    if helper == "create_and_poll":
        return await batches.create_and_poll("vs_1", file_ids=["f"], poll_interval_ms=int(LONG * 1000))
    batch = await batches.create("vs_1", file_ids=["f"])
    return await batches.poll(batch.id, vector_store_id="vs_1", poll_interval_ms=int(LONG * 1000))


def test_without_a_cancel_it_sleeps_as_long_as_it_was_told(world: Any, client: Any) -> None:
    """Nobody who never cancels notices us."""
    began = time.monotonic()
    world.run(world.call, client, "r", client.files._sleep, 0.6)
    assert 0.6 <= time.monotonic() - began < 0.6 + SOON


def test_a_run_that_is_cancelled_does_not_sleep(world: Any, client: Any) -> None:
    """The next look would be refused anyway (I15)."""
    began = time.monotonic()
    with pytest.raises(deadstop.RunCancelledError):
        world.run(world.call, client, "r", cancelled_first, world, client)
    assert time.monotonic() - began < SOON


def cancelled_first(world: Any, client: Any) -> Any:
    client.runs.get("r").cancel_soon()
    return client.files._sleep(LONG)


def test_a_sleep_that_is_over_leaves_nothing_with_its_run(world: Any, client: Any) -> None:
    """No leaks: a poll of an hour leaves nothing for each of its looks."""
    world.run(world.call, client, "r", sleeps_and_looks, world, client)


def sleeps_and_looks(world: Any, client: Any) -> Any:
    if world.is_async:
        return looks_async(client)
    client.files._sleep(0.01)
    assert not asleep(client)
    return None


async def looks_async(client: Any) -> None:
    await client.files._sleep(0.01)
    assert not asleep(client)


def test_somebody_elses_sleep_is_theirs(world: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests put one in the place of the SDK's, and count its calls."""
    slept: list[float] = []

    async def none(seconds: float, *more: Any) -> None:
        slept.append(seconds)

    if world.is_async:
        monkeypatch.setattr(anyio, "sleep", none)
        monkeypatch.setattr(asyncio, "sleep", none)
    else:
        monkeypatch.setattr(time, "sleep", slept.append)
    world.run(world.call, client, "r", client.files._sleep, LONG)
    assert slept == [LONG]


def test_outside_of_a_scope_the_sdk_sleeps(world: Any, client: Any) -> None:
    """There is nothing to cancel it by."""
    if world.name == "trio" and not hasattr(openai._resource, "anyio"):
        pytest.skip("this SDK sleeps on asyncio alone")
    began = time.monotonic()
    world.run(client.files._sleep, 0.05)
    assert time.monotonic() - began >= 0.05


def test_a_native_cancellation_passes_through(world: Any, client: Any) -> None:
    """It is the user's own, and not a cancelled run."""
    if not world.is_async:
        pytest.skip("threads have none")
    assert world.run(timed_out, client) is True


async def timed_out(client: Any) -> bool:
    async with client.runs.open("r") as run:
        with anyio.move_on_after(0.05) as scope:
            await client.files._sleep(LONG)
        assert not run.cancelled
        assert not asleep(client)
    return scope.cancel_called


def test_a_signal_handler_may_cancel_what_it_interrupts(server: FakeOpenAI) -> None:
    """In the main thread, in the middle of the sleep."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url)
    before = signal.signal(signal.SIGTERM, lambda *_: client.runs.get("r").cancel_soon())
    main = threading.get_ident()
    try:
        began = time.monotonic()
        with client.runs.open("r") as run:
            run_sleeps = threading.Thread(
                target=lambda: (until(lambda: asleep(client), "the sleep"), signal.pthread_kill(main, signal.SIGTERM))
            )
            run_sleeps.start()
            with pytest.raises(deadstop.RunCancelledError):
                client.files._sleep(LONG)
            assert run.cancelled
        run_sleeps.join()
        assert time.monotonic() - began < SOON
    finally:
        signal.signal(signal.SIGTERM, before)
        client.close()
