"""Drained: a cancelled stream is read on, unseen, for its usage."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from worlds import CHAT, PATIENCE, until

from deadstop import Attempt, CallFacts, CancelPolicy, CancelReceipt, Outcome, RunCancelledError
from deadstop.runs.draining import usage_of
from deadstop.testing import FakeOpenAI, faults

DRAIN = CancelPolicy(drain=PATIENCE, timeout=2 * PATIENCE)
USAGE: Any = {"stream_options": {"include_usage": True}}


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=100, tokens=1000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    yield one
    world.close(one)


def options(client: Any) -> Any:
    """`stream_options` also for an SDK that does not know them."""
    return {"extra_body": USAGE}


def next_of(world: Any, stream: Any) -> Any:
    """The next event of a stream."""
    return world.run(stream.__anext__) if world.is_async else next(stream)


def until_read(client: Any, name: str) -> None:
    """Wait until a call of the run of that name has an answer that is being read."""

    def is_read() -> bool:
        calls = [call for run in client.runs.list() if run.name == name for call in list(run.calls.values())]
        return any(call.phase in ("reading", "between_events") for call in calls)

    until(is_read, "an answer")


def rest_of(world: Any, stream: Any) -> None:
    """Read a stream until it raises."""
    while True:
        next_of(world, stream)


def test_a_stream_between_two_events_tells_its_usage(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The receipt has the usage of the whole answer; its caller gets nothing more, and is not waited for."""
    stream = world.run(world.create, client, max_tokens=20, stream=True, **options(client))
    next_of(world, stream)
    receipt = world.run(client.runs.cancel, stream, policy=DRAIN)
    assert receipt.outcome is Outcome.CANCELLED
    assert receipt.usage["completion_tokens"] == 20
    assert receipt.calls[0].usage == receipt.usage
    assert receipt.calls[0].server_work == "stopped"
    assert receipt.delivered.chunks == 1
    assert "read on" in receipt.calls[0].note
    assert server.requests[0].tokens_generated == 20
    with pytest.raises(RunCancelledError):
        next_of(world, stream)


def test_a_caller_that_is_reading_is_free_before_the_drain_is_over(world: Any, client: Any, server: FakeOpenAI) -> None:
    """It comes back with the next event, while the rest is still to come; it is given nothing more."""
    begun = threading.Event()
    chunks: list[Any] = []

    def each(chunk: Any) -> None:
        chunks.append(chunk)
        begun.set()

    reading = world.start(world.consume, client, "chat-1", each, max_tokens=100, **options(client))
    assert begun.wait(PATIENCE)
    receipt = world.run(client.runs.cancel, "chat-1", policy=DRAIN)
    over = time.monotonic()
    assert isinstance(reading.failure(), RunCancelledError)
    assert reading.ended is not None
    assert reading.ended < over
    assert receipt.elapsed > 0.2  # 100 tokens take a second
    assert receipt.usage["completion_tokens"] == server.requests[0].tokens_generated == 100
    assert receipt.delivered.chunks == len(chunks) < 60


def test_a_call_that_is_streamed_inside_tells_its_usage(world: Any, client: Any, server: FakeOpenAI) -> None:
    """So does one that its caller knows as a plain call; the caller is free before the drain is over."""
    calling = world.start(world.create, client, "chat-1", max_tokens=100)
    until_read(client, "chat-1")
    receipt = world.run(client.runs.cancel, "chat-1", policy=DRAIN)
    over = time.monotonic()
    assert isinstance(calling.failure(), RunCancelledError)
    assert calling.ended is not None
    assert calling.ended < over
    assert receipt.outcome is Outcome.CANCELLED
    assert receipt.usage["completion_tokens"] == server.requests[0].tokens_generated == 100


def test_the_connection_of_a_drained_stream_serves_the_next_call(
    world: Any, client: Any, server: FakeOpenAI, monkeypatch: Any
) -> None:
    """What was read to its end leaves nothing behind: no connection, and no call."""
    monkeypatch.setattr("deadstop.calls.streamed.LINGER", PATIENCE)  # a server may be held up
    for name in ("a", "b", "c"):
        calling = world.start(world.create, client, name, max_tokens=20)
        until_read(client, name)
        assert world.run(client.runs.cancel, name, policy=DRAIN).usage["completion_tokens"] == 20
        calling.failure()
        server.wait_for(lambda requests: requests[-1].finished_at is not None)
    server.rate = 0
    assert world.run(world.create, client, "d", max_tokens=5).usage.completion_tokens == 5
    assert client.runs.list() == []
    assert server.open_connections == 1


