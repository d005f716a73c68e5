"""Each fault does what it says, by the server's record and by what a raw client sees."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any

import pytest
from kit_client import CHAT, KitClient, events_of

from deadstop.testing import FakeOpenAI, faults

SLOW = 0.05  # seconds


def ask(server: FakeOpenAI, path: str = CHAT, **fields: Any) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One call on a connection of its own."""
    client = http.client.HTTPConnection(server.host, server.port, timeout=10)
    client.request("POST", path, json.dumps({"model": "m", "messages": [], **fields}))
    response = client.getresponse()
    answer = response.read()
    client.close()
    return response.status, response.headers, answer


def leave_early(server: FakeOpenAI, *, stream: bool) -> None:
    """Asks for a long answer and leaves in the middle of it."""
    with KitClient(server) as client:
        client.send(stream=stream)
        server.wait_for(lambda requests: bool(requests) and requests[-1].tokens_generated >= 3)


def ended(server: FakeOpenAI) -> Any:
    """The only record, once it is finished."""
    server.wait_for(lambda requests: requests[0].finished_at is not None)
    server.wait_for(lambda requests: requests[0].state != "generating")
    return server.requests[0]


def test_notice_on_write_generates_an_unstreamed_answer_to_its_end() -> None:
    """Nothing is written before the end, so nothing is noticed; the true time is on record."""
    with FakeOpenAI(rate=500, tokens=60, faults=[faults.NoticeOnWrite()]) as server:
        leave_early(server, stream=False)
        record = ended(server)
    assert (record.state, record.tokens_generated, record.disconnect_seen_at) == ("completed", 60, None)
    assert record.peer_gone_at is not None
    assert record.tokens_after_disconnect > 40


def test_notice_on_write_stops_a_stream_at_the_write_that_fails() -> None:
    """A stream ends within a few tokens of the peer's leaving."""
    with FakeOpenAI(rate=50, tokens=10_000, faults=[faults.NoticeOnWrite()]) as server:
        leave_early(server, stream=True)
        record = ended(server)
    assert record.state == "disconnected"
    assert record.tokens_after_disconnect <= 5


@pytest.mark.parametrize("stream", [True, False])
def test_deaf_generates_to_the_end(stream: bool) -> None:
    """No disconnect stops it, streamed or not; the record tells what was wasted."""
    with FakeOpenAI(rate=500, tokens=60, faults=[faults.Deaf()]) as server:
        leave_early(server, stream=stream)
        record = ended(server)
    assert (record.state, record.tokens_generated) == ("completed", 60)
    assert record.tokens_after_disconnect > 40
    assert record.tokens_sent < 60 or not stream


@pytest.mark.parametrize("stream", [True, False])
def test_slow_headers_come_late(stream: bool) -> None:
    """The answer is complete, and no work on it began before the time was over."""
    with FakeOpenAI(rate=0, tokens=2, faults=[faults.SlowHeaders(SLOW)]) as server:
        assert ask(server, stream=stream)[0] == 200
        record = ended(server)
    assert record.started_at - record.received_at >= SLOW


def test_lost_headers_never_come() -> None:
    """Nothing is answered and nothing generated, and leaving is noticed."""
    with FakeOpenAI(rate=0, faults=[faults.LostHeaders()]) as server:
        with KitClient(server) as client:
            client.send()
            server.wait_for(lambda requests: bool(requests) and requests[0].state == "generating")
            assert client.is_silent()
        record = ended(server)
    assert (record.state, record.tokens_generated, record.status) == ("disconnected", 0, None)


@pytest.mark.parametrize("tokens", [0, 3, 5])
def test_a_stall_comes_after_that_many_tokens(tokens: int) -> None:
    """A stalled stream has sent exactly its tokens, then nothing more, not even its end."""
    with (
        FakeOpenAI(rate=0, tokens=5, faults=[faults.StallAfter(tokens)]) as server,
        KitClient(server) as client,
    ):
        client.send(stream=True)
        client.read_until(b't4 "' if tokens == 5 else f"t{tokens - 1} ".encode() if tokens else b"assistant")
        assert client.is_silent()
        assert server.requests[0].tokens_sent == server.requests[0].tokens_generated == tokens
        assert b'finish_reason":"stop' not in client.seen


def test_a_stall_may_end() -> None:
    """After its seconds a stall is over and the answer complete."""
    with FakeOpenAI(rate=0, tokens=5, faults=[faults.StallAfter(3, SLOW)]) as server:
        began = time.monotonic()
        assert b"[DONE]" in ask(server, stream=True)[2]
        assert time.monotonic() - began >= SLOW


@pytest.mark.parametrize("tokens", [0, 3])
def test_reset_breaks_the_connection(tokens: int) -> None:
    """The peer gets a RST: before any answer, or after that many tokens."""
    with FakeOpenAI(rate=0, faults=[faults.Reset(tokens)]) as server, KitClient(server) as client:
        client.send(stream=True)
        if tokens:
            server.wait_for(lambda requests: bool(requests) and requests[0].state == "failed")
        else:
            with pytest.raises(ConnectionResetError):
                client.sock.recv(1)
        record = ended(server)
    assert (record.state, record.tokens_sent) == ("failed", tokens)
    assert record.status == (200 if tokens else None)


@pytest.mark.parametrize("stream", [True, False])
def test_half_a_chunk_then_nothing(stream: bool) -> None:
    """A part of an event, or of a body, arrives; the rest never does."""
    with FakeOpenAI(rate=0, tokens=4, faults=[faults.HalfChunk(1)]) as server, KitClient(server) as client:
        client.send(stream=stream)
        client.read_until(b"chat.completion")
        server.wait_for(lambda requests: requests[0].tokens_generated > 1)
        while not client.is_silent():
            client.seen += client.sock.recv(1 << 16)
        assert not client.seen.endswith((b"\n", b"}"))
        assert server.requests[0].tokens_sent == (1 if stream else 0)


