"""Remote runs: cancelled by a request, confirmed by a status, judged by what the server knows to be true."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from remote_runs import CREATES, JSON, QUICK, begin, create, needs_named_events, stream, truth
from worlds import WORLDS, until

import deadstop
from deadstop import (
    RunCancellationTimeoutError,
    RunCancelledError,
)
from deadstop.clients.channel import package_of
from deadstop.testing import FakeOpenAI, faults

PEM = Path(__file__).resolve().parents[1] / "testing" / "localhost.pem"


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


@pytest.mark.parametrize("kind", CREATES)
def test_a_run_of_every_kind_is_cancelled_with_its_scope(
    world: Any, client: Any, server: FakeOpenAI, kind: str
) -> None:
    """What was started in a scope is cancelled with it, also after the scope was left, and the status proves it."""
    begin(world, client, "chat-42", kind)
    receipt = world.run(client.runs.cancel, "chat-42", reason="user pressed stop")
    assert receipt.outcome == "cancelled"
    (child,) = receipt.children
    assert (child.outcome, child.kind, child.evidence) == ("cancelled", kind, "status")
    assert child.status in ("cancelled", "canceled")
    assert child.run == f"{kind}:{'/'.join(truth(server).ids)}"
    assert (truth(server).truth, truth(server).cancels) == ("cancelled", 1)


@pytest.mark.parametrize("kind", CREATES)
def test_a_run_of_every_kind_is_cancelled_by_its_address(
    world: Any, client: Any, server: FakeOpenAI, kind: str
) -> None:
    """A client that has never seen the run cancels it by its kind and its ids."""
    begin(world, client, None, kind)
    stranger = world.client(server.base_url)
    stranger.runs.policy = QUICK
    try:
        receipt = world.run(stranger.runs.cancel, f"{kind}:{'/'.join(truth(server).ids)}")
    finally:
        world.close(stranger)
    assert (receipt.outcome, receipt.kind) == ("cancelled", kind)
    assert truth(server).truth == "cancelled"


def test_an_object_of_the_sdk_names_its_run(world: Any, client: Any, server: FakeOpenAI) -> None:
    """What the SDK gave for a run can be given to cancel it; what is over by then is not cancelled any more."""
    data = begin(world, client)
    assert world.run(client.runs.cancel, data).outcome == "cancelled"
    over = dict(begin(world, client), status="completed")
    sent = len(server.requests)
    receipt = world.run(client.runs.cancel, over)
    assert (receipt.outcome, receipt.status) == ("finished_first", "completed")
    assert len(server.requests) == sent


def test_nothing_is_sent_for_a_run_that_is_known_to_be_over(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A cancel of a run that was cancelled, or was seen to be completed, asks the server nothing."""
    data = begin(world, client, "scope")
    server.runs  # noqa: B018 - it is still at work
    world.run(client.runs.cancel, "scope")
    sent = len(server.requests)
    again = world.run(client.runs.cancel, f"response:{data['id']}")
    assert again.outcome == "cancelled"
    assert world.run(client.runs.cancel, "scope").outcome == "cancelled"
    server.rate = 0
    done = begin(world, client, "other")
    world.run(client.get, f"/responses/{done['id']}", cast_to=JSON)
    assert world.run(client.runs.cancel, "other").outcome == "finished_first"
    assert [record.path for record in server.requests[sent:] if record.path.endswith("/cancel")] == []


