"""The server serves, keeps true records, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from kit_client import CHAT, KitClient, events_of

from deadstop.testing import FakeOpenAI, Reply, RequestRecord, faults

CERTIFICATE = Path(__file__).with_name("localhost.pem")
FAST = 0.005  # seconds: noticing takes microseconds, a shared machine's scheduler the rest


def last_is(state: str) -> Callable[[list[RequestRecord]], bool]:
    """Whether the newest request has come to that state."""
    return lambda requests: bool(requests) and requests[-1].state == state


def server_context() -> ssl.SSLContext:
    """TLS for the server, self-signed for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def client_context() -> ssl.SSLContext:
    """TLS for a client that trusts that server."""
    return ssl.create_default_context(cafile=str(CERTIFICATE))


def call(client: http.client.HTTPConnection, path: str, body: Any = None) -> tuple[int, http.client.HTTPMessage, Any]:
    """One request over a kept connection."""
    client.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
    response = client.getresponse()
    return response.status, response.headers, json.loads(response.read())


def test_a_connection_is_kept_and_each_request_is_on_record() -> None:
    """Several requests share one connection; the records say which, in which order, and what was asked."""
    with FakeOpenAI(rate=0, tokens=3) as server:
        client = http.client.HTTPConnection(server.host, server.port)
        assert call(client, "/v1/models")[2]["data"][0]["id"] == "fake-model"
        status, headers, answer = call(client, CHAT, {"model": "m", "messages": []})
        assert call(client, "/v1/embeddings", {"model": "e", "input": ["a", "b"]})[2]["data"][1]["index"] == 1
        assert call(client, "/v1/completions", {"model": "c", "prompt": "a"})[2]["object"] == "text_completion"
        client.close()
        record = server.requests[1]
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "t0 t1 t2 ")
    assert headers["x-request-id"] == record.request_id
    assert (record.method, record.path, record.model) == ("POST", CHAT, "m")
    assert (record.connection_id, record.nth_on_connection) == (1, 2)
    assert record.bytes_in == len(json.dumps({"model": "m", "messages": []}))
    assert (record.state, record.tokens_generated, record.tokens_sent) == ("completed", 3, 3)
    times = [
        record.opened_at,
        record.received_at,
        record.started_at,
        record.first_token_at,
        record.finished_at,
    ]
    assert times == sorted(times, key=lambda at: at or 0.0)


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/v1/completions"])
def test_each_api_streams(path: str) -> None:
    """A stream comes as server-sent events, one per token at least, and leaves the connection usable."""
    with FakeOpenAI(rate=0, tokens=4) as server, KitClient(server) as client:
        for _ in range(2):
            client.seen = b""
            client.send(path, stream=True, max_tokens=4)
            answer = client.read_until(b"\r\n0\r\n\r\n")
            assert b"text/event-stream" in answer
            assert len(events_of(answer)) >= 4
        assert [record.nth_on_connection for record in server.requests] == [1, 2]
        assert all(record.streamed and record.tokens_sent == 4 for record in server.requests)


def test_an_azure_path_names_its_model() -> None:
    """A deployment's path is answered, and the deployment is the model on record."""
    with FakeOpenAI(rate=0) as server:
        client = http.client.HTTPConnection(server.host, server.port)
        path = "/openai/deployments/gpt/chat/completions"
        assert call(client, f"{path}?api-version=1", {"messages": []})[0] == 200
        client.close()
        record = server.requests[0]
    assert (record.path, record.query, record.model) == (path, "api-version=1", "gpt")


@pytest.mark.parametrize(("path", "body", "status"), [("/v1/none", {}, 404), ("/v1/none", None, 404), (CHAT, [], 400)])
def test_what_is_unknown_is_refused_in_openai_shape(path: str, body: Any, status: int) -> None:
    """An unknown path is a 404 and a senseless body a 400, with an error object, on record."""
    with FakeOpenAI() as server:
        client = http.client.HTTPConnection(server.host, server.port)
        answered, _, answer = call(client, path, body)
        client.close()
        assert answered == server.requests[0].status == status
    assert answer["error"]["type"] == "invalid_request_error"


