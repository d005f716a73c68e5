"""HTTP/2: a cancel takes one call off a connection that others are on, and they notice nothing."""

from __future__ import annotations

import contextlib
import functools
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worlds import CHAT, PATIENCE, until

import deadstop
from deadstop import RunCancelledError
from deadstop.testing import FakeProxy, full_backlog

pytest.importorskip("h2")

from h2_server import STALLS_AFTER, H2Server

PEM = Path(__file__).parent.parent / "testing" / "localhost.pem"
TRUST = ssl.create_default_context(cafile=str(PEM))
CANCEL = 8  # the error code of a stream that is not wanted any more (RFC 9113, 7)


@pytest.fixture(params=["ALPN", "prior knowledge"])
def tls(request: pytest.FixtureRequest) -> bool:
    """Both ways to HTTP/2: agreed upon over TLS, and known beforehand."""
    return bool(request.param == "ALPN")


@contextlib.contextmanager
def serving(tls: bool, **kwargs: Any) -> Iterator[H2Server]:
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(PEM))
        context.set_alpn_protocols(["h2"])
    with H2Server(ssl_context=context, **kwargs) as server:
        yield server
        assert server.errors == []


@functools.lru_cache
def http_class_of(client_class: type) -> Any:
    """The HTTP client of the package that the SDK in hand rides on."""
    client = client_class(api_key="k")
    return next(each for each in type(client._client).__mro__ if each.__name__ in ("Client", "AsyncClient"))


def http_class(world: Any) -> Any:
    return http_class_of(deadstop.AsyncOpenAI if world.is_async else deadstop.OpenAI)


@contextlib.contextmanager
def http2_client(world: Any, base_url: str, **kwargs: Any) -> Iterator[Any]:
    """An SDK client over an HTTP client that speaks HTTP/2; it never retries, so that nothing heals unseen."""
    tls = base_url.startswith("https")
    own = http_class(world)(http2=True, http1=tls, verify=TRUST, **kwargs)
    client = world.client(base_url, http_client=own, max_retries=0)
    try:
        yield client
    finally:
        world.close(client)


@pytest.fixture
def server(tls: bool) -> Iterator[H2Server]:
    with serving(tls) as one:
        yield one


@pytest.fixture
def client(world: Any, server: H2Server) -> Iterator[Any]:
    with http2_client(world, server.base_url) as one:
        yield one


def settled(world: Any, client: Any) -> None:
    """The connection is made, and its settings are exchanged."""
    world.start(world.create, client, max_tokens=1).result()


def call_of(client: Any, name: str) -> Any:
    calls = [call for run in client.runs.list() if run.name == name for call in list(run.calls.values())]
    return calls[0] if calls else None


def reached(client: Any, name: str, phase: str) -> None:
    until(lambda: (call := call_of(client, name)) is not None and call.phase == phase, f"{name} {phase}")


def stop(world: Any, client: Any, pending: Any, name: str = "victim") -> Any:
    """Cancel the run, and look at what its caller gets and at what the receipt says of a shared connection."""
    receipt = world.run(client.runs.cancel, name, reason="stop", timeout=5)
    error = pending.failure()
    assert isinstance(error, RunCancelledError), repr(error)
    assert receipt.outcome == "cancelled", str(receipt)
    (call,) = receipt.calls
    assert call.released
    assert not call.socket_closed, "the socket is not the call's to close"
    return receipt


def untouched(world: Any, client: Any, server: H2Server, neighbour: Any = None) -> None:
    """The neighbour is still there and gets all of its answer, and the connection goes on serving."""
    if neighbour is not None:
        assert not neighbour.done
        server.finish()
        assert neighbour.result() == server.of("endless")[0].tokens + 1
    assert world.start(world.create, client, max_tokens=2).result().choices[0].message.content == "t0 t1 "
    assert server.connections == 1, "a second connection was needed"
    assert server.goaways == []
    (pool_connection,) = client._client._transport._pool.connections
    until(pool_connection.is_idle, "an idle connection")
    assert client._client._transport._pool._requests == []


