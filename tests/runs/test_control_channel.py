"""The control channel (I16): what a cancel carries, what holds it up, and what is left of it at the end."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest
from remote_runs import QUICK, begin, create, http_client, http_package, truth
from worlds import WORLDS, Threads, open_world, until

import deadstop
from deadstop import CancelPolicy, RunCancellationTimeoutError
from deadstop.calls.workers import LIMIT
from deadstop.clients.adopted import adopt_async
from deadstop.kinds.base import Request
from deadstop.runs import cancelling
from deadstop.runs.chase import Chase
from deadstop.testing import FakeOpenAI, faults


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=200, tokens=10_000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url, max_retries=0)
    one.runs.policy = QUICK
    yield one
    world.close(one)


def cancels(server: FakeOpenAI) -> list[Any]:
    """The cancels that have come."""
    return [each for each in server.requests if each.path.endswith("/cancel")]


# What a cancel carries


def test_a_key_that_was_replaced_is_used(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A client that was given a new key cancels with that one, also where it has cancelled with the old one before."""
    for key in ("k", "new", "newer"):
        data = begin(world, client)
        client.api_key = key
        world.run(client.runs.cancel, f"response:{data['id']}")
        assert cancels(server)[-1].headers["authorization"] == f"Bearer {key}"


def test_what_hooks_put_into_one_cancel_is_not_in_the_next(world: Any, server: FakeOpenAI) -> None:
    """A user's hook that gives each request a key that has none yet gives each cancel one of its own."""
    keys = itertools.count()

    def stamp(request: Any) -> None:
        request.headers.setdefault("x-once", f"key-{next(keys)}")

    async def stamp_in_task(request: Any) -> None:
        stamp(request)

    hooks = {"request": [stamp_in_task if world.is_async else stamp]}
    client = world.client(server.base_url, max_retries=0, http_client=http_client(world, event_hooks=hooks))
    client.runs.policy = QUICK
    for each in [begin(world, client)["id"] for _ in range(3)]:
        world.run(client.runs.cancel, f"response:{each}")
    world.close(client)
    sent = [each.headers["x-once"] for each in cancels(server)]
    assert len(set(sent)) == 3, sent


@pytest.mark.skipif(not hasattr(openai.OpenAI, "_prepare_request"), reason="this SDK has no such hook")
def test_what_signs_each_request_signs_each_cancel(world: Any, server: FakeOpenAI) -> None:
    """A signature is of one request: none is sent that was made for another."""

    class Signed(deadstop.OpenAI):
        def _prepare_request(self, request: Any) -> None:
            request.headers["x-signature"] = request.url.path

    class SignedInTasks(deadstop.AsyncOpenAI):
        async def _prepare_request(self, request: Any) -> None:
            request.headers["x-signature"] = request.url.path

    kind: Any = SignedInTasks if world.is_async else Signed
    client = kind(api_key="k", base_url=server.base_url, max_retries=0)
    client.runs.policy = QUICK
    for each in [begin(world, client)["id"] for _ in range(3)]:
        world.run(client.runs.cancel, f"response:{each}")
    world.close(client)
    sent = cancels(server)
    assert [each.headers["x-signature"] for each in sent] == [each.path for each in sent]


# What holds it up


def test_a_cancel_that_waits_for_others_says_that_it_was_not_sent(server: FakeOpenAI) -> None:
    """The server answers none of as many cancels as may be under way at once. One more is unconfirmed when its time is
    up, and nobody says of it that the server has accepted it."""
    world = Threads()
    client = world.client(server.base_url, max_retries=0)
    policy = CancelPolicy(timeout=30.0, attempt_timeout=30.0, give_up=0, recheck=0, on_timeout="return")
    for _ in range(LIMIT):
        begin(world, client)
    server.add(faults.SlowHeaders(None), path="/cancel")
    others = world.start(client.runs.cancel_all, policy=policy)
    until(lambda: len(cancels(server)) == LIMIT, "the others' cancels")
    data = begin(world, client)
    try:
        with pytest.raises(RunCancellationTimeoutError) as caught:
            client.runs.cancel(f"response:{data['id']}", policy=policy.replace(on_timeout="raise"), timeout=0.5)
        assert caught.value.diagnosis is not None
        assert caught.value.diagnosis.klass == "not_sent"
    finally:
        client.close()
        others.wait()
    assert len(cancels(server)) == LIMIT


