"""HTTP/2: what a call that is taken off a connection leaves behind there, and what it must not."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import Any

import pytest
from worlds import CHAT, PATIENCE, until

from deadstop import RunCancelledError

pytest.importorskip("h2")

from http2_kit import chain, http2_client, reached, serving, settled, stop, untouched, was_reset


@pytest.fixture(params=["ALPN", "prior knowledge"])
def tls(request: pytest.FixtureRequest) -> bool:
    """Both ways to HTTP/2: agreed upon over TLS, and known beforehand."""
    return bool(request.param == "ALPN")


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


def first_event(world: Any, client: Any, **body: Any) -> Any:
    """A stream of which one event was read; it is held open."""

    def begin() -> Any:
        stream = client.chat.completions.create(**{**CHAT, **body}, stream=True)
        next(iter(stream))
        return stream

    async def begin_async() -> Any:
        stream = await client.chat.completions.create(**{**CHAT, **body}, stream=True)
        await stream.__anext__()
        return stream

    return world.start(begin_async if world.is_async else begin).result()


def streaming(server: Any) -> Any:
    server.wait_for(lambda _: any(each.tokens for each in server.of("endless")))


def all_given_back(client: Any) -> bool:
    """Whether nothing that was received counts against the window of the connection any more."""
    (connection,) = client._client._transport._pool.connections
    window = connection._connection._h2_state._inbound_flow_control_window_manager
    return bool(window.current_window_size + window._bytes_processed == window.max_window_size)


def test_a_flood_that_nobody_reads(world: Any, tls: bool) -> None:
    """What a cancelled call has received and not read takes no room from its neighbours: its window is given back."""
    with serving(tls) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        stream = first_event(world, client, model="flood")
        neighbour = world.start(world.consume, client, "neighbour", model="endless")
        assert server.full.wait(PATIENCE), "the window was never used up"
        receipt = world.run(client.runs.cancel, stream, timeout=5)
        assert receipt.outcome == "cancelled"
        was_reset(server, "flood")
        until(lambda: all_given_back(client), "all of the window")
        untouched(world, client, server, neighbour)


def test_an_answer_that_was_left(world: Any, tls: bool) -> None:
    """Also a whole answer that has arrived and is not wanted any more gives its window back."""
    with serving(tls, rate=0) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        stream = first_event(world, client, max_tokens=400)
        server.wait_for(lambda streams: streams[-1].state == "completed")
        world.start(world.create, client, max_tokens=1).result()  # the other's data were read on the way
        world.run(client.runs.cancel, stream, timeout=5)
        until(lambda: all_given_back(client), "all of the window")
        untouched(world, client, server)


def test_two_hundred_cancels_on_two_streams(world: Any) -> None:
    """Where a server allows two streams at a time, no cancel costs one of the two."""
    with serving(False, max_streams=2) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        for number in range(100):
            body = {"model": "silent", "max_tokens": 1000 + number}
            pending = {name: world.start(world.create, client, name, **body) for name in ("one", "two")}
            if number % 2:  # a request of the round before may come as late as this
                server.wait_for(lambda streams, mark=1000 + number: [each.wanted for each in streams].count(mark) == 2)
            else:
                reached(client, "one", "waiting_for_headers")
                until(lambda: client.runs.list()[1:], "the second run")
            for name, each in pending.items():
                world.run(client.runs.cancel, name, timeout=5)
                assert isinstance(each.failure(), RunCancelledError)
        untouched(world, client, server)
        assert all(each.resets == 1 for each in server.of("silent"))


def test_a_peer_that_reads_nothing(world: Any, tls: bool) -> None:
    """A call that is stuck writing its body is free in a second; what it has begun is finished when the peer reads."""
    with serving(tls, wide=True) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        neighbour = world.start(world.consume, client, "neighbour", model="endless")
        streaming(server)
        server.stop_reading()
        body = [{"role": "user", "content": "x" * 30_000_000}]
        pending = world.start(world.create, client, "victim", messages=body)
        reached(client, "victim", "sending")
        (pool_connection,) = client._client._transport._pool.connections
        sock = pool_connection._connection._network_stream.get_extra_info("socket")
        until(lambda: stuck(sock), "a write that is stuck")
        receipt = world.run(client.runs.cancel, "victim", timeout=5)
        assert receipt.outcome == "cancelled", str(receipt)
        assert receipt.elapsed < 3
        assert isinstance(pending.failure(), RunCancelledError)
        server.read_on()
        server.wait_for(lambda streams: streams[-1].state == "reset")
        untouched(world, client, server, neighbour)


def stuck(sock: Any) -> bool:
    """Whether nothing more can be written to a socket just now."""
    import select

    return not select.select([], [sock.fileno()], [], 0)[1]


def test_frames_that_were_on_their_way(world: Any, tls: bool) -> None:
    """What a server sends before it knows that a stream was reset brings it no second reset."""
    with serving(tls, rate=1000) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        neighbour = world.start(world.consume, client, "neighbour", model="endless")
        pending = world.start(world.consume, client, "victim", model="long", max_tokens=100_000)
        server.wait_for(lambda _: any(each.tokens for each in server.of("long")))
        streaming(server)
        server.stop_reading()
        world.run(client.runs.cancel, "victim", timeout=5)
        assert isinstance(pending.failure(), RunCancelledError)
        sent = server.of("long")[0].tokens
        server.wait_for(lambda _: server.of("long")[0].tokens > sent + 50)
        server.read_on()
        was_reset(server, "long")
        untouched(world, client, server, neighbour)
        assert server.of("long")[0].resets == 1


def test_a_stream_that_was_never_opened() -> None:
    """A call that is cancelled before its headers are sent takes its stream's number with it: no other gets it."""
    import h2.config
    import h2.connection

    from deadstop.calls.framing import guarded, tidied
    from deadstop.calls.pool import recast

    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    assert recast(client, tidied)
    assert recast(client, guarded)
    state: Any = client
    state.initiate_connection()
    victims = state.get_next_available_stream_id()
    assert not state.deadstop_leave(victims, True)
    state.deadstop_opened()
    neighbours = state.get_next_available_stream_id()
    assert neighbours == victims + 2
    headers = [(":method", "GET"), (":authority", "a"), (":scheme", "http"), (":path", "/")]
    state.send_headers(neighbours, headers, end_stream=True)
    events = server.receive_data(state.data_to_send())
    assert [each.stream_id for each in events if hasattr(each, "headers")] == [neighbours]
    assert not state.deadstop_leave(victims, True)
    assert state.deadstop_leave(neighbours, True)


