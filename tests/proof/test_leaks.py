"""Many cancels in random phases: nothing is left, nothing is delivered late, nothing is sent again."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from worlds import CHAT, until

from deadstop import RunCancelledError
from deadstop.testing import FakeOpenAI, faults

ROUNDS = 120


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=400, tokens=200) as one:
        yield one


def sockets() -> int:
    count = 0
    for each in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{each}").startswith("socket:")
        except OSError:
            continue
    return count


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_many_cancels_leave_nothing(world: Any, server: FakeOpenAI) -> None:
    """No socket, thread or pool slot is left; no event comes after its cancel returned; nothing is sent twice."""
    dice = random.Random(7)
    client = world.client(server.base_url, max_retries=2)
    server.add(faults.SlowHeaders(0.02), times=ROUNDS // 4)
    world.start(world.create, client, max_tokens=1).result()
    gc.collect()
    threads, open_sockets = threading.active_count(), sockets()
    asked = 1
    for number in range(ROUNDS):
        name = f"r{number}"
        seen: list[Any] = []
        stream = dice.random() < 0.5
        pending = (
            world.start(world.consume, client, name, seen.append)
            if stream
            else world.start(world.create, client, name, scope={"streamed_inside": dice.random() < 0.5})
        )
        asked += 1
        until(lambda name=name: pending.done or any(run.name == name for run in client.runs.list()), "the run")  # noqa: B023
        threading.Event().wait(dice.random() * 0.03)
        receipt = world.run(client.runs.cancel, name, timeout=10)
        assert receipt.outcome in ("cancelled", "finished_first"), str(receipt)
        if receipt.outcome == "cancelled":
            assert isinstance(pending.failure(), RunCancelledError), repr(pending.error)
        # Whichever won, its program may still be on its way out, and holds its place in the pool until then.
        pending.wait()
        if stream:
            # By the clock this can't be told: an event that was handed out before the cancel may be looked at after it.
            # The receipt was complete when the cancel returned, so what it does not count came later.
            assert len(seen) <= receipt.delivered.chunks, str(receipt)
    assert len(server.requests) <= asked
    assert client.runs.list() == []
    pool = client._client._transport._pool
    assert pool._requests == []
    until(lambda: all(one.is_idle() or one.is_closed() for one in pool.connections), "the connections")
    world.close(client)
    server.wait_for(lambda _: server.open_connections == 0)
    gc.collect()
    # The server's own threads and sockets end with their connections.
    until(lambda: threading.active_count() <= threads, "the end of the threads")
    until(lambda: sockets() <= open_sockets, "the end of the sockets")
    assert CHAT


def test_cancels_under_a_saturated_pool_lose_no_slot(world: Any, server: FakeOpenAI) -> None:
    """With two connections and twenty calls queueing for them, cancels at random leave both connections usable."""
    probe = world.client(server.base_url)
    kind = next(
        cls
        for cls in type(probe._client).__mro__
        if cls.__name__ in ("Client", "AsyncClient") and cls.__module__.startswith("httpx")
    )
    package = __import__(kind.__module__.partition(".")[0])
    own = kind(limits=package.Limits(max_connections=2), timeout=30)
    world.close(probe)
    client = world.client(server.base_url, http_client=own, max_retries=0)
    dice = random.Random(11)
    server.rate = 20  # ten seconds for a call: none ends by itself
    for round_ in range(6):
        pending = {f"r{round_}-{n}": world.start(world.create, client, f"r{round_}-{n}") for n in range(20)}
        until(lambda: len(client.runs.list()) >= 20, "the calls")
        names = list(pending)
        dice.shuffle(names)
        cancels = [world.start(client.runs.cancel, name) for name in names]
        for each in cancels:
            assert each.result().outcome in ("cancelled", "finished_first")
        for one in pending.values():
            one.wait()
    pool = client._client._transport._pool
    assert pool._requests == []
    server.rate = 0
    both = [world.start(world.create, client, max_tokens=2) for _ in range(6)]
    for each in both:
        assert each.result().choices
    world.close(client)