def test_what_is_not_http_is_refused() -> None:
    """Nonsense on the wire gets a 400, and the server lives on."""
    with FakeOpenAI(rate=0, tokens=1) as server:
        with KitClient(server) as client:
            client.sock.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
            assert client.read_all().startswith(b"HTTP/1.1 400")
        with KitClient(server) as client:
            client.send()
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_the_rate_is_kept() -> None:
    """A rate of 400 tokens per second takes 50 ms for twenty tokens, and not much more."""
    with FakeOpenAI(rate=400, tokens=20) as server, KitClient(server) as client:
        client.send(stream=True)
        client.read_until(b"[DONE]")
        server.wait_for(last_is("completed"))
        record = server.requests[0]
        assert record.started_at is not None
        assert record.finished_at is not None
        assert 0.05 <= record.finished_at - record.started_at < 0.5


def test_the_reply_is_chosen_per_request() -> None:
    """A function from the request to a Reply scripts the answer."""
    with FakeOpenAI(rate=0, reply=lambda body: Reply(text=f"you are {body['user']}")) as server:
        client = http.client.HTTPConnection(server.host, server.port)
        answer = call(client, CHAT, {"messages": [], "user": "ann"})[2]
        client.close()
    assert answer["choices"][0]["message"]["content"] == "you are ann"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("leave", [KitClient.close, KitClient.reset])
@pytest.mark.parametrize("over_tls", [False, True])
def test_the_work_stops_with_the_peer(stream: bool, leave: Callable[[KitClient], None], over_tls: bool) -> None:
    """Whether the peer leaves by FIN or RST, in TLS or not, generation ends at once, streamed or not."""
    context = server_context() if over_tls else None
    with FakeOpenAI(rate=1000, tokens=100_000, ssl_context=context) as server:
        with KitClient(server, client_context() if over_tls else None) as client:
            client.send(stream=stream)
            server.wait_for(lambda requests: bool(requests) and requests[0].tokens_generated > 3)
            left_at = time.monotonic()
            leave(client)
        server.wait_for(last_is("disconnected"))
        record = server.requests[0]
    assert record.tokens_after_disconnect == 0
    assert record.peer_gone_at is not None
    assert record.disconnect_seen_at is not None
    assert record.peer_gone_at - left_at < 20 * FAST
    assert 0 <= record.disconnect_seen_at - record.peer_gone_at < 20 * FAST


def test_a_leaving_is_noticed_fast_in_a_stall() -> None:
    """At a stall the median time from the peer's close to its notice is far under a millisecond's scale."""
    took = []
    with FakeOpenAI(rate=0, faults=[faults.StallAfter(2)]) as server:
        for _ in range(11):
            with KitClient(server) as client:
                client.send(stream=True)
                client.read_until(b"t1 ")
                left_at = time.monotonic()
            server.wait_for(last_is("disconnected"))
            took.append((server.requests[-1].disconnect_seen_at or 0.0) - left_at)
            server.reset()
            server.add(faults.StallAfter(2))
    assert sorted(took)[5] < FAST


def test_a_leaving_is_noticed_while_a_write_is_blocked() -> None:
    """A peer that stops reading and then leaves ends the blocked write."""
    with FakeOpenAI(rate=0, tokens=60_000) as server:  # some 10 MB: more than the sockets hold
        with KitClient(server) as client:
            client.send(stream=True)
            server.wait_for(lambda requests: bool(requests) and requests[0].tokens_sent > 100)
        server.wait_for(last_is("disconnected"))
        assert server.requests[0].tokens_after_disconnect == 0


