"""HTTP transports of the user's own, whose answers break when they are closed, and what only passes for a socket."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any, Callable

import pytest
from remote_runs import http_package
from worlds import CHAT

from deadstop import RunCancelledError
from deadstop.calls.sockets import Owned

CHUNK = (
    b'data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
)


@pytest.fixture
def client(world: Any) -> Iterator[Any]:
    http = http_package(world)

    class Body(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            yield from [CHUNK] * 5

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self  # no generator: trio grumbles about one that is left half-way

        async def __anext__(self) -> bytes:
            return CHUNK

        def close(self) -> None:
            raise RuntimeError("it can't be closed")

        async def aclose(self) -> None:
            raise RuntimeError("it can't be closed")

    def answer(request: Any) -> Any:
        return http.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())

    own = (http.AsyncClient if world.is_async else http.Client)(transport=http.MockTransport(answer))
    one = world.client("http://127.0.0.1:1/v1", max_retries=0, http_client=own)
    yield one
    world.close(one)


def leave_early(world: Any, client: Any, name: str, then: Any) -> Any:
    """Take one event of a stream in a scope, and do `then(run)` in it."""

    async def in_task() -> Any:
        async with client.runs.open(name) as run:
            stream = await client.chat.completions.create(**CHAT, stream=True)
            await stream.__anext__()
            given = then(run)
            return (await given if hasattr(given, "__await__") else given), stream

    def in_thread() -> Any:
        with client.runs.open(name) as run:
            stream = client.chat.completions.create(**CHAT, stream=True)
            next(stream)
            return then(run), stream

    return world.run(in_task if world.is_async else in_thread)[0]


@pytest.mark.parametrize("how", ["cancel", "cancel_soon"])
def test_a_cancel_does_not_fail_with_what_the_closing_fails_with(world: Any, client: Any, how: str) -> None:
    """The canceller gets its receipt, and the run comes to its end."""
    leave_early(world, client, "r", lambda run: getattr(run, how)())
    receipt = world.run(client.runs.wait, "r", 5)
    assert receipt is not None
    assert receipt.outcome == "cancelled"
    assert client.runs.list() == []


def test_a_scope_that_is_left_does_not_fail_with_it(world: Any, client: Any) -> None:
    """The user's own exception comes out of the `with` block, and the name is free again."""

    def fail(_: Any) -> None:
        raise KeyError("mine")

    leave_early(world, client, "r", lambda _: None)
    with pytest.raises(KeyError, match="mine"):
        leave_early(world, client, "r", fail)
    assert client.runs.list() == []


def test_a_descriptor_that_is_somebody_elses_by_now_is_left_alone() -> None:
    """uvloop's stand-in for a socket keeps its number when the peer has reset it, and a new connection may get that."""
    mine, peer = socket.socketpair()
    number = mine.fileno()
    stand_in, call = SimpleNamespace(fileno=lambda: number), SimpleNamespace(socket=None)
    stream = Owned(SimpleNamespace(get_extra_info=lambda name: stand_in))
    stream.take(call)  # type: ignore[arg-type]
    mine.close()
    theirs, far = socket.socketpair()
    with peer, far, socket.socket(fileno=os.dup2(theirs.detach(), number)) as other:
        assert not stream.interrupt(call)  # type: ignore[arg-type]
        far.sendall(b"x")
        assert other.recv(1) == b"x"


def test_the_descriptor_of_a_stand_in_is_shut_down() -> None:
    """As long as it is the same connection's."""
    mine, peer = socket.socketpair()
    stand_in, call = SimpleNamespace(fileno=mine.fileno), SimpleNamespace(socket=None)
    stream = Owned(SimpleNamespace(get_extra_info=lambda name: stand_in))
    stream.take(call)  # type: ignore[arg-type]
    with mine, peer:
        assert stream.interrupt(call)  # type: ignore[arg-type]
        assert peer.recv(1) == b""


def answering(world: Any, answer: Callable[[Any], Any]) -> Any:
    """An HTTP client without a transport, which answers by itself."""
    http = http_package(world)

    class Client(http.Client):  # type: ignore[misc, name-defined]
        def send(self, request: Any, **_: Any) -> Any:
            return answer(request)

    class AsyncClient(http.AsyncClient):  # type: ignore[misc, name-defined]
        async def send(self, request: Any, **_: Any) -> Any:
            return answer(request)

    own = (AsyncClient if world.is_async else Client)()
    own._transport, own._mounts = None, {}
    return own


@pytest.mark.parametrize("born", ["cancelled", "alive"])
def test_an_http_client_without_a_transport(world: Any, born: str) -> None:
    """One that answers by itself, as people's tests have it: in a cancelled scope its call gets our error, and ends."""
    http = http_package(world)
    said: list[Any] = []

    def answer(request: Any) -> Any:
        said.append(request)
        body = {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
        return http.Response(200, json=body, request=request)

    own = answering(world, answer)
    client = world.client("http://127.0.0.1:1/v1", max_retries=0, http_client=own)

    def cancel_first() -> None:
        if born == "cancelled":
            client.runs.get("r").cancel_soon(reason="too late")

    async def in_task() -> Any:
        async with client.runs.open("r"):
            cancel_first()
            return await client.chat.completions.create(**CHAT)

    def in_thread() -> Any:
        with client.runs.open("r"):
            cancel_first()
            return client.chat.completions.create(**CHAT)

    pending = world.start(in_task if world.is_async else in_thread)
    if born == "cancelled":
        assert isinstance(pending.failure(), RunCancelledError)
        assert said == []
    else:
        assert pending.result().id == "a"
    assert client.runs.list() == []


def test_an_http_client_without_a_transport_is_not_asked_again(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """I13: after the cancel the SDK's retries end, also where a test has replaced the sleep before them."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    http = http_package(world)
    said: list[Any] = []

    def answer(request: Any) -> Any:
        said.append(request)
        client.runs.get("r").cancel_soon()
        return http.Response(503, json={}, request=request)

    own = answering(world, answer)
    client = world.client("http://127.0.0.1:1/v1", max_retries=2, http_client=own)
    assert isinstance(world.start(world.create, client, "r").failure(), RunCancelledError)
    assert len(said) == 1