def was_reset(server: H2Server, model: str) -> None:
    """The server was told that the answer is not wanted."""
    server.wait_for(lambda _: server.of(model)[-1].state == "reset")
    assert server.of(model)[-1].code == CANCEL


@pytest.mark.parametrize("first", ["victim", "neighbour"])
@pytest.mark.parametrize("inside", [True, False], ids=["streamed inside", "plain"])
def test_waiting_for_headers(world: Any, server: H2Server, client: Any, first: str, inside: bool) -> None:
    """A call without an answer is freed at once, whether it is the one that reads or not; its stream is reset."""
    settled(world, client)
    scope = {"streamed_inside": inside}
    starts = {
        "victim": lambda: world.start(world.create, client, "victim", scope=scope, model="silent"),
        "neighbour": lambda: world.start(world.consume, client, "neighbour", model="endless"),
    }
    pending = {name: starts[name]() for name in sorted(starts, key=lambda name: name != first)}
    server.wait_for(lambda _: server.of("silent") and any(each.tokens for each in server.of("endless")))
    reached(client, "victim", "waiting_for_headers")
    receipt = stop(world, client, pending["victim"])
    assert receipt.calls[0].phase == "waiting_for_headers"
    assert receipt.calls[0].server_work == "unknown"
    assert "HTTP/2" in receipt.calls[0].note
    assert "reset" in receipt.calls[0].note
    was_reset(server, "silent")
    untouched(world, client, server, pending["neighbour"])


def test_nobody_gets_anything(world: Any, server: H2Server, client: Any) -> None:
    """Where no data comes at all, each of three waiting calls is freed at once, the reading one and the others."""
    settled(world, client)
    names = ["one", "two", "three"]
    pending = [world.start(world.create, client, name, model="silent") for name in names]
    server.wait_for(lambda _: len(server.of("silent")) == 3)
    for name in names:
        reached(client, name, "waiting_for_headers")
    for name, each in zip(names[1:], pending[1:]):
        receipt = stop(world, client, each, name)
        assert receipt.elapsed < 2
    stop(world, client, pending[0], names[0])
    server.wait_for(lambda _: [each.code for each in server.of("silent")] == [CANCEL] * 3)
    untouched(world, client, server)


@pytest.mark.parametrize("streamed", [False, True], ids=["streamed inside", "stream"])
def test_reading(world: Any, server: H2Server, client: Any, streamed: bool) -> None:
    """A call whose answer stalls half-way is freed at once; its stream is reset."""
    settled(world, client)
    neighbour = world.start(world.consume, client, "neighbour", model="endless")
    start = world.consume if streamed else world.create
    pending = world.start(start, client, "victim", model="stalls")
    server.wait_for(lambda _: server.of("stalls") and server.of("stalls")[0].state == "stalled")
    if streamed:
        until(lambda: call_of(client, "victim").chunks == STALLS_AFTER, "the last event")
    reached(client, "victim", "reading")
    receipt = stop(world, client, pending)
    assert receipt.calls[0].phase == "reading"
    assert receipt.calls[0].streamed == ("asked" if streamed else "inside")
    assert receipt.delivered.chunks == (STALLS_AFTER if streamed else 0)
    was_reset(server, "stalls")
    untouched(world, client, server, neighbour)


def test_between_events(world: Any, server: H2Server, client: Any) -> None:
    """A stream that is cancelled in the handler of its third event stops there, and so does its generation."""
    settled(world, client)
    seen: list[Any] = []

    def each(chunk: Any) -> None:
        seen.append(chunk)
        if len(seen) == 3:
            client.runs.get("victim").cancel_soon(reason="enough")

    neighbour = world.start(world.consume, client, "neighbour", model="endless")
    pending = world.start(world.consume, client, "victim", each, model="long", max_tokens=100_000)
    assert isinstance(pending.failure(), RunCancelledError)
    assert len(seen) == 3
    until(lambda: client.runs.get("victim").receipt is not None, "the receipt")
    receipt = client.runs.get("victim").receipt
    assert receipt.outcome == "cancelled"
    assert not receipt.calls[0].socket_closed
    was_reset(server, "long")
    untouched(world, client, server, neighbour)