@pytest.mark.parametrize("inside", [True, False])
def test_a_drain_is_over_at_its_time(world: Any, client: Any, server: FakeOpenAI, inside: bool) -> None:
    """A stream that says nothing more is closed when the drain's time is over: confirmed, and without a usage."""
    server.add(faults.StallAfter(3))
    if inside:
        calling = world.start(world.create, client, "chat-1")
        until_read(client, "chat-1")
    else:
        begun = threading.Event()
        calling = world.start(world.consume, client, "chat-1", lambda _: begun.set(), **options(client))
        assert begun.wait(PATIENCE)
    began = time.monotonic()
    receipt = world.run(client.runs.cancel, "chat-1", policy=CancelPolicy(drain=0.3))
    assert isinstance(calling.failure(), RunCancelledError)
    assert 0.25 < time.monotonic() - began < 5
    assert (receipt.outcome, receipt.usage) == (Outcome.CANCELLED, None)
    assert receipt.calls[0].released
    server.wait_for(lambda requests: requests[0].state == "disconnected")


def test_a_drain_ends_before_the_cancel_s_deadline(world: Any, client: Any, server: FakeOpenAI) -> None:
    """However long the drain may be: the cancel is confirmed within its timeout (I1)."""
    server.add(faults.StallAfter(3))
    stream = world.run(world.create, client, stream=True)
    next_of(world, stream)
    began = time.monotonic()
    receipt = world.run(client.runs.cancel, stream, timeout=1.0, policy=DRAIN)
    assert time.monotonic() - began < 1.2
    assert receipt.outcome is Outcome.CANCELLED


