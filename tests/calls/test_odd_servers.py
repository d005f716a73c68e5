"""What servers, proxies and the SDK do that the fake server does not: over plain sockets."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import socket
import threading
import zlib
from typing import Any

import openai
import pytest
from raw_kit import CHAT, EVENTS, USAGE, Server, answer, chunk, client_of, stream_all, streamed
from worlds import until

import deadstop
from deadstop.calls import timers

HAS_RESPONSES = importlib.util.find_spec("openai.resources.responses") is not None
HAS_STORES = importlib.util.find_spec("openai.resources.vector_stores") is not None


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json", "application/x-ndjson", "text/html", None, "Text/Event-Stream"]
)
def test_a_stream_under_another_type_is_a_stream(serve: Any, kind: Any) -> None:
    """Foundry streams as JSON, LitServe as ndjson, RamaLama as plain text, gateways as nothing: the SDK reads them."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        connection.sendall(streamed(kind) + b"".join(chunk(each) for each in EVENTS) + b"0\r\n\r\n")

    server = serve(talk)
    client = client_of(server)
    for _ in range(2):
        with client.runs.open():
            assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"
    assert [json.loads(body)["stream"] for body in server.bodies] == [True, True]


@pytest.mark.parametrize("packed", [False, True])
def test_a_stream_under_another_type_may_begin_with_a_single_byte(serve: Any, packed: bool) -> None:
    """A proxy passes on what it has, and what a decoder has first is a byte or two: not yet an event, and no JSON."""
    body = gzip.compress(b"".join(EVENTS)) if packed else b"".join(EVENTS)
    head = streamed("application/json")

    def talk(server: Server, connection: socket.socket, _: bytes, __: bytes) -> None:
        pieces = [chunk(body[at : at + 1]) for at in range(len(body))]
        connection.sendall(head[:-2] + b"Content-Encoding: gzip\r\n\r\n" if packed else head)
        connection.sendall(b"".join(pieces) + b"0\r\n\r\n")  # a chunk is handed on by itself, however it arrives

    client = client_of(serve(talk))
    with client.runs.open():
        assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"


def test_a_gateway_that_says_upstream_does_not_refuse_the_stream(serve: Any) -> None:
    """The user's own error is passed on after a single request, and is no reason to ask plainly from then on."""
    error = {"error": {"message": "Provider returned error: upstream rejected the prompt", "code": 400}}
    server = serve(lambda server, connection, head, body: connection.sendall(answer(error, "400 Bad Request")))
    client = client_of(server)
    with client.runs.open(), pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**CHAT)
    assert len(server.bodies) == 1


