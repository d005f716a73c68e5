"""A transport of the user's own that sends more than the one request: again, or another one besides."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio.to_thread
import pytest
from remote_runs import http_package
from worlds import PATIENCE, until

import deadstop
from deadstop.testing import FakeOpenAI, faults

PLAIN = {"streamed_inside": False}


class Pause:
    """Where the transport is between two of its tries."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.begun.set()
        self.over.wait(PATIENCE)


@pytest.fixture
def pause() -> Iterator[Pause]:
    one = Pause()
    yield one
    one.over.set()


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=0, tokens=3) as one:
        one.add(faults.Overloaded(), model="busy")
        one.add(faults.LostHeaders(), model="held")
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI, pause: Pause) -> Iterator[Any]:
    http = http_package(world)

    class Retrying(http.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            response = super().handle_request(request)
            if response.status_code == 503:
                response.close()
                pause.wait()
                response = super().handle_request(request)
            return response

    class AsyncRetrying(http.AsyncHTTPTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            response = await super().handle_async_request(request)
            if response.status_code == 503:
                await response.aclose()
                await anyio.to_thread.run_sync(pause.wait)
                response = await super().handle_async_request(request)
            return response

    limits = http.Limits(max_connections=1)
    own: Any = (
        http.AsyncClient(transport=AsyncRetrying(limits=limits))
        if world.is_async
        else http.Client(transport=Retrying(limits=limits))
    )
    one = world.client(server.base_url, max_retries=0, http_client=own, timeout=60)
    yield one
    world.close(one)


def asked_for(server: FakeOpenAI, model: str) -> int:
    """How many requests for the model have come in."""
    return len([record for record in server.requests if record.model == model])


def phases(client: Any, name: str) -> list[str]:
    """Where the calls of the run are."""
    return [str(call.phase) for run in client.runs.list() if run.name == name for call in list(run.calls.values())]


def test_a_request_that_is_sent_again_waits_for_its_connection_like_the_first(
    world: Any, client: Any, server: FakeOpenAI, pause: Pause
) -> None:
    """The cancel frees it at once, and the receipt says where it was: it waits in a pool that has none to give."""
    busy = world.start(world.create, client, "busy", PLAIN, model="busy")
    assert pause.begun.wait(PATIENCE)
    held = world.start(world.create, client, "held", PLAIN, model="held")
    until(lambda: asked_for(server, "held") == 1, "the call that has the only connection")
    pause.over.set()
    until(lambda: phases(client, "busy") == ["waiting_for_pool"], "the second try")
    receipt = world.run(client.runs.cancel, "busy", timeout=10)
    assert (receipt.outcome, receipt.calls[0].phase) == ("cancelled", "waiting_for_pool")
    assert isinstance(busy.failure(), deadstop.RunCancelledError)
    assert not held.done
    world.run(client.runs.cancel, "held", timeout=10)
    assert isinstance(held.failure(), deadstop.RunCancelledError)
    assert asked_for(server, "busy") == 1


def test_a_request_is_not_sent_again_after_the_cancel(
    world: Any, client: Any, server: FakeOpenAI, pause: Pause
) -> None:
    """The cancel comes while the transport pauses: its next try does not leave (I13)."""
    busy = world.start(world.create, client, "busy", PLAIN, model="busy")
    assert pause.begun.wait(PATIENCE)
    client.runs.get("busy").cancel_soon()
    pause.over.set()
    assert isinstance(busy.failure(), deadstop.RunCancelledError)
    assert world.run(client.runs.wait, "busy", 10).outcome == "cancelled"
    assert asked_for(server, "busy") == 1


def asking_besides(world: Any, server: FakeOpenAI) -> Any:
    """A transport that asks its server for something else, by another transport, before it gives an answer."""
    http = http_package(world)

    def other() -> Any:
        return http.Request("GET", f"{server.base_url}/models")

    class Asking(http.BaseTransport):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.first, self.second = http.HTTPTransport(), http.HTTPTransport()

        def handle_request(self, request: Any) -> Any:
            response = self.first.handle_request(request)
            besides = self.second.handle_request(other())
            besides.read()
            besides.close()
            return response

        def close(self) -> None:
            self.first.close()
            self.second.close()

    class AsyncAsking(http.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.first, self.second = http.AsyncHTTPTransport(), http.AsyncHTTPTransport()

        async def handle_async_request(self, request: Any) -> Any:
            response = await self.first.handle_async_request(request)
            besides = await self.second.handle_async_request(other())
            await besides.aread()
            await besides.aclose()
            return response

        async def aclose(self) -> None:
            await self.first.aclose()
            await self.second.aclose()

    return AsyncAsking() if world.is_async else Asking()


@pytest.fixture
def asking(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    http = http_package(world)
    transport = asking_besides(world, server)
    own = (http.AsyncClient if world.is_async else http.Client)(transport=transport)
    one = world.client(server.base_url, max_retries=0, http_client=own, timeout=60)
    one.transport = transport
    yield one
    world.close(one)


@pytest.mark.parametrize("how", ["stream", "inside", "plain"])
def test_an_answer_that_came_before_another_one_is_interrupted(
    world: Any, asking: Any, server: FakeOpenAI, how: str
) -> None:
    """It is on the connection that it came on, and not on the one that the call used last."""
    server.add(faults.HalfChunk() if how == "plain" else faults.StallAfter(2), model="stalls")
    seen: list[Any] = []
    if how == "stream":
        pending = world.start(world.consume, asking, "r", seen.append, model="stalls")
        until(lambda: len(seen) == 3, "what comes before it stalls")
    else:
        pending = world.start(world.create, asking, "r", {"streamed_inside": how == "inside"}, model="stalls")
        server.wait_for(lambda requests: len(requests) == 2)
        until(lambda: phases(asking, "r") == ["reading"], "its answer")
    receipt = world.run(asking.runs.cancel, "r", timeout=10)
    assert (receipt.outcome, receipt.calls[0].interrupted) == ("cancelled", "socket")
    assert isinstance(pending.failure(), deadstop.RunCancelledError)
    server.wait_for(lambda requests: requests[0].state == "disconnected")


def test_a_cancel_in_the_second_request_closes_the_first_one_too(world: Any, asking: Any, server: FakeOpenAI) -> None:
    """Its answer has begun, and nobody will ever get it: its connection is not busy for good."""
    server.add(faults.LostHeaders(), path="/v1/models")
    pending = world.start(world.consume, asking, "r")
    server.wait_for(lambda requests: len(requests) == 2 and requests[1].received_at is not None)
    world.run(asking.runs.cancel, "r", timeout=10)
    assert isinstance(pending.failure(), deadstop.RunCancelledError)
    assert [each._pool.connections for each in (asking.transport.first, asking.transport.second)] == [[], []]