@pytest.mark.parametrize("backend", [each for each in WORLDS if each != "threads"])
def test_a_cancel_by_address_goes_out_from_the_loop_that_there_is(server: FakeOpenAI, backend: str) -> None:
    """The run was begun on a loop that is over, and no scope had it."""
    with open_world(backend) as world:
        limits = http_package(world).Limits(max_keepalive_connections=0)  # one of a loop that is over can't be closed
        client = world.client(server.base_url, max_retries=0, http_client=http_client(world, limits=limits))
        client.runs.policy = QUICK
        data = begin(world, client)
    with open_world(backend) as world:
        assert world.run(client.runs.cancel, f"response:{data['id']}").outcome == "cancelled"
        world.close(client)
    assert (truth(server).truth, truth(server).cancels) == ("cancelled", 1)


def test_a_loop_that_has_cancelled_all_of_its_tasks_can_cancel_still(server: FakeOpenAI) -> None:
    """A shutdown that ends every task of its loop, those of ours among them, and cancels the runs after that."""

    async def main() -> list[Any]:
        client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0)
        client.runs.policy = QUICK
        function, args, kwargs = create(client)
        first, _ = [await function(*args, **kwargs) for _ in range(2)]
        server.add(faults.SlowHeaders(None), path="/cancel", times=1)
        pending = asyncio.create_task(client.runs.cancel(f"response:{first['id']}"))
        await asyncio.to_thread(until, lambda: cancels(server), "the cancel")
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait([pending])
        receipts = await client.runs.cancel_all()
        await client.close()
        return [each.outcome for each in receipts]

    assert asyncio.run(main()) == ["cancelled"] * 2
    assert [each.truth for each in server.runs] == ["cancelled"] * 2


# What is left of it


def test_closing_a_copy_with_an_http_client_of_its_own_closes_that_alone(
    world: Any, client: Any, server: FakeOpenAI
) -> None:
    """The runs are the client's as well: a cancel that is still to be confirmed goes on in the background."""
    data = begin(world, client)
    copy = client.copy(http_client=http_client(world))
    begin(world, copy)
    world.run(client.runs.cancel, f"response:{truth(server).id}")
    world.close(copy)
    server.add(faults.Overloaded(503), path="/cancel")
    policy = QUICK.replace(timeout=0.2, on_timeout="return")
    assert world.run(client.runs.cancel, f"response:{data['id']}", policy=policy).outcome == "unconfirmed"
    server.clear()
    server.wait_for_runs(lambda runs: runs[0].truth == "cancelled", 20.0)


@pytest.mark.parametrize("of_copy", [False, True], ids=["its own", "a copy's"])
def test_closing_the_client_ends_what_waits_for_a_run(world: Any, server: FakeOpenAI, of_copy: bool) -> None:
    """Nothing more can be sent, also not for the runs of its copies: nobody waits for the timeout, and no connection is
    left open."""
    client = world.client(server.base_url, max_retries=0)
    client.runs.policy = QUICK.replace(timeout=60.0, on_timeout="return")
    copy = client.with_options(timeout=5)
    data = begin(world, copy if of_copy else client)
    server.add(faults.Overloaded(503), path="/cancel")
    pending = world.start(client.runs.cancel, f"response:{data['id']}")
    until(lambda: cancels(server), "the cancel")
    world.close(client)
    assert pending.result().outcome == "unconfirmed"
    until(lambda: server.open_connections == 0, "the end of all connections")