def test_half_a_chunk_then_the_end() -> None:
    """With `then="close"` the connection ends in the middle of the event."""
    with (
        FakeOpenAI(rate=0, faults=[faults.HalfChunk(1, then="close")]) as server,
        KitClient(server) as client,
    ):
        client.send(stream=True)
        answer = client.read_all()
        assert [event["choices"][0]["delta"].get("content") for event in events_of(answer)] == ["", "t0 "]
        assert not answer.endswith(b"\n")
        assert ended(server).state == "failed"
    with pytest.raises(ValueError, match='"stall" or "close"'):
        faults.HalfChunk(then="explode")


@pytest.mark.parametrize("status", [429, 503])
def test_overloaded_refuses(status: int) -> None:
    """The status, the Retry-After header and the body are as asked, and nothing is generated."""
    with FakeOpenAI(faults=[faults.Overloaded(status, retry_after="1", body={"error": "busy"})]) as server:
        answered, headers, answer = ask(server)
        record = ended(server)
    assert (answered, headers["retry-after"], json.loads(answer)) == (status, "1", {"error": "busy"})
    assert (record.status, record.state, record.tokens_generated) == (status, "completed", 0)


def test_a_blackhole_reads_nothing() -> None:
    """A large body blocks its sender, no request is on record, and the connection stays open."""
    with FakeOpenAI(faults=[faults.Blackhole()]) as server, KitClient(server) as client:
        client.sock.settimeout(0.2)
        with pytest.raises(socket.timeout):
            client.sock.sendall(b"x" * (32 << 20))
        assert server.requests == []
        assert server.open_connections == 1


def test_slow_tls_delays_the_connection() -> None:
    """Nothing is read from the connection before the time is over; then it is served."""
    with FakeOpenAI(rate=0, faults=[faults.SlowTLS(SLOW)]) as server:
        began = time.monotonic()
        assert ask(server)[0] == 200
        assert time.monotonic() - began >= SLOW


def test_refuse_stream_refuses_streams_alone() -> None:
    """A request with `stream` gets an error that names it; any other is served."""
    with FakeOpenAI(rate=0, faults=[faults.RefuseStream()]) as server:
        status, _, answer = ask(server, stream=True)
        assert (status, json.loads(answer)["error"]["param"]) == (400, "stream")
        assert ask(server, stream=False)[0] == 200


def test_refuse_stream_options_refuses_them_alone() -> None:
    """A request with `stream_options` gets an error that names them; any other is served."""
    with FakeOpenAI(rate=0, faults=[faults.RefuseStreamOptions(status=422)]) as server:
        status, _, answer = ask(server, stream=True, stream_options={"include_usage": True})
        assert (status, json.loads(answer)["error"]["param"]) == (422, "stream_options")
        assert b"[DONE]" in ask(server, stream=True)[2]


def test_plain_json_is_served_instead_of_a_stream() -> None:
    """The answer is one JSON object although a stream was asked for, and the record says so."""
    with FakeOpenAI(rate=0, faults=[faults.PlainJSON()]) as server:
        _, headers, answer = ask(server, stream=True)
        record = ended(server)
    assert headers["content-type"] == "application/json"
    assert json.loads(answer)["object"] == "chat.completion"
    assert not record.streamed


@pytest.mark.parametrize("stream", [True, False])
def test_no_usage_is_reported(stream: bool) -> None:
    """Neither answer holds a usage, though it was asked for."""
    with FakeOpenAI(rate=0, faults=[faults.NoUsage()]) as server:
        assert b"usage" not in ask(server, stream=stream, stream_options={"include_usage": True})[2]


def test_a_burst_is_one_write() -> None:
    """Forty events come in one send: a stall after them finds all sent, and the first read has them."""
    burst = [faults.Burst(41), faults.StallAfter(40)]
    with FakeOpenAI(rate=0, tokens=100, faults=burst) as server, KitClient(server) as client:
        client.send(stream=True)
        client.read_until(b"\r\n\r\n")
        server.wait_for(lambda requests: requests[0].tokens_sent == 40)
        body = client.seen.split(b"\r\n\r\n", 1)[1] or client.sock.recv(1 << 16)
        assert len(events_of(body)) == 41


def test_an_error_ends_the_stream() -> None:
    """The stream's last event is an error, no `[DONE]` follows, and the connection is still good."""
    with FakeOpenAI(rate=0, faults=[faults.ErrorMidStream(2)]) as server, KitClient(server) as client:
        client.send(stream=True)
        answer = client.read_until(b"\r\n0\r\n\r\n")
        assert events_of(answer)[-1]["error"]["type"] == "server_error"
        assert b"[DONE]" not in answer
        assert (ended(server).state, ended(server).tokens_sent) == ("failed", 2)
        client.send(stream=False)
        assert b"HTTP/1.1 500" in client.read_until(b"HTTP/1.1 500")


def test_a_fault_is_limited_to_a_path_a_model_and_a_number() -> None:
    """A fault hits only the requests that it was set for, and only so many of them."""
    with FakeOpenAI(rate=0, tokens=1) as server:
        server.add(faults.Overloaded(429), path="/chat/completions", model="slow", times=2)
        assert ask(server, model="quick")[0] == 200
        assert ask(server, "/v1/responses", model="slow")[0] == 200
        assert [ask(server, model="slow")[0] for _ in range(3)] == [429, 429, 200]
        with pytest.raises(ValueError, match="before a request is read"):
            server.add(faults.Blackhole(), model="slow")
