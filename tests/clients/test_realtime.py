"""Realtime responses: cancelled over the connection that the user holds, confirmed by what comes in on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from worlds import until

from deadstop import CancelPolicy, RunCancellationTimeoutError, RunCancelledError, UnknownRunError

pytest.importorskip("websockets", reason="websockets is not there")
if not hasattr(openai.OpenAI, "realtime"):
    pytest.skip("this SDK has no realtime connections", allow_module_level=True)

from deadstop.testing.realtime import FakeRealtime

# The SDK connects in a way that the newest websockets would rather it did not.
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")


@pytest.fixture
def server() -> Iterator[FakeRealtime]:
    with FakeRealtime() as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeRealtime) -> Iterator[Any]:
    if getattr(world, "name", "") == "trio":
        pytest.skip("the SDK's realtime connections run on asyncio alone")
    # The first releases with it speak TLS to every address but one that is given just for this.
    one = world.client(server.base_url, websocket_base_url=server.base_url.replace("http", "ws", 1), max_retries=0)
    one.runs.policy = CancelPolicy(timeout=2.0)
    yield one
    world.close(one)


def reader(world: Any, client: Any, seen: list[Any], name: str = "talk", responses: int = 1) -> Any:
    """Start a program that asks for responses in a scope and reads the connection; what it ends with."""
    if world.is_async:

        async def program() -> None:
            async with client.realtime.connect(model="m") as connection, client.runs.open(name):
                for _ in range(responses):
                    await connection.response.create()
                async for event in connection:
                    seen.append(event)  # noqa: PERF401 - seen at once

    else:

        def program() -> None:
            with client.realtime.connect(model="m") as connection, client.runs.open(name):
                for _ in range(responses):
                    connection.response.create()
                for event in connection:
                    seen.append(event)  # noqa: PERF402 - seen at once

    return world.start(program)


def test_a_response_is_cancelled_with_its_scope(world: Any, client: Any, server: FakeRealtime) -> None:
    """The cancel goes out as an event, `response.done` confirms it, and nothing of it is delivered meanwhile."""
    seen: list[Any] = []
    pending = reader(world, client, seen)
    until(lambda: len(seen) > 5 or pending.done, "some events")
    receipt = world.run(client.runs.cancel, "talk")
    delivered = len(seen)
    assert isinstance(pending.failure(), RunCancelledError)
    (child,) = receipt.children
    assert (child.outcome, child.kind, child.evidence) == ("cancelled", "realtime_response", "events")
    assert len(seen) == delivered
    assert [(each.status, each.cancels) for each in server.records] == [("cancelled", 1)]


def test_a_cancel_before_it_is_created_is_parked(world: Any, client: Any, server: FakeRealtime) -> None:
    """A cancel that would be lost, because the server has not begun the response, is sent when it has."""
    server.created_after = 0.3
    pending = reader(world, client, [])
    until(lambda: len(server.records) == 1, "the response")
    receipt = world.run(client.runs.cancel, "talk")
    assert isinstance(pending.failure(), RunCancelledError)
    assert receipt.outcome == "cancelled"
    assert (server.records[0].status, server.records[0].cancels, server.lost_cancels) == ("cancelled", 1, 0)


def test_a_response_that_completes_first(world: Any, client: Any, server: FakeRealtime) -> None:
    """A response that was done when its cancel came is told apart."""
    server.completes_first = True
    seen: list[Any] = []
    pending = reader(world, client, seen)
    until(lambda: len(seen) > 2 or pending.done, "some events")
    receipt = world.run(client.runs.cancel, "talk")
    assert isinstance(pending.failure(), RunCancelledError)
    assert (receipt.outcome, receipt.children[0].status) == ("finished_first", "completed")


def test_a_server_that_goes_on_is_not_believed(world: Any, client: Any, server: FakeRealtime) -> None:
    """No `response.done`, no confirmation; and what the server still sends is not delivered."""
    server.ignores_cancel = True
    seen: list[Any] = []
    pending = reader(world, client, seen)
    until(lambda: len(seen) > 2 or pending.done, "some events")
    with pytest.raises(RunCancellationTimeoutError) as caught:
        world.run(client.runs.cancel, "talk", timeout=0.3)
    assert caught.value.diagnosis.klass == "server_ignored"
    delivered, sent = len(seen), server.records[0].deltas
    until(lambda: server.records[0].deltas > sent + 20, "more of it")
    assert len(seen) == delivered


def test_a_response_of_nobody_here_is_refused(world: Any, client: Any, server: FakeRealtime) -> None:
    """An address alone is no way to a response that lives on a connection."""
    with pytest.raises(UnknownRunError, match="connection"):
        world.run(client.runs.cancel, "realtime_response:resp_1")