def test_sending(world: Any, tls: bool) -> None:
    """A call whose body is stuck for want of a window is freed at once; its stream is reset."""
    with serving(tls, greedy=False) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        neighbour = world.start(world.consume, client, "neighbour", model="endless")
        server.wait_for(lambda _: any(each.tokens for each in server.of("endless")))
        body = [{"role": "user", "content": "x" * 200_000}]
        pending = world.start(world.create, client, "victim", messages=body)
        server.wait_for(lambda streams: streams[-1].unpaid > 50_000)
        stop(world, client, pending)
        server.wait_for(lambda streams: streams[-1].state == "reset")
        untouched(world, client, server, neighbour)


def test_waiting_for_a_stream(world: Any, tls: bool) -> None:
    """A call that waits because the server allows no more streams is freed at once, and was never sent."""
    with serving(tls, max_streams=1) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        neighbour = world.start(world.consume, client, "neighbour", model="endless")
        server.wait_for(lambda _: any(each.tokens for each in server.of("endless")))
        pending = world.start(world.create, client, "victim")
        reached(client, "victim", "waiting_for_pool")
        receipt = stop_unsent(world, client, pending)
        assert receipt.calls[0].phase == "waiting_for_pool"
        untouched(world, client, server, neighbour)
        assert len(server.streams) == 3


def stop_unsent(world: Any, client: Any, pending: Any) -> Any:
    receipt = world.run(client.runs.cancel, "victim", timeout=5)
    assert isinstance(pending.failure(), RunCancelledError)
    assert receipt.outcome == "cancelled"
    assert receipt.calls[0].server_work == "stopped"
    return receipt


def test_waiting_for_a_neighbours_connect(world: Any) -> None:
    """A call that waits for the connection that a neighbour is making is freed at once; the neighbour goes on."""
    with full_backlog() as (host, port), http2_client(world, f"http://{host}:{port}/v1") as client:
        maker = world.start(world.create, client, "maker")
        reached(client, "maker", "connecting")
        pending = world.start(world.create, client, "victim")
        reached(client, "victim", "waiting_for_pool")
        stop_unsent(world, client, pending)
        assert not maker.done
        world.run(client.runs.cancel, "maker", timeout=5)
        assert isinstance(maker.failure(), RunCancelledError)


def test_making_the_connection_for_a_neighbour(world: Any) -> None:
    """When the call that makes the connection is cancelled, the neighbour that waits for it makes it anew."""
    with serving(True, mute=1) as server, http2_client(world, server.base_url) as client:
        pending = world.start(world.create, client, "victim")
        reached(client, "victim", "handshaking")
        neighbour = world.start(world.consume, client, "neighbour", max_tokens=5)
        reached(client, "neighbour", "waiting_for_pool")
        stop_connecting = world.run(client.runs.cancel, "victim", timeout=5)
        assert stop_connecting.calls[0].server_work == "stopped"
        assert isinstance(pending.failure(), RunCancelledError)
        assert neighbour.result() == 6
        (connection,) = client._client._transport._pool.connections
        until(connection.is_idle, "a connection that the pool knows")


def test_leaving_a_stream_early(world: Any, server: H2Server, client: Any) -> None:
    """A stream that is left after its first event is reset: the server generates no more for it."""
    settled(world, client)
    if world.is_async:

        async def leave() -> None:
            stream = await client.chat.completions.create(**{**CHAT, "model": "long"}, max_tokens=100_000, stream=True)
            async for _ in stream:
                break

    else:

        def leave() -> None:  # type: ignore[misc]
            stream = client.chat.completions.create(**{**CHAT, "model": "long"}, max_tokens=100_000, stream=True)
            for _ in stream:
                break

    world.start(leave).result()
    was_reset(server, "long")
    untouched(world, client, server)


def test_an_end_that_comes_late(world: Any, tls: bool) -> None:
    """Not waiting long for the end of an answer that is complete takes nothing from a neighbour."""
    with serving(tls, end_late=1.0) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        neighbour = world.start(world.consume, client, "neighbour", max_tokens=60)
        silent = world.start(world.create, client, "silent", model="silent")
        server.wait_for(lambda _: len(server.streams) == 3)
        answer = world.start(world.create, client, "inside", max_tokens=3).result()
        assert answer.choices[0].message.content == "t0 t1 t2 "
        assert neighbour.result() == 61
        stop(world, client, silent, "silent")
        assert server.connections == 1


