"""Streamed inside, as a user of a scope sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from deadstop import RunCancelledError
from deadstop.testing import FakeOpenAI, faults


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    yield one
    world.close(one)


def test_streamed_inside_is_seen_by_the_server_and_said_by_the_receipt(
    world: Any, client: Any, server: FakeOpenAI
) -> None:
    """In a scope a plain call is sent streamed; switched off, or outside of one, it is not."""
    server.rate = 0
    for scope, name, streamed in (
        ({}, "a", True),
        ({"streamed_inside": False}, "b", False),
        (None, None, False),
    ):
        reply = world.start(world.create, client, name, scope=scope, max_tokens=5).result()
        assert reply.object == "chat.completion"
        assert reply.choices[0].message.content.strip() == "t0 t1 t2 t3 t4"
        assert reply.usage.completion_tokens == 5
        assert server.requests[-1].streamed is streamed


@pytest.mark.parametrize("fault", ["RefuseStream", "PlainJSON", "RefuseStreamOptions"])
def test_a_server_that_will_not_stream_is_served_as_it_wants_and_remembered(
    world: Any, client: Any, server: FakeOpenAI, fault: str
) -> None:
    """The answer is right at once; the second call goes the server's way without trying again."""
    server.rate = 0
    server.add(getattr(faults, fault)())
    first = world.start(world.create, client, "a", max_tokens=5).result()
    tries = len(server.requests)
    second = world.start(world.create, client, "b", max_tokens=5).result()
    assert first.choices[0].message.content == second.choices[0].message.content == "t0 t1 t2 t3 t4 "
    assert len(server.requests) == tries + 1


def test_streamed_inside_really_stops_the_server(world: Any, client: Any, server: FakeOpenAI) -> None:
    """On a server that looks at the connection only when it writes, a handful of tokens are the difference."""
    server.rate = 50
    server.add(faults.NoticeOnWrite())
    inside = world.start(world.create, client, "inside", max_tokens=60)
    server.wait_for(lambda requests: len(requests) == 1 and requests[0].tokens_generated > 3)
    world.run(client.runs.cancel, "inside")
    assert isinstance(inside.failure(), RunCancelledError)
    server.wait_for(lambda requests: requests[0].finished_at is not None)
    assert server.requests[0].tokens_after_disconnect <= 5
    plain = world.start(world.create, client, "plain", scope={"streamed_inside": False}, max_tokens=60)
    server.wait_for(lambda requests: len(requests) == 2 and requests[1].tokens_generated > 3)
    world.run(client.runs.cancel, "plain")
    assert isinstance(plain.failure(), RunCancelledError)
    server.wait_for(lambda requests: requests[1].finished_at is not None)
    assert server.requests[1].tokens_generated == 60


def test_the_read_timeout_keeps_its_meaning(world: Any, server: FakeOpenAI) -> None:
    """Streamed inside, an answer that takes longer than the read timeout fails as the plain call does."""
    server.rate = 20
    client = world.client(server.base_url, timeout=0.5, max_retries=0)
    for inside in (True, False):
        error = world.start(world.create, client, "r", scope={"streamed_inside": inside}, max_tokens=100).failure()
        # openai 1.0's async client lets the transport's own error through.
        assert isinstance(error, openai.APITimeoutError) or type(error).__name__ == "ReadTimeout", repr(error)
    world.close(client)
