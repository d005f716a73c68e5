"""Remote runs: cancelled by a request, confirmed by a status, judged by what the server knows to be true."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from remote_runs import CREATES, JSON, create, needs_named_events, stream
from worlds import until

from deadstop import (
    AzureOpenAI,
    CancelPolicy,
    Kind,
    OpenAI,
    RunCancellationTimeoutError,
    RunCancelledError,
    ServerProfile,
    attach,
    register_kind,
)
from deadstop.kinds import register
from deadstop.testing import FakeOpenAI, faults

QUICK = CancelPolicy(timeout=2.0, attempt_timeout=0.5, recheck=0)


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


def begin(world: Any, client: Any, name: Any = None, kind: str = "response") -> Any:
    """Start a run of that kind, in a scope if it is given a name, and leave the scope. The SDK's object."""
    function, args, kwargs = create(client, kind)
    return world.run(world.call, client, name, function, *args, **kwargs)


def truth(server: FakeOpenAI, index: int = -1) -> Any:
    return server.runs[index]


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


@pytest.mark.parametrize(
    ("fault", "cancels"),
    [
        (faults.CancelReplyLost(), 1),
        (faults.CancelReplySlow(None), 1),
        (faults.FalseConflict(409), 3),
        (faults.FalseConflict(400), 3),
        (faults.NotYetKnown(0.3), 4),
        (faults.StaysCancelling(0.3), 1),
        (faults.Overloaded(503, "0.05"), 3),
        (faults.Overloaded(429), 3),
        (faults.WedgesOnDuplicate(), 1),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_a_cancel_survives(world: Any, client: Any, server: FakeOpenAI, fault: Any, cancels: int) -> None:
    """Whatever happens to a cancel on its way, it is confirmed in the end, with no more requests than that takes."""
    begin(world, client, "scope")
    server.add(fault, path="/cancel", times=None if cancels == 1 else cancels - 1)
    receipt = world.run(client.runs.cancel, "scope")
    assert receipt.outcome == "cancelled", str(receipt.children[0])
    assert truth(server).truth == "cancelled"
    assert truth(server).cancels <= cancels
    assert truth(server).most_cancels <= 1


@pytest.mark.parametrize(
    ("fault", "klass"),
    [
        (faults.IgnoresCancel(), "server_ignored"),
        (faults.StaysCancelling(None), "server_ignored"),
        (faults.Overloaded(503), "server_overloaded"),
        (faults.Overloaded(429), "rate_limited"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else type(value).__name__,
)
def test_what_can_not_be_confirmed_says_why(
    world: Any, client: Any, server: FakeOpenAI, fault: Any, klass: str
) -> None:
    """A cancel that is not confirmed in time raises, with a diagnosis from what was seen."""
    begin(world, client, "scope")
    server.add(fault, path="/cancel")
    began = time.monotonic()
    with pytest.raises(RunCancellationTimeoutError) as caught:
        world.run(client.runs.cancel, "scope", timeout=0.4)
    assert time.monotonic() - began < 1.5
    assert caught.value.diagnosis is not None
    assert caught.value.diagnosis.klass == klass
    assert caught.value.receipt.children[0].outcome == "unconfirmed"


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


def test_the_reconciler_goes_on(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A cancel whose time is up goes on in the background, until it is confirmed, and the receipt is refined."""
    begin(world, client, "scope")
    server.add(faults.Overloaded(503), path="/cancel")
    receipt = world.run(client.runs.cancel, "scope", policy=QUICK.replace(timeout=0.3, on_timeout="return"))
    assert receipt.outcome == "unconfirmed"
    server.clear()
    server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    until(lambda: client.runs.get("scope").receipt.outcome == "cancelled", "the refined receipt")


def test_a_run_that_comes_back_to_life_is_cancelled_again(world: Any, client: Any, server: FakeOpenAI) -> None:
    """What was read as cancelled is looked at again; if it works on, it is cancelled again, and that is on record."""
    begin(world, client, "scope")
    server.add(faults.ComesBackToLife(0.05))
    world.run(client.runs.cancel, "scope", policy=QUICK.replace(recheck=0.2))
    server.wait_for_runs(lambda runs: runs[0].truth == "cancelled" and runs[0].cancels == 2)
    until(lambda: client.runs.get("scope").receipt.children[0].revivals, "the revival on the record")


def test_a_detached_cancel_returns_after_its_grace(world: Any, client: Any, server: FakeOpenAI) -> None:
    """With `on_timeout="detach"` the caller goes on when the grace is spent, and the cancel goes on without it."""
    begin(world, client, "scope")
    server.add(faults.StaysCancelling(0.6))
    policy = QUICK.replace(grace=0.2, on_timeout="detach")
    began = time.monotonic()
    receipt = world.run(client.runs.cancel, "scope", policy=policy)
    assert 0.15 < time.monotonic() - began < 0.5
    assert receipt.outcome == "accepted"
    assert world.run(client.runs.wait, "scope", 5).outcome == "cancelled"


def test_cancel_all_reaches_runs_of_every_scope_and_of_none(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Runs whose scope was left, and runs that never had one, are live until they are known to be over."""
    for name in (None, "a", "a2", None):
        begin(world, client, name)
    receipts = world.run(client.runs.cancel_all)
    assert {receipt.outcome for receipt in receipts} == {"cancelled"}
    assert {run.truth for run in server.runs} == {"cancelled"}
    assert {run.cancels for run in server.runs} == {1}


def test_a_wrong_id_that_the_server_takes_for_another_confirms_nothing(
    world: Any, client: Any, server: FakeOpenAI
) -> None:
    """I9: an answer about another run is no answer about this one."""
    data = begin(world, client)
    server.add(faults.PrefixMatch())
    with pytest.raises(RunCancellationTimeoutError) as caught:
        world.run(client.runs.cancel, f"response:{data['id'][:-1]}")
    assert caught.value.diagnosis.klass == "wrong_target"


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


def test_closing_the_client_ends_what_goes_on(world: Any, server: FakeOpenAI) -> None:
    """After `close()` nothing is sent any more, and no connection is open."""
    client = world.client(server.base_url, max_retries=0)
    client.runs.policy = QUICK.replace(timeout=0.2, on_timeout="return")
    begin(world, client, "scope")
    server.add(faults.IgnoresCancel())
    assert world.run(client.runs.cancel, "scope").outcome == "unconfirmed"
    assert len(client.runs._registry.reconciler) == 1
    world.close(client)
    assert len(client.runs._registry.reconciler) == 0
    until(lambda: server.open_connections == 0, "the end of all connections")


def test_a_word_that_is_not_enough_confirms_nothing(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A server that says `cancelled` and works on: the policy decides whether its word will do, the receipt says so."""
    server.add(faults.CancelledButRunsOn())
    client.runs.server = "ogx"
    begin(world, client, "trusting")
    (child,) = world.run(client.runs.cancel, "trusting").children
    assert (child.outcome, child.evidence, child.server, child.server_work) == ("cancelled", "status", "ogx", "runs_on")
    assert truth(server).truth == "active"
    begin(world, client, "strict")
    with pytest.raises(RunCancellationTimeoutError) as caught:
        world.run(client.runs.cancel, "strict", policy=QUICK.replace(evidence="engine"))
    assert caught.value.diagnosis.klass == "server_ignored"
    client.runs.server = ServerProfile("ours", word="engine")
    begin(world, client, "known")
    (child,) = world.run(client.runs.cancel, "known", policy=QUICK.replace(evidence="engine")).children
    assert (child.outcome, child.server_work) == ("cancelled", "stopped")


@pytest.mark.parametrize("how", ["attach", "azure"])
def test_other_clients(how: str, server: FakeOpenAI) -> None:
    """A client that was built elsewhere, and Azure's: their cancels go where their calls go, with their settings."""
    plain: Any
    if how == "attach":
        plain = openai.OpenAI(api_key="secret", base_url=server.base_url, default_headers={"x-mine": "1"})
        runs: Any = attach(plain)
    else:
        plain = AzureOpenAI(
            azure_endpoint=server.origin, api_version="2099", api_key="secret", default_headers={"x-mine": "1"}
        )
        runs = plain.runs
    function, args, kwargs = create(plain)
    with runs.open("scope"):
        function(*args, **kwargs)
    assert runs.cancel("scope").outcome == "cancelled"
    sent = server.requests[-1]
    assert sent.path.endswith("/cancel")
    assert sent.headers["x-mine"] == "1"
    assert "secret" in (sent.headers.get("api-key") or sent.headers["authorization"])
    assert ("api-version=2099" in sent.query) is (how == "azure")
    plain.close()


def test_a_kind_of_your_own(server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen lines make a new kind: it is learned from what passes, cancelled, and read back."""
    monkeypatch.setattr(register, "_kinds", {})
    register._heads.cache_clear()
    register_kind(
        Kind(
            name="job",
            path="/fine_tuning/jobs/{id}",
            create=("/fine_tuning/jobs",),
            active=frozenset({"running"}),
            cancelled=frozenset({"cancelled"}),
            finished=frozenset({"succeeded", "failed"}),
            objects=("fine_tuning.job",),
            defaults={"timeout": 5.0},
        )
    )
    client = OpenAI(api_key="k", base_url=server.base_url)
    function, args, kwargs = create(client, "fine_tuning_job")
    with client.runs.open("scope"):
        function(*args, **kwargs)
    (child,) = client.runs.cancel("scope").children
    client.close()
    register._heads.cache_clear()
    assert (child.outcome, child.kind) == ("cancelled", "job")