def test_a_read_timeout_of_its_own(world: Any, server: H2Server, client: Any) -> None:
    """A call streamed inside that runs into its read timeout fails alone."""
    settled(world, client)
    neighbour = world.start(world.consume, client, "neighbour", model="endless")
    server.wait_for(lambda _: any(each.tokens for each in server.of("endless")))
    error = world.start(world.create, client, "slow", model="stalls", timeout=0.2).failure()
    assert type(error).__name__ in ("APITimeoutError", "ReadTimeout"), repr(error)  # the latter in openai 1.0
    was_reset(server, "stalls")
    untouched(world, client, server, neighbour)


def test_through_a_tunnel(world: Any) -> None:
    """The tunnel through a proxy that one call has opened is left standing for the others when it is cancelled."""
    with serving(True) as server, FakeProxy() as proxy:
        try:
            opened = http2_client(world, server.base_url, proxy=proxy.url)
            client = opened.__enter__()
        except TypeError:  # httpx before 0.26
            opened = http2_client(world, server.base_url, proxies=proxy.url)
            client = opened.__enter__()
        try:
            pending = world.start(world.create, client, "victim", model="silent")
            server.wait_for(lambda _: server.of("silent"))
            neighbour = world.start(world.consume, client, "neighbour", max_tokens=30)
            server.wait_for(lambda _: server.of("m"))
            stop(world, client, pending)
            was_reset(server, "silent")
            assert neighbour.result() == 31
            assert server.connections == 1
        finally:
            opened.__exit__(None, None, None)


def test_cancelled_at_every_step(world: Any, tls: bool) -> None:
    """Whichever step of a new connection's first call it is cancelled at, the second call on it finishes."""
    if not world.is_async:
        pytest.skip("a thread's steps can't be counted")
    import anyio

    async def program(client: Any, steps: int) -> bool:
        done = False

        async def victim() -> None:
            nonlocal done
            with contextlib.suppress(RunCancelledError):
                async with client.runs.open("victim"):
                    await client.chat.completions.create(**CHAT, max_tokens=3)
                    done = True

        async def neighbour() -> None:
            answer = await client.chat.completions.create(**CHAT, max_tokens=3)
            assert answer.choices[0].message.content == "t0 t1 t2 "

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(victim)
            tasks.start_soon(neighbour)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            with contextlib.suppress(Exception):
                client.runs.get("victim").cancel_soon()
        answer = await client.chat.completions.create(**CHAT, max_tokens=2)
        assert answer.choices[0].message.content == "t0 t1 "
        return done

    with serving(tls, rate=0) as server:
        for steps in [*range(30), *range(30, 300, 15)]:
            with http2_client(world, server.base_url) as client:
                world.run(functools.partial(program, client, steps))


def chain(error: Any) -> str:
    """An error and what it came of."""
    causes = []
    while error is not None:
        causes.append(repr(error))
        error = error.__cause__ or error.__context__
    return " <- ".join(causes)


def test_many_threads_and_cancels(world: Any, tls: bool) -> None:
    """Of many calls on one connection every second one is cancelled at a random moment; the others all finish."""
    import random

    random = random.Random(7)
    with serving(tls, rate=500) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        for turn in range(6):
            pending = []
            for number in range(8):
                start = world.consume if number % 4 else world.create
                pending.append(world.start(start, client, f"{turn}-{number}", max_tokens=20))
            pause = threading.Event()
            for number in range(0, 8, 2):
                pause.wait(random.uniform(0, 0.02))
                with contextlib.suppress(Exception):  # it may be over, or not there yet
                    client.runs.get(f"{turn}-{number}").cancel_soon()
            for number, each in enumerate(pending):
                each.wait(PATIENCE)
                if number % 2:
                    assert each.error is None, chain(each.error)
                    assert each.value == 21
                else:
                    assert each.error is None or isinstance(each.error, RunCancelledError), chain(each.error)
        untouched(world, client, server)
