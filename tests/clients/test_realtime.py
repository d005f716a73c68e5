"""Realtime responses: cancelled over the connection that the user holds, confirmed by what comes in on it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest
from worlds import until

from deadstop import CancelPolicy, RunCancellationTimeoutError, RunCancelledError, UnknownRunError

pytest.importorskip("websockets", reason="websockets is not there")
if not hasattr(openai.OpenAI, "realtime"):
    pytest.skip("this SDK has no realtime connections", allow_module_level=True)

from deadstop.testing.realtime import FakeRealtime, RealtimeRecord, _response, _say

# The SDK connects in a way that the newest websockets would rather it did not.
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")


@pytest.fixture
def server() -> Iterator[FakeRealtime]:
    with FakeRealtime() as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeRealtime) -> Iterator[Any]:
    one = client_of(world, server)
    yield one
    world.close(one)


def client_of(world: Any, server: FakeRealtime) -> Any:
    if getattr(world, "name", "") == "trio":
        pytest.skip("the SDK's realtime connections run on asyncio alone")
    # The first releases with it speak TLS to every address but one that is given just for this.
    one = world.client(server.base_url, websocket_base_url=server.base_url.replace("http", "ws", 1), max_retries=0)
    one.runs.policy = CancelPolicy(timeout=2.0)
    return one


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


class OneAtATime(FakeRealtime):
    """It refuses a response while another one is active, as the real API does. `input_audio_buffer.commit` has the
    active one end."""

    def _serve(self, peer: Any) -> None:
        for message in peer:
            event = json.loads(message)
            active = self.records[-1] if self.records and self.records[-1].status == "in_progress" else None
            if event["type"] == "response.create" and active is not None:
                code = "conversation_already_has_active_response"
                told = {"type": "invalid_request_error", "code": code, "event_id": event.get("event_id")}
                _say(peer, type="error", error=told)
            elif event["type"] == "response.create":
                self.records.append(RealtimeRecord(f"resp_rt{len(self.records) + 1}"))
                _say(peer, type="response.created", response=_response(self.records[-1]))
            elif active is not None:
                active.cancels += event["type"] == "response.cancel"
                active.status = "cancelled" if active.cancels else "completed"
                _say(peer, type="response.done", response=_response(active))


@pytest.mark.parametrize("named", [False, True], ids=["", "events have ids"])
def test_a_response_that_was_refused_is_not_the_next_one(world: Any, named: bool) -> None:
    """I9: what another scope begins afterwards is that one's, and a cancel of what was refused does not touch it."""
    steps = {"first": "response.created", "second": "error", "": "response.done", "third": "response.created"}
    said: list[str] = []
    leave = threading.Event()

    def event(name: str) -> Any:
        return {"type": "response.create", **({"event_id": f"event_{name}"} if named else {})}

    if world.is_async:

        async def program() -> None:
            async with client.realtime.connect(model="m") as connection:
                for name in steps:
                    if name:
                        async with client.runs.open(name):
                            await connection.send(event(name))
                    else:
                        await connection.send({"type": "input_audio_buffer.commit"})
                    said.append((await connection.recv()).type)
                while not leave.is_set():  # noqa: ASYNC110 - it is set from another thread
                    await anyio.sleep(0.01)

    else:

        def program() -> None:
            with client.realtime.connect(model="m") as connection:
                for name in steps:
                    if name:
                        with client.runs.open(name):
                            connection.send(event(name))
                    else:
                        connection.send({"type": "input_audio_buffer.commit"})
                    said.append(connection.recv().type)
                leave.wait(20)

    with OneAtATime() as server:
        client = client_of(world, server)
        pending = world.start(program)
        until(lambda: len(said) == len(steps) or pending.done, "the answers")
        owners = {run.parent.name: run.name for run in client.runs.list() if run.parent is not None}
        receipt = world.run(client.runs.cancel, "second")
        leave.set()
        pending.result()
        world.close(client)
    assert said == list(steps.values())
    assert owners == {"third": "realtime_response:resp_rt2"}
    assert "realtime_response:resp_rt2" not in [each.run for each in receipt.children]
    assert [each.cancels for each in server.records] == [0, 0]