def test_a_cancel_that_the_client_was_closed_on_says_so(world: Any, server: FakeOpenAI) -> None:
    """The server had most of its time left, so it is not called slow."""
    client = world.client(server.base_url, max_retries=0)
    client.runs.policy = QUICK.replace(timeout=60.0, attempt_timeout=60.0, on_timeout="return")
    data = begin(world, client)
    server.add(faults.SlowHeaders(None), path="/cancel")
    pending = world.start(client.runs.cancel, f"response:{data['id']}")
    until(lambda: cancels(server), "the cancel")
    world.close(client)
    receipt = pending.result()
    assert [each.error for each in receipt.attempts] == ["the client was closed"]
    assert receipt.diagnosis.klass == "unknown"
    assert receipt.diagnosis.evidence[0].startswith("The client was closed before the server had answered")


def test_an_error_at_the_end_leaves_nothing_going_on(world: Any, server: FakeOpenAI) -> None:
    """The user's transport can't be closed; what goes on in the background is ended all the same."""
    client = world.client(server.base_url, max_retries=0)
    client.runs.policy = QUICK.replace(timeout=0.2, on_timeout="return")
    data = begin(world, client)
    server.add(faults.Overloaded(503), path="/cancel")
    assert world.run(client.runs.cancel, f"response:{data['id']}").outcome == "unconfirmed"
    assert len(client.runs._registry.reconciler) == 1
    name = "aclose" if world.is_async else "close"
    close = getattr(client._client, name)

    def fail() -> Any:
        raise RuntimeError("a transport that can't be closed")

    setattr(client._client, name, fail)
    with pytest.raises(RuntimeError, match="can't be closed"):
        world.close(client)
    assert len(client.runs._registry.reconciler) == 0
    world.run(close)


@pytest.mark.parametrize("backend", [each for each in WORLDS if each != "threads"])
def test_what_is_to_be_sent_when_the_loop_is_over_is_not_sent(server: FakeOpenAI, backend: str) -> None:
    """A deadline's thread, or a signal handler, may ask for it: it is told so, and goes on with what it is at."""
    client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0)
    results: list[Any] = []

    async def program() -> Any:
        found = adopt_async(client).channel(client)
        await client.close()
        return found

    channel = anyio.run(program, backend=backend)
    channel.send(Request("POST", "/responses/resp_1/cancel", {}, {}), 1, 1.0, lambda: None, results.append)
    assert [result.attempt.error for result in results] == ["the event loop is closed"]
    assert not channel.spawn(lambda: results.append("begun"))
    assert len(results) == 1


@pytest.fixture
def threads_client(server: FakeOpenAI) -> Any:
    with deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0) as one:
        yield one


def test_sent_is_sent_though_another_has_only_begun(
    threads_client: Any, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cancel one run, and the first is held up at its book-keeping: the second is not told that a request left."""
    world, reached, go_on, asked = Threads(), threading.Event(), threading.Event(), []

    def held_up(*args: Any, **kwargs: Any) -> Any:
        reached.set()
        go_on.wait(20.0)
        return Chase(*args, **kwargs)

    monkeypatch.setattr(cancelling, "Chase", held_up)
    data = begin(world, threads_client)
    name = f"response:{data['id']}"
    first = world.start(threads_client.runs.cancel, name)
    assert reached.wait(20.0)

    def second() -> None:
        threads_client.runs.cancel(name, wait="sent")
        asked.append(server.runs[0].cancels)

    pending = world.start(second)
    until(lambda: len(threads_client.runs.get(name).cancelling._late) == 1, "the second cancel")
    assert not pending.done
    go_on.set()
    pending.result()
    assert first.result().outcome == "cancelled"


def test_a_signal_handler_on_top_of_a_cancel_does_not_wait_for_it(
    threads_client: Any, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C once more while the first cancel is at its book-keeping: that one goes on when the handler returns."""
    told: list[Any] = []
    data = begin(Threads(), threads_client)
    name = f"response:{data['id']}"

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not told:  # as a handler would, on top of this thread
            cancel = threads_client.runs.cancel
            told.extend(cancel(name, wait=level, timeout=30.0).outcome for level in ("sent", "accepted", "confirmed"))
        return Chase(*args, **kwargs)

    monkeypatch.setattr(cancelling, "Chase", interrupted)
    began = time.monotonic()
    assert threads_client.runs.cancel(name).outcome == "cancelled"
    assert time.monotonic() - began < 10.0
    assert len(told) == 3
    assert "cancelled" not in told