def test_a_body_that_never_arrives_stays_on_record_as_receiving() -> None:
    """A request whose body is cut short is `receiving` for good, with its bytes and the peer's leaving."""
    with FakeOpenAI() as server:
        with KitClient(server) as client:
            client.send(body={}, claimed=1000)
            server.wait_for(lambda requests: bool(requests) and requests[0].bytes_in == 2)
        server.wait_for(lambda requests: requests[0].finished_at is not None)
        record = server.requests[0]
    assert (record.state, record.received_at, record.status) == ("receiving", None, None)
    assert record.peer_gone_at is not None


def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    """`Expect: 100-continue` is answered before the body is read."""
    with FakeOpenAI(rate=0) as server, KitClient(server) as client:
        client.sock.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        )
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        client.sock.sendall(b"{}")
        assert b"HTTP/1.1 200" in client.read_until(b"embedding")


def test_connections_are_counted() -> None:
    """`open_connections` follows what is open, and `wait_for` looks anew when it changes."""
    with FakeOpenAI() as server:
        with KitClient(server), KitClient(server):
            server.wait_for(lambda _: server.open_connections == 2)
        server.wait_for(lambda _: server.open_connections == 0)


def test_a_wait_in_vain_names_the_records() -> None:
    """`wait_for` ends in time, with an error that tells what the records say."""
    with FakeOpenAI(rate=0, tokens=1) as server:
        client = http.client.HTTPConnection(server.host, server.port)
        call(client, CHAT, {})
        client.close()
        with pytest.raises(TimeoutError, match=r"#1 POST /v1/chat/completions completed \(1 tokens generated"):
            server.wait_for(lambda requests: False, timeout=0.01)


def test_reset_forgets_and_clear_does_not() -> None:
    """`clear` drops the faults alone, `reset` the records too."""
    with FakeOpenAI(rate=0, faults=[faults.Overloaded()]) as server:
        client = http.client.HTTPConnection(server.host, server.port)
        assert call(client, CHAT, {})[0] == 503
        server.clear()
        assert call(client, CHAT, {})[0] == 200
        assert len(server.requests) == 2
        server.reset()
        assert server.requests == []
        client.close()


@pytest.mark.parametrize(
    "fault",
    [
        faults.LostHeaders(),
        faults.StallAfter(1),
        faults.HalfChunk(),
        faults.Blackhole(),
        faults.SlowTLS(None),
    ],
    ids=lambda fault: type(fault).__name__,
)
@pytest.mark.parametrize("others", [(), (faults.Deaf(),)], ids=["", "deaf"])
def test_a_stop_leaves_nothing_behind(fault: faults.Fault, others: tuple[faults.Fault, ...]) -> None:
    """Whatever it stalls on, a stop ends soon, with every thread and descriptor gone, the work `failed`."""
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/dev/fd"))
    server = FakeOpenAI(rate=0, faults=[fault, *others]).start()
    with KitClient(server) as client:
        client.send(stream=True)
        acts_at_once = isinstance(fault, (faults.Blackhole, faults.SlowTLS))
        server.wait_for(
            lambda requests: server.open_connections == 1 if acts_at_once else last_is("generating")(requests)
        )
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 1.0
        server.stop()
    assert [record.state for record in server.requests] == ([] if acts_at_once else ["failed"])
    assert set(threading.enumerate()) == threads
    assert len(os.listdir("/dev/fd")) == descriptors
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), timeout=1)


def test_a_running_server_is_not_started_twice() -> None:
    """A second start is refused, a start after a stop is not."""
    server = FakeOpenAI()
    with server, pytest.raises(RuntimeError, match="already running"):
        server.start()
    with server:
        assert server.base_url == f"http://127.0.0.1:{server.port}/v1"


def test_senseless_scripts_are_refused() -> None:
    """A negative rate or length, and something that is no fault, get an error that says so."""
    with pytest.raises(ValueError, match="tokens per second"):
        FakeOpenAI(rate=-1)
    with pytest.raises(ValueError, match="must not be negative"):
        FakeOpenAI(tokens=-1)
    with pytest.raises(TypeError, match="instance of a class"):
        FakeOpenAI(faults=[faults.Deaf])  # type: ignore[list-item]