def test_a_lost_race_is_told_apart(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A run that completes as its cancel arrives was finished first, whatever the cancel was answered."""
    begin(world, client, "scope")
    server.add(faults.CompletesFirst())
    receipt = world.run(client.runs.cancel, "scope")
    assert (receipt.outcome, receipt.children[0].status) == ("finished_first", "completed")
    assert truth(server).truth == "completed"


def test_a_cancel_before_the_id_is_parked_and_applied_once(world: Any, client: Any, server: FakeOpenAI) -> None:
    """I12: a create under way is heard out, its caller gets nothing, and exactly one cancel follows."""
    server.add(faults.CreateReplySlow(0.3))
    function, args, kwargs = create(client)
    pending = world.start(world.call, client, "scope", function, *args, **kwargs)
    server.wait_for_runs(lambda runs: len(runs) == 1)
    receipt = world.run(client.runs.cancel, "scope")
    assert isinstance(pending.failure(), RunCancelledError)
    assert pending.failure().run == "scope"
    assert receipt.outcome == "cancelled"
    assert (truth(server).truth, truth(server).cancels) == ("cancelled", 1)
    assert len(server.runs) == 1


def test_a_cancel_before_the_create_has_left_leaves_nothing(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A run whose create is refused, or never sent, was provably never made: that is a confirmed cancel."""
    server.add(faults.Overloaded(429, "30"))
    impatient = world.client(server.base_url, max_retries=3)
    impatient.runs.policy = QUICK
    function, args, kwargs = create(impatient)
    pending = world.start(world.call, impatient, "scope", function, *args, **kwargs)
    try:
        server.wait_for(lambda requests: bool(requests) and requests[0].state == "completed")
        receipt = world.run(impatient.runs.cancel, "scope")
    finally:
        world.close(impatient)
    assert isinstance(pending.failure(), RunCancelledError)
    assert receipt.outcome == "cancelled"
    assert server.runs == []


def test_a_lost_create_is_an_orphan_suspect(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Where the answer to a create is lost, the receipt says that a run may exist, and where to look for it."""
    server.add(faults.CreateReplyLost())
    function, args, kwargs = create(client)
    pending = world.start(world.call, client, "scope", function, *args, **kwargs)
    pending.wait()
    with pytest.raises(RunCancellationTimeoutError) as caught:
        world.run(client.runs.cancel, "scope")
    (child,) = caught.value.receipt.children
    assert child.orphan_suspect is not None
    assert child.orphan_suspect.suspects == 1
    assert "response" in child.orphan_suspect.look
    assert child.diagnosis.klass == "network_loss"


def test_an_open_event_stream_confirms(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A streamed background run is confirmed by its own events, though the cancel's answer never comes."""
    server.add(faults.CancelReplySlow(None))
    needs_named_events()
    seen: list[Any] = []
    pending = world.start(world.read, client, "scope", stream(client), seen.append)
    until(lambda: len(seen) > 5, "some events")
    receipt = world.run(client.runs.cancel, "scope")
    delivered = len(seen)
    assert isinstance(pending.failure(), RunCancelledError)
    (child,) = receipt.children
    assert (child.outcome, child.evidence) == ("cancelled", "events")
    assert len(seen) == delivered
    assert truth(server).truth == "cancelled"


@pytest.mark.parametrize("kind", ["response", "thread_run"])
def test_nothing_of_a_streamed_run_is_delivered_after_its_cancel(
    world: Any, client: Any, server: FakeOpenAI, kind: str
) -> None:
    """I4: from the cancel on no event comes through, and the stream's socket is closed."""
    needs_named_events()
    seen: list[Any] = []
    pending = world.start(world.read, client, "scope", stream(client, kind), seen.append)
    until(lambda: len(seen) > 5, "some events")
    receipt = world.run(client.runs.cancel, "scope")
    delivered = len(seen)
    assert isinstance(pending.failure(), RunCancelledError)
    assert receipt.outcome == "cancelled"
    assert len(seen) == delivered
    assert truth(server).truth == "cancelled"


def test_all_who_cancel_share_one_cancel(world: Any, client: Any, server: FakeOpenAI) -> None:
    """I7: any number of callers at once, of the scope and of the run itself; the server sees one request."""
    data = begin(world, client, "scope")
    server.add(faults.StaysCancelling(0.2))
    targets = ["scope", f"response:{data['id']}"] * 8
    pending = [world.start(client.runs.cancel, target) for target in targets]
    receipts = [each.result() for each in pending]
    assert {receipt.outcome for receipt in receipts} == {"cancelled"}
    assert (truth(server).cancels, truth(server).most_cancels) == (1, 1)


@pytest.mark.parametrize("wait", ["sent", "accepted"])
def test_lesser_levels_answer_sooner(world: Any, client: Any, server: FakeOpenAI, wait: str) -> None:
    """`sent` and `accepted` do not wait for the end, which comes all the same."""
    begin(world, client, "scope")
    server.add(faults.StaysCancelling(0.5))
    began = time.monotonic()
    receipt = world.run(client.runs.cancel, "scope", wait=wait)
    assert time.monotonic() - began < 0.4
    assert receipt.outcome in (wait, "accepted")
    assert truth(server).cancels <= 1
    settled = world.run(client.runs.wait, "scope", 5)
    assert settled is not None
    assert settled.outcome == "cancelled"


def test_cancels_do_not_queue_behind_the_runs(world: Any, server: FakeOpenAI) -> None:
    """I16: with every connection of the pool taken by streams, a cancel goes out at once."""
    from deadstop.calls.pool import pools_of, transports_of

    client = world.client(server.base_url, max_retries=0)
    data = begin(world, client)
    for transport in transports_of(client._client):
        for pool in pools_of(transport):
            pool._max_connections = 1
    seen: list[Any] = []
    busy = world.start(world.consume, client, "busy", seen.append)
    until(lambda: len(seen) > 2, "the stream")
    began = time.monotonic()
    receipt = world.run(client.runs.cancel, f"response:{data['id']}")
    assert receipt.outcome == "cancelled"
    assert time.monotonic() - began < 1.0
    assert not busy.done
    world.run(client.runs.cancel, "busy")
    busy.wait()
    world.close(client)


@pytest.mark.parametrize("backend", [each for each in WORLDS if each != "threads"])
def test_a_run_that_was_started_on_a_loop_that_is_over_is_cancelled_from_another(
    server: FakeOpenAI, backend: str
) -> None:
    """A program that runs one loop after the other keeps its client; its cancels go out from the loop that there is."""
    client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0)

    async def start() -> None:
        function, args, kwargs = create(client)
        async with client.runs.open("chat-42"):
            await function(*args, **kwargs)
        await client._client.aclose()  # as it must be: its connections end with the loop

    async def stop() -> Any:
        try:
            return await client.runs.cancel("chat-42", timeout=5.0)
        finally:
            await client.close()

    anyio.run(start, backend=backend)
    receipt = anyio.run(stop, backend=backend)
    assert (receipt.outcome, truth(server).truth, truth(server).cancels) == ("cancelled", "cancelled", 1)


def test_a_client_that_is_closed_leaves_no_connection_that_was_being_made(world: Any) -> None:
    """A pool that is closed forgets a connection that is still being made; the control channel's does not leave it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    with FakeOpenAI(ssl_context=context, faults=[faults.SlowTLS(0.5)]) as slow:
        plain = world.client(slow.base_url)
        http = package_of(plain._client, "httpx", "httpx2")
        world.close(plain)
        kind = http.AsyncClient if world.is_async else http.Client
        client = world.client(slow.base_url, http_client=kind(verify=False))
        pending = world.start(client.runs.cancel, "response:resp_1", timeout=1.5)
        until(lambda: slow.open_connections, "the connection")
        world.close(client)
        until(lambda: not slow.open_connections, "its end")
        assert not slow.requests
        pending.wait()


def test_cancel_all_reaches_runs_of_every_scope_and_of_none(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Runs whose scope was left, and runs that never had one, are live until they are known to be over."""
    for name in (None, "a", "a2", None):
        begin(world, client, name)
    receipts = world.run(client.runs.cancel_all)
    assert {receipt.outcome for receipt in receipts} == {"cancelled"}
    assert {run.truth for run in server.runs} == {"cancelled"}
    assert {run.cancels for run in server.runs} == {1}


def test_a_cancel_from_a_signal_handler_or_callback_does_not_block(world: Any, client: Any, server: FakeOpenAI) -> None:
    """`cancel_soon()` returns at once, from a foreign thread too, and the run is cancelled all the same."""
    begin(world, client, "scope")
    run = client.runs.get("scope")
    thread = threading.Thread(target=run.cancel_soon)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    until(lambda: run.receipt is not None and run.receipt.outcome == "cancelled", "the receipt")


def test_a_stream_that_nobody_has_read_yet_still_tells_the_id(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A stream was handed out, and its first event not looked at: it is read on, unseen, for the id of its run."""
    needs_named_events()
    held: list[Any] = []

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("scope"):
                held.append(await stream(client)())
                while not woken.is_set():  # noqa: ASYNC110 - it is set from another thread
                    await anyio.sleep(0.01)

    else:

        def program() -> None:
            with client.runs.open("scope"):
                held.append(stream(client)())
                woken.wait(20)

    woken = threading.Event()
    world.start(program)
    until(lambda: bool(held), "the stream")
    receipt = world.run(client.runs.cancel, "scope")
    woken.set()
    assert receipt.outcome == "cancelled"
    assert receipt.children[0].orphan_suspect is None
    assert truth(server).truth == "cancelled"
