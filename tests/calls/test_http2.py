"""HTTP/2: a cancel takes one call off a connection that others are on, and they notice nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from worlds import CHAT, until

from deadstop import RunCancelledError
from deadstop.testing import FakeProxy, full_backlog

pytest.importorskip("h2")

from h2_server import STALLS_AFTER, H2Server
from http2_kit import CANCEL, call_of, http2_client, reached, serving, settled, stop, untouched, was_reset


@pytest.fixture(params=["ALPN", "prior knowledge"])
def tls(request: pytest.FixtureRequest) -> bool:
    """Both ways to HTTP/2: agreed upon over TLS, and known beforehand."""
    return bool(request.param == "ALPN")


@pytest.fixture
def server(tls: bool) -> Iterator[H2Server]:
    with serving(tls) as one:
        yield one


@pytest.fixture
def client(world: Any, server: H2Server) -> Iterator[Any]:
    with http2_client(world, server.base_url) as one:
        yield one


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


def test_on_the_pool_that_a_reset_has_made(world: Any, server: H2Server, client: Any) -> None:
    """Its connections are prepared as those of the first one: the call's stream is reset, and its neighbour goes on."""
    settled(world, client)
    assert world.run(client.runs.reset)
    neighbour = world.start(world.consume, client, "neighbour", model="endless")
    victim = world.start(world.create, client, "victim", scope={"streamed_inside": False}, model="silent")
    server.wait_for(lambda _: server.of("silent") and any(each.tokens for each in server.of("endless")))
    reached(client, "victim", "waiting_for_headers")
    stop(world, client, victim)
    was_reset(server, "silent")
    server.finish()
    assert neighbour.result() == server.of("endless")[0].tokens + 1


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


@pytest.mark.parametrize("farewell", ["goaway", "drop"])
def test_a_cancel_after_the_server_has_ended_the_control_channels_connection(
    world: Any, server: H2Server, client: Any, farewell: str
) -> None:
    """It goes out on a new connection, and does not fail first on one that the server has closed as unused (I16)."""
    first = world.run(client.runs.cancel, "response:resp_h2", timeout=5)
    (channel,) = client.runs._registry.channels
    pool = channel._http._transport._pool
    (unused,) = pool.connections
    server.farewells.append(farewell)
    until(lambda: unused._connection._network_stream.get_extra_info("is_readable"), "the farewell has come")
    second = world.run(client.runs.cancel, "response:resp_other", timeout=5)
    assert [[each.status for each in receipt.attempts] for receipt in (first, second)] == [[200], [200]]
    assert server.connections == 2
    assert unused not in pool.connections
    server.errors.clear()  # it takes nothing more after its own farewell