def test_a_redirected_call_is_streamed_inside(serve: Any) -> None:
    """A 307 is no refusal, and the request that follows it is streamed as well."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        if b" /v1/" in head:
            connection.sendall(answer({}, "307 Temporary Redirect", "Location: /v2/chat/completions\r\n"))
        else:
            stream_all(server, connection, head, body)

    server = serve(talk)
    client = client_of(server)
    if not client._client.follow_redirects:
        pytest.skip("this SDK follows no redirects")
    for _ in range(2):
        with client.runs.open():
            assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"
    assert all(json.loads(body).get("stream") for body in server.bodies)


def test_an_async_stream_s_connection_serves_the_next_call(serve: Any) -> None:
    """The SDK drains what follows [DONE]; where that comes late, the connection is kept all the same, as without us."""
    pytest.importorskip("openai._streaming_cleanup")

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        connection.sendall(streamed() + b"".join(chunk(each) for each in EVENTS))
        threading.Event().wait(0.03)  # the end of the body comes by itself, well within what the SDK waits
        connection.sendall(b"0\r\n\r\n")

    server = serve(talk)

    async def main() -> None:
        async with deadstop.AsyncOpenAI(api_key="k", base_url=server.url, max_retries=0) as client:
            for _ in range(3):
                stream = await client.chat.completions.create(stream=True, **CHAT)
                assert len([each async for each in stream]) == 4

    asyncio.run(main())
    assert server.connections == 1


def test_nothing_of_an_answer_put_together_passes_after_the_cancel(serve: Any) -> None:
    """`with_streaming_response` hands out an answer that is still to be read: the fence is before it (I4)."""
    client = client_of(serve(stream_all))
    if not hasattr(client.chat.completions, "with_streaming_response"):
        pytest.skip("this SDK has no such responses")
    with client.runs.open() as run, client.chat.completions.with_streaming_response.create(**CHAT) as response:
        run.cancel()
        with pytest.raises(deadstop.RunCancelledError):
            response.parse()
    assert not run.calls


def test_whoever_reads_the_response_of_a_stream_gets_our_error(serve: Any) -> None:
    """No `Interruption` reaches the user, also where the HTTP response was taken out of the stream."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        connection.sendall(streamed() + chunk(EVENTS[0]))
        server.go_on.wait(20)

    client = client_of(serve(talk))
    response = client.chat.completions.create(stream=True, **CHAT).response
    pieces = response.iter_bytes()
    next(pieces)
    client.runs.list()[0].cancel()
    with pytest.raises(deadstop.RunCancelledError):
        next(pieces)


def test_the_stream_of_a_helper_is_drained(serve: Any) -> None:
    """A helper takes the response out of its stream only to close it."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        connection.sendall(streamed() + chunk(EVENTS[0]))
        server.go_on.wait(20)
        connection.sendall(b"".join(chunk(each) for each in EVENTS[1:]) + b"0\r\n\r\n")

    server = serve(talk)
    client = client_of(server)
    if not hasattr(client.chat.completions, "stream"):
        pytest.skip("this SDK has no helper there")
    with client.runs.open(policy=deadstop.CancelPolicy(drain=5.0)) as run, client.chat.completions.stream(**CHAT) as s:
        next(s)
        run.on_cancel(lambda _: server.go_on.set())
        assert run.cancel().usage == USAGE


@pytest.mark.skipif(not HAS_RESPONSES, reason="this SDK has no responses")
@pytest.mark.parametrize("is_async", [False, True])
def test_a_cancel_while_a_proxy_is_asked_for_a_tunnel(serve: Any, monkeypatch: Any, is_async: bool) -> None:
    """CONNECT is for the proxy: nothing of the request has left, so nothing is submitted any more (I12, I13)."""
    proxy = serve(lambda server, connection, head, body: server.go_on.wait(20))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    more: Any = {"api_key": "k", "base_url": "https://example.invalid/v1", "max_retries": 0}
    job: Any = {"model": "m", "input": "x", "background": True}

    async def in_task() -> Any:
        async with deadstop.AsyncOpenAI(**more) as client, client.runs.open() as run:
            task = asyncio.create_task(client.responses.create(**job))
            await asyncio.to_thread(proxy.asked.wait, 20)
            receipt = await run.cancel(timeout=5)
            with pytest.raises(deadstop.RunCancelledError):
                await task
            return receipt

    if is_async:
        receipt = asyncio.run(in_task())
    else:
        client = client_of(more["base_url"])
        errors: list[BaseException] = []

        def create() -> None:
            try:
                client.responses.create(**job)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=create)
        thread.start()
        assert proxy.asked.wait(20)
        receipt = client.runs.list()[0].cancel(timeout=5)
        thread.join(20)
        assert isinstance(errors[0], deadstop.RunCancelledError)
    assert receipt.ok
    assert receipt.elapsed < 1
    assert len(proxy.heads) == 1


@pytest.mark.skipif(not HAS_RESPONSES, reason="this SDK has no responses")
def test_a_proxy_that_refuses_the_tunnel_leaves_no_orphan(serve: Any, monkeypatch: Any) -> None:
    """What never left the proxy made no run that anybody has to look for."""
    proxy = serve(lambda server, connection, head, body: connection.sendall(answer({}, "502 Bad Gateway")))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    client = client_of("https://example.invalid/v1")
    with client.runs.open() as run:
        with pytest.raises(Exception, match="Connection error"):
            client.responses.create(model="m", input="x", background=True)
        assert [child.remote.orphan for child in run.children.values() if child.remote is not None] == [None]


def test_a_call_needs_no_thread_of_its_own(serve: Any, monkeypatch: Any) -> None:
    """Where no thread is to be had (a limit, CPython 3.12.0 to 3.12.2 at its end), a name is looked up here."""
    server = serve(stream_all)
    client = client_of(server.url.replace("127.0.0.1", "localhost"))
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("deadstop"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"


def test_deadlines_hold_after_a_thread_could_not_be_started(monkeypatch: Any) -> None:
    """One failure is no end of all deadlines of the process."""
    rung = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(timers, "_running", False)

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            timers.at(0.0, lambda: None)
        assert not timers._running
    timers.at(0.0, rung.set)
    assert rung.wait(20)


@pytest.mark.skipif(not HAS_STORES, reason="this SDK has no vector stores")
def test_uploads_that_the_sdk_makes_side_by_side_are_stopped_with_their_scope(serve: Any, world: Any) -> None:
    """`upload_and_poll()` of a sync client uploads in threads of its own, that know nothing of the caller's context."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        server.go_on.wait(20)
        raise OSError  # hangs up, so that nobody waits on where the cancel did not get there

    server = serve(talk)
    client = world.client(server.url, max_retries=0)
    batch = {"vector_store_id": "vs_1", "files": [("a", b"x"), ("b", b"y"), ("c", b"z")], "max_concurrency": 2}
    pending = world.start(world.call, client, "r", client.vector_stores.file_batches.upload_and_poll, **batch)
    until(lambda: len(server.heads) == 2, "two uploads")
    receipt = world.run(client.runs.cancel, "r")
    server.go_on.set()
    failed = pending.failure()
    assert isinstance(failed, deadstop.RunCancelledError) or "RunCancelledError" in repr(failed)  # trio groups them
    assert len(receipt.calls) >= 2
    assert len(server.heads) == 2
    world.close(client)


