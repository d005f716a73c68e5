"""Every phase of a call can be cancelled: the caller is freed, the socket closed, nothing sent again."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest
from worlds import CHAT, MESSAGES, until

from deadstop import RunCancelledError
from deadstop.testing import FakeOpenAI, FakeProxy, faults, full_backlog, slow_dns

PEM = Path(__file__).parent.parent / "testing" / "localhost.pem"


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50.0, tokens=1000) as one:
        yield one


@pytest.fixture
def tls_server() -> Iterator[FakeOpenAI]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(PEM))
    with FakeOpenAI(rate=50.0, tokens=1000, ssl_context=context) as one:
        yield one


@contextlib.contextmanager
def client_of(world: Any, base_url: str, **kwargs: Any) -> Iterator[Any]:
    client = world.client(base_url, **kwargs)
    try:
        yield client
    finally:
        world.close(client)


def http_client(world: Any, client: Any, **kwargs: Any) -> Any:
    """An HTTP client of the package that the SDK in hand rides on."""
    for cls in type(client._client).__mro__:
        if cls.__name__ in ("Client", "AsyncClient") and cls.__module__.startswith("httpx"):
            return cls(**kwargs)
    raise AssertionError("the SDK rides on something else")


def phase_of(client: Any, name: str) -> Any:
    """Where the run's call is; None before it is there."""
    calls = [call for run in client.runs.list() if run.name == name for call in list(run.calls.values())]
    return calls[0].phase if calls else None


def stop(world: Any, client: Any, pending: Any, name: str = "r") -> Any:
    """Cancel the run; what every cancel of a call must show. Returns the receipt."""
    receipt = world.run(client.runs.cancel, name, reason="stop", timeout=10)
    error = pending.failure()
    assert isinstance(error, RunCancelledError), repr(error)
    assert receipt.outcome == "cancelled", str(receipt)
    assert receipt.evidence == "transport"
    assert all(call.released for call in receipt.calls)
    assert client.runs.list() == []
    return receipt


def no_slot_left(client: Any) -> None:
    pool = client._client._transport._pool
    assert pool._requests == []
    assert all(connection.is_idle() or connection.is_closed() for connection in pool.connections), pool.connections


def test_name_resolution_that_hangs(world: Any, server: FakeOpenAI) -> None:
    """A call that waits for a name lookup is freed at once; nothing reaches the server."""
    with slow_dns("slow.test") as asked, client_of(world, f"http://slow.test:{server.port}/v1") as client:
        pending = world.start(world.create, client, "r")
        assert asked.wait(10)
        receipt = stop(world, client, pending)
        assert receipt.calls[0].server_work == "stopped"
        assert not receipt.calls[0].socket_closed, "there was none"
        no_slot_left(client)
    assert server.requests == []


def test_connect_that_hangs(world: Any) -> None:
    """A call that waits for a TCP connect is freed at once."""
    with full_backlog() as (host, port), client_of(world, f"http://{host}:{port}/v1") as client:
        pending = world.start(world.create, client, "r")
        until(lambda: phase_of(client, "r") == "connecting", "the connect")
        receipt = stop(world, client, pending)
        assert receipt.calls[0].phase == "connecting"
        assert not receipt.calls[0].socket_closed, "there was none"
        no_slot_left(client)


def test_tls_handshake_that_stalls(world: Any, tls_server: FakeOpenAI) -> None:
    """A call that waits in a TLS handshake is freed at once, and the server sees the end of the connection."""
    tls_server.add(faults.SlowTLS(600))
    with client_of(world, tls_server.base_url) as client:
        pending = world.start(world.create, client, "r")
        until(lambda: phase_of(client, "r") == "handshaking", "the handshake")
        tls_server.wait_for(lambda _: tls_server.open_connections == 1)
        receipt = stop(world, client, pending)
        assert receipt.calls[0].server_work == "stopped"
        assert receipt.calls[0].socket_closed
        tls_server.wait_for(lambda _: tls_server.open_connections == 0)
        no_slot_left(client)