def test_without_a_drain_nothing_is_read_on(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The default: the stream is closed at once, and its usage is unknown, not zero."""
    stream = world.run(world.create, client, stream=True, **options(client))
    next_of(world, stream)
    receipt = world.run(client.runs.cancel, stream)
    assert (receipt.outcome, receipt.usage) == (Outcome.CANCELLED, None)
    server.wait_for(lambda requests: requests[0].state == "disconnected")
    assert server.requests[0].tokens_generated < 1000


@pytest.mark.parametrize("where", ["run", "client", "environment", "in place of others"])
def test_a_drain_is_set_where_every_setting_is(
    world: Any, client: Any, server: FakeOpenAI, where: str, monkeypatch: Any
) -> None:
    """In the policy of a run or a client or in the environment, and then also for a cancel that waits for nothing."""
    scope: dict[str, Any] = {}
    if where == "run":
        scope["policy"] = DRAIN
    elif where == "client":
        client.runs.policy = DRAIN
    else:
        others = ("ONE_MORE", "AND_ANOTHER") if where == "in place of others" else ()
        for name in others:  # the environment is as large as it was when none of it was a setting
            monkeypatch.setenv(name, "1")
        world.run(world.create, client, "chat-0", max_tokens=1)
        for name in others:
            monkeypatch.delenv(name)
        monkeypatch.setenv("DEADSTOP_DRAIN", str(PATIENCE))
        monkeypatch.setenv("DEADSTOP_TIMEOUT", str(2 * PATIENCE))
    calling = world.start(world.create, client, "chat-1", scope, max_tokens=40)
    until_read(client, "chat-1")
    client.runs.get("chat-1").cancel_soon()
    assert isinstance(calling.failure(), RunCancelledError)
    assert world.run(client.runs.wait, "chat-1", PATIENCE).usage["completion_tokens"] == 40


def test_closing_a_stream_that_is_drained_does_not_cut_it_short(world: Any, client: Any, server: FakeOpenAI) -> None:
    """`with stream:` closes what the cancel has ended; the usage is learned all the same."""
    stream = world.run(world.create, client, max_tokens=40, stream=True, **options(client))
    if not hasattr(stream, "close"):
        pytest.skip("this SDK's streams have no close()")
    next_of(world, stream)
    cancelling = world.start(client.runs.cancel, stream, policy=DRAIN)
    with pytest.raises(RunCancelledError):
        rest_of(world, stream)
    world.run(stream.close)
    assert cancelling.result().usage["completion_tokens"] == 40


def test_what_is_drained_can_not_be_seen(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Whoever takes the HTTP response out of the stream ends the drain, and reads nothing of the rest (I4)."""
    stream = world.run(world.create, client, stream=True, **options(client))
    next_of(world, stream)
    cancelling = world.start(client.runs.cancel, stream, policy=DRAIN)
    with pytest.raises(RunCancelledError):
        rest_of(world, stream)
    response = stream.response
    receipt = cancelling.result()
    assert (receipt.outcome, receipt.usage) == (Outcome.CANCELLED, None)
    assert response.is_closed or receipt.calls[0].released
    server.wait_for(lambda requests: requests[0].state == "disconnected")


def test_a_scope_s_streams_are_drained_together(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Two calls of one scope: the receipt has their usage added up, each call its own."""

    def in_threads() -> None:
        with client.runs.open("both"):
            streams = [
                client.chat.completions.create(**CHAT, max_tokens=n, stream=True, **options(client)) for n in (20, 30)
            ]
            for stream in streams:
                next(stream)
            begun.set()
            for stream in streams:
                for _ in stream:
                    pass

    async def in_tasks() -> None:
        async with client.runs.open("both"):
            streams = [
                await client.chat.completions.create(**CHAT, max_tokens=n, stream=True, **options(client))
                for n in (20, 30)
            ]
            for stream in streams:
                await stream.__anext__()
            begun.set()
            for stream in streams:
                async for _ in stream:
                    pass

    begun = threading.Event()
    working = world.start(in_tasks if world.is_async else in_threads)
    assert begun.wait(PATIENCE)
    receipt = world.run(client.runs.cancel, "both", policy=DRAIN)
    assert isinstance(working.failure(), RunCancelledError)
    assert sorted(call.usage["completion_tokens"] for call in receipt.calls) == [20, 30]
    assert receipt.usage["completion_tokens"] == 50


def test_a_usage_that_an_event_has_told_needs_no_drain(world: Any) -> None:
    """A server that tells the usage with every chunk: the receipt has what was told before the cancel."""
    probe = world.client("http://127.0.0.1:1/v1")
    package = __import__(
        next(c.__module__.partition(".")[0] for c in type(probe._client).__mro__ if c.__module__.startswith("httpx"))
    )
    world.close(probe)
    events = [
        "data: "
        + json.dumps({
            "id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": {"content": "t"}, "finish_reason": None}],
            "usage": {"prompt_tokens": 3, "completion_tokens": n, "total_tokens": 3 + n},
        }) + "\n\n"
        for n in range(1, 6)
    ]  # fmt: skip

    def content() -> Iterator[bytes]:
        yield from (event.encode() for event in events)

    async def content_async() -> AsyncIterator[bytes]:
        for event in events:
            yield event.encode()

    make = content_async if world.is_async else content
    kind = package.AsyncClient if world.is_async else package.Client
    headers = {"content-type": "text/event-stream"}
    transport = package.MockTransport(lambda _: package.Response(200, headers=headers, content=make()))
    client = world.client("http://fake.test/v1", http_client=kind(transport=transport))
    stream = world.run(world.create, client, stream=True)
    next_of(world, stream)
    next_of(world, stream)
    receipt = world.run(client.runs.cancel, stream)
    assert receipt.usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert receipt.delivered.chunks == 2
    world.close(client)


def call(usage: Any, sent: bool = True) -> CallFacts:
    return CallFacts("1", "POST", "/x", usage=usage, attempt=Attempt(1, 0.0) if sent else None)


def test_usages_are_added_up_and_a_part_of_them_is_no_usage() -> None:
    """Numbers are summed, in tables too; if one that was sent has told none, the sum is unknown."""
    one = {"completion_tokens": 2, "details": {"reasoning_tokens": 1}, "service": "a"}
    other = {"completion_tokens": 3, "details": {"reasoning_tokens": 4, "audio": 1}, "prompt_tokens": 1}
    child = CancelReceipt("c", Outcome.CANCELLED, usage={"completion_tokens": 5}, calls=(call(one),))
    total = {
        "completion_tokens": 10,
        "details": {"reasoning_tokens": 5, "audio": 1},
        "service": "a",
        "prompt_tokens": 1,
    }
    assert usage_of([call(one), call(other), call(None, sent=False)], [child]) == total
    assert usage_of([call(one), call(None)], []) is None
    assert usage_of([call(one)], [CancelReceipt("c", Outcome.CANCELLED, kind="batch")]) is None
    assert usage_of([], []) is None