@pytest.mark.skipif(not HAS_RESPONSES, reason="this SDK has no responses")
@pytest.mark.parametrize(
    "kind",
    ["Text/Event-Stream", "text/event-stream\r\nContent-Encoding: GZIP", "application/json", "text/plain", None,
     "application/octet-stream\r\nContent-Encoding: gzip"],
)  # fmt: skip
@pytest.mark.parametrize("piece", [1, 1000])
def test_the_id_of_a_background_stream_is_learned_whatever_its_headers_say(serve: Any, kind: Any, piece: int) -> None:
    """Their values know no case, and some servers stream under another type or none: the run is cancelled at once, and
    not when its stream is over."""
    job = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": [], "status": "in_progress"}
    created = b"data: %s\n\n" % json.dumps({"type": "response.created", "response": job}).encode()
    if "gzip" in str(kind).lower():
        packer = zlib.compressobj(wbits=31)
        created = packer.compress(created) + packer.flush(zlib.Z_SYNC_FLUSH)

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        if b"/cancel" in head or b"GET " in head:
            connection.sendall(answer({**job, "status": "cancelled"}))
        else:
            connection.sendall(streamed(kind))
            for start in range(0, len(created), piece):
                connection.sendall(chunk(created[start : start + piece]))
            server.go_on.wait(20)

    server = serve(talk)
    client = client_of(server)
    with client.runs.open() as run:
        stream = client.responses.create(model="m", input="x", background=True, stream=True)
        next(iter(stream))
        assert run.cancel(timeout=5).outcome == "cancelled"
    assert any(b"/responses/resp_1/cancel" in head for head in server.heads)