@pytest.fixture
def narrow(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    """A client with a single connection."""
    probe = world.client(server.base_url)
    package = next(
        cls.__module__.partition(".")[0]
        for cls in type(probe._client).__mro__
        if cls.__name__.endswith("Client") and cls.__module__.startswith("httpx")
    )
    limits = __import__(package).Limits(max_connections=1)
    own = http_client(world, probe, limits=limits)
    world.close(probe)
    with client_of(world, server.base_url, http_client=own, max_retries=0) as client:
        yield client


def test_waiting_for_a_pool_slot(world: Any, server: FakeOpenAI, narrow: Any) -> None:
    """A call that waits for a free connection is freed at once, loses no slot, and its neighbour goes on."""
    holder = world.start(world.consume, narrow, "holder", max_tokens=40)
    server.wait_for(lambda requests: any(each.state == "generating" for each in requests))
    pending = world.start(world.create, narrow, "r")
    until(lambda: phase_of(narrow, "r") == "waiting_for_pool", "the wait")
    pool = narrow._client._transport._pool
    until(lambda: len(pool._requests) == 2, "the queue")
    receipt = world.run(narrow.runs.cancel, "r", timeout=10)
    assert isinstance(pending.failure(), RunCancelledError)
    assert receipt.outcome == "cancelled"
    assert receipt.calls[0].phase == "waiting_for_pool"
    assert receipt.calls[0].server_work == "stopped"
    assert not receipt.calls[0].socket_closed, "there was none"
    assert holder.result() >= 40, "the neighbour was broken"
    assert len(server.requests) == 1
    # The slot is free again.
    server.rate = 0
    assert world.start(world.create, narrow, max_tokens=2).result().choices[0].message.content
    no_slot_left(narrow)


@dataclass(frozen=True)
class RefuseOnce(faults.Fault):
    """The first request for a stream is refused, when it is time; who comes next gets a new connection."""

    when: Callable[[], Any]

    def before_headers(self, exchange: Any) -> None:
        until(self.when, "the time to refuse")
        refusal = {"error": {"message": "stream is not supported", "param": "stream"}}
        exchange.answer(400, refusal, {"connection": "close"})


def test_waiting_for_a_pool_slot_after_a_refused_stream(world: Any, server: FakeOpenAI, narrow: Any) -> None:
    """A call that was refused a stream, and waits for a connection to ask plainly, is freed at once."""
    pool = narrow._client._transport._pool
    server.add(RefuseOnce(lambda: len(pool._requests) == 2), times=1)
    pending = world.start(world.create, narrow, "r")
    server.wait_for(lambda requests: len(requests) == 1)
    holder = world.start(world.consume, narrow, "holder", max_tokens=40)
    server.wait_for(lambda requests: requests[-1].state == "generating")
    until(lambda: phase_of(narrow, "r") == "waiting_for_pool", "the second wait")
    until(lambda: len(pool._requests) == 2, "the queue")
    receipt = world.run(narrow.runs.cancel, "r", timeout=10)
    assert isinstance(pending.failure(), RunCancelledError)
    assert (receipt.outcome, receipt.calls[0].phase) == ("cancelled", "waiting_for_pool")
    assert holder.result() >= 40, "the neighbour was broken"
    assert len(server.requests) == 2
    no_slot_left(narrow)


def test_sending_a_large_body_to_a_peer_that_does_not_read(world: Any, server: FakeOpenAI) -> None:
    """A call that is stuck in sending is freed at once."""
    server.add(faults.Blackhole())
    body = [{"role": "user", "content": "x" * 20_000_000}]
    with client_of(world, server.base_url) as client:
        pending = world.start(world.create, client, "r", messages=body)
        until(lambda: phase_of(client, "r") == "sending", "the sending")
        receipt = stop(world, client, pending)
        assert receipt.calls[0].phase == "sending"
        no_slot_left(client)


@pytest.mark.parametrize("inside", [True, False], ids=["streamed inside", "plain"])
def test_waiting_for_headers_on_a_fresh_connection(world: Any, server: FakeOpenAI, inside: bool) -> None:
    """A call that waits for an answer is freed at once, and the server sees it go."""
    server.add(faults.LostHeaders())
    with client_of(world, server.base_url) as client:
        pending = world.start(world.create, client, "r", scope={"streamed_inside": inside})
        server.wait_for(lambda requests: any(each.received_at for each in requests))
        until(lambda: phase_of(client, "r") == "waiting_for_headers", "the wait")
        receipt = stop(world, client, pending)
        assert receipt.calls[0].streamed == ("inside" if inside else "plain")
        server.wait_for(lambda requests: requests[-1].disconnect_seen_at is not None)
        assert len(server.requests) == 1, "it was sent again"
        no_slot_left(client)


def test_waiting_for_headers_on_a_reused_connection(world: Any, server: FakeOpenAI) -> None:
    """The same on a keep-alive connection that served another call before."""
    server.rate = 0
    with client_of(world, server.base_url) as client:
        world.start(world.create, client, max_tokens=2).result()
        server.add(faults.LostHeaders())
        pending = world.start(world.create, client, "r", scope={"streamed_inside": False})
        server.wait_for(lambda requests: len(requests) == 2 and requests[-1].received_at is not None)
        assert server.requests[-1].nth_on_connection == 2
        stop(world, client, pending)
        server.wait_for(lambda requests: requests[-1].disconnect_seen_at is not None)
        no_slot_left(client)


@pytest.mark.parametrize("inside", [True, False], ids=["streamed inside", "plain"])
def test_reading_a_body(world: Any, server: FakeOpenAI, inside: bool) -> None:
    """A call whose body stalls half-way is freed at once."""
    server.add(faults.StallAfter(3) if inside else faults.HalfChunk(after_tokens=0))
    server.rate = 0
    with client_of(world, server.base_url) as client:
        pending = world.start(world.create, client, "r", scope={"streamed_inside": inside})
        until(lambda: phase_of(client, "r") == "reading", "the body")
        stop(world, client, pending)
        server.wait_for(lambda requests: requests[-1].disconnect_seen_at is not None)
        assert len(server.requests) == 1
        no_slot_left(client)


def test_between_the_events_of_a_stream(world: Any, server: FakeOpenAI) -> None:
    """A stream that waits for its next event ends with the error, and the server stops generating."""
    five, seen = threading.Event(), []

    def each(chunk: Any) -> None:
        seen.append(chunk)
        if len(seen) == 5:
            five.set()

    with client_of(world, server.base_url) as client:
        pending = world.start(world.consume, client, "r", each)
        assert five.wait(10)
        receipt = stop(world, client, pending)
        assert receipt.delivered.chunks == len(seen)
        server.wait_for(lambda requests: requests[-1].state == "disconnected")
        assert server.requests[-1].tokens_generated < 100
        no_slot_left(client)


def test_forty_events_buffered_in_one_read(world: Any, server: FakeOpenAI) -> None:
    """Of forty events that came in one read, none passes after the cancel that the third one's handler makes."""
    server.rate = 0
    server.add(faults.Burst(40))
    seen: list[Any] = []

    def each(chunk: Any) -> None:
        seen.append(chunk)
        if len(seen) == 3:
            client.runs.get("r").cancel_soon(reason="enough")

    with client_of(world, server.base_url) as client:
        pending = world.start(world.consume, client, "r", each)
        assert isinstance(pending.failure(), RunCancelledError)
        assert len(seen) == 3
        until(lambda: client.runs.get("r").receipt is not None, "the receipt")
        assert client.runs.get("r").receipt.outcome == "cancelled"
        assert client.runs.get("r").receipt.delivered.chunks == 3
        no_slot_left(client)


@pytest.mark.parametrize("retry_after", [None, "30"], ids=["backoff", "Retry-After"])
def test_the_backoff_sleep_of_the_sdk(world: Any, server: FakeOpenAI, retry_after: Any) -> None:
    """A call that sleeps before a retry is freed at once, and the retry is never sent."""
    server.add(faults.Overloaded(status=429, retry_after=retry_after))
    with client_of(world, server.base_url, max_retries=2) as client:
        if retry_after is None:
            # A wait long enough to be caught in it, on SDKs that sleep half a second.
            client._client  # noqa: B018
        pending = world.start(world.create, client, "r")
        server.wait_for(lambda requests: len(requests) >= 1 and requests[0].finished_at is not None)
        receipt = stop(world, client, pending)
        assert receipt.outcome == "cancelled"
        count = len(server.requests)
        server.wait_for(lambda requests: all(each.state != "generating" for each in requests))
        assert len(server.requests) == count <= 2
        no_slot_left(client)


def test_over_tls(world: Any, tls_server: FakeOpenAI) -> None:
    """A stream over TLS is cut at once, and the server sees it."""
    with client_of(world, tls_server.base_url) as probe:
        own = http_client(world, probe, verify=ssl.create_default_context(cafile=str(PEM)))
    with client_of(world, tls_server.base_url.replace("127.0.0.1", "localhost"), http_client=own) as client:
        three = threading.Event()
        pending = world.start(world.consume, client, "r", lambda _: three.set())
        assert three.wait(10)
        assert stop(world, client, pending).calls[0].socket_closed
        tls_server.wait_for(lambda requests: requests[-1].disconnect_seen_at is not None)
        no_slot_left(client)


@pytest.mark.parametrize("tls", [False, True], ids=["forwarded", "tunnelled"])
def test_through_a_proxy(world: Any, server: FakeOpenAI, tls_server: FakeOpenAI, tls: bool) -> None:
    """A stream through an HTTP proxy is cut at once, and the server behind it sees it."""
    behind = tls_server if tls else server
    with FakeProxy() as proxy, client_of(world, behind.base_url) as probe:
        verify: Any = ssl.create_default_context(cafile=str(PEM)) if tls else True
        try:
            own = http_client(world, probe, proxy=proxy.url, verify=verify)
        except TypeError:  # httpx before 0.26
            own = http_client(world, probe, proxies=proxy.url, verify=verify)
        base_url = behind.base_url.replace("127.0.0.1", "localhost") if tls else behind.base_url
        with client_of(world, base_url, http_client=own) as client:
            one = threading.Event()
            pending = world.start(world.consume, client, "r", lambda _: one.set())
            assert one.wait(10), pending.error
            assert stop(world, client, pending).calls[0].socket_closed
            behind.wait_for(lambda requests: requests[-1].disconnect_seen_at is not None)


def test_before_the_call_started(world: Any, server: FakeOpenAI) -> None:
    """In a run that is cancelled already a call raises at once and sends nothing."""
    with client_of(world, server.base_url) as client:
        if world.is_async:

            async def program() -> None:
                async with client.runs.open("r") as run:
                    run.cancel_soon(reason="too late")
                    with pytest.raises(RunCancelledError):
                        run.check()
                    await client.chat.completions.create(**CHAT)

        else:

            def program() -> None:  # type: ignore[misc]
                with client.runs.open("r") as run:
                    run.cancel_soon(reason="too late")
                    with pytest.raises(RunCancelledError):
                        run.check()
                    client.chat.completions.create(**CHAT)

        assert isinstance(world.start(program).failure(), RunCancelledError)
    assert server.requests == []


def test_after_it_ended(world: Any, server: FakeOpenAI) -> None:
    """Cancelling a run that has ended says so, and sends nothing."""
    server.rate = 0
    with client_of(world, server.base_url) as client:
        world.start(world.create, client, "r", messages=MESSAGES).result()
        receipt = world.run(client.runs.cancel, "r")
        assert receipt.outcome == "finished_first"
        assert receipt.ok
        assert world.run(client.runs.cancel, "r").outcome == "finished_first"
    assert len(server.requests) == 1