def test_a_call_that_waited_for_a_stream(world: Any, tls: bool) -> None:
    """A connection on which a call got the stream of a cancelled one is busy with it, not idle and soon closed."""
    with serving(tls, max_streams=1) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        pending = world.start(world.create, client, "victim", model="silent")
        reached(client, "victim", "waiting_for_headers")
        neighbour = world.start(world.consume, client, "neighbour", model="endless")
        reached(client, "neighbour", "waiting_for_pool")
        stop(world, client, pending)
        streaming(server)
        (connection,) = client._client._transport._pool.connections
        assert not connection.is_idle()
        assert connection._connection._expire_at is None
        untouched(world, client, server, neighbour)


@pytest.mark.parametrize("farewell", ["goaway", "drop"])
def test_a_connection_that_ends_meanwhile(world: Any, tls: bool, farewell: str) -> None:
    """A call that is cancelled as its connection ends is cancelled; its neighbour fails, and the next call works."""
    with serving(tls) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        neighbour = world.start(world.create, client, "neighbour", model="silent")
        pending = world.start(world.create, client, "victim", model="silent")
        server.wait_for(lambda _: len(server.of("silent")) == 2)
        server.stop_reading()
        receipt = world.run(client.runs.cancel, "victim", timeout=5)
        server.farewells.append(farewell)
        assert receipt.outcome == "cancelled"
        assert isinstance(pending.failure(), RunCancelledError)
        assert type(neighbour.failure()).__name__ in ("APIConnectionError", "RemoteProtocolError", "ReadError")
        server.read_on()
        answer = world.start(world.create, client, max_tokens=2).result()
        assert answer.choices[0].message.content == "t0 t1 "
        assert server.connections == 2
        until(lambda: [each for each in client._client._transport._pool.connections if each.is_idle()], "an idle one")
        server.errors.clear()  # the connection was dropped under it


def test_closing_the_client(world: Any, tls: bool) -> None:
    """A client that is closed frees who reads, and who waits for its turn to read."""
    with serving(tls) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        pending = [world.start(world.create, client, name, model="silent") for name in ("one", "two")]
        server.wait_for(lambda _: len(server.of("silent")) == 2)
        for name in ("one", "two"):
            reached(client, name, "waiting_for_headers")
        world.close(client)
        for each in pending:
            assert each.failure() is not None
        server.errors.clear()


def test_an_answer_that_others_wait_beside(world: Any, tls: bool) -> None:
    """An answer is given to its call as it comes, though others wait on the connection for theirs."""
    with serving(tls) as server, http2_client(world, server.base_url) as client:
        settled(world, client)
        others = {name: world.start(world.create, client, name, model="silent") for name in ("a", "b", "c")}
        for name in others:
            reached(client, name, "waiting_for_headers")
        assert world.start(world.create, client, max_tokens=2).result().choices[0].message.content == "t0 t1 "
        for name, each in others.items():
            stop(world, client, each, name)
        untouched(world, client, server)


def test_a_response_that_is_being_started(world: Any, tls: bool) -> None:
    """A call that starts a remote run is held on HTTP/2 too: its answer tells which run to cancel, and that is done."""
    with serving(tls) as server, http2_client(world, server.base_url) as client:
        if not hasattr(client, "responses"):
            pytest.skip("an SDK without responses")
        settled(world, client)
        others = [world.start(world.create, client, name, model="silent") for name in ("a", "b")]

        def begin() -> None:
            with client.runs.open("victim"):
                client.responses.create(model="background", input="hi", background=True)

        async def begin_async() -> None:
            async with client.runs.open("victim"):
                await client.responses.create(model="background", input="hi", background=True)

        pending = world.start(begin_async if world.is_async else begin)
        server.wait_for(lambda _: server.of("background"))
        reached(client, "a", "waiting_for_headers")
        until(lambda: any(run.name.startswith("response") for run in client.runs.list()), "the run")
        client.runs.get("victim").cancel_soon()
        server.finish()
        assert isinstance(pending.failure(), RunCancelledError)
        server.wait_for(lambda streams: [each for each in streams if each.path.endswith("/responses/resp_h2/cancel")])
        for name, each in zip(("a", "b"), others):
            stop(world, client, each, name)
        # To close the channel's connection under an answer would be a reset to the server.
        assert world.run(client.runs.wait, "victim", timeout=10) is not None
