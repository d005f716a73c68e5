"""Remote runs under faults: what survives, what is said where it can't, and what goes on afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from remote_runs import QUICK, begin, create, truth
from worlds import until

from deadstop import (
    AzureOpenAI,
    Kind,
    OpenAI,
    RunCancellationTimeoutError,
    ServerProfile,
    attach,
    register_kind,
)
from deadstop.kinds import register
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
    assert time.monotonic() - began < 3.0
    assert caught.value.diagnosis is not None
    assert caught.value.diagnosis.klass == klass
    assert caught.value.receipt.children[0].outcome == "unconfirmed"


def test_the_reconciler_goes_on(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A cancel whose time is up goes on in the background, until it is confirmed, and the receipt is refined."""
    begin(world, client, "scope")
    server.add(faults.Overloaded(503), path="/cancel")
    receipt = world.run(client.runs.cancel, "scope", policy=QUICK.replace(timeout=0.3, on_timeout="return"))
    assert receipt.outcome == "unconfirmed"
    server.clear()
    server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    until(lambda: client.runs.get("scope").receipt.outcome == "cancelled", "the refined receipt")


def test_a_server_that_took_the_cancel_and_did_nothing_is_asked_again(
    world: Any, client: Any, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the background the cancel is sent anew, ever more seldom, until the run is over."""
    monkeypatch.setattr("deadstop.runs.reconciler.ASK_AGAIN", 0.1)
    begin(world, client, "scope")
    server.add(faults.IgnoresCancel(), path="/cancel", times=3)
    world.run(client.runs.cancel, "scope", policy=QUICK.replace(timeout=0.2, on_timeout="return"))
    server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    until(lambda: client.runs.get("scope").receipt.outcome == "cancelled", "the refined receipt")
    assert (truth(server).cancels, truth(server).most_cancels) == (4, 1)


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


def test_a_wrong_id_that_the_server_takes_for_another_confirms_nothing(
    world: Any, client: Any, server: FakeOpenAI
) -> None:
    """I9: an answer about another run is no answer about this one."""
    data = begin(world, client)
    server.add(faults.PrefixMatch())
    with pytest.raises(RunCancellationTimeoutError) as caught:
        world.run(client.runs.cancel, f"response:{data['id'][:-1]}")
    assert caught.value.diagnosis.klass == "wrong_target"


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


def test_who_is_told_that_it_goes_on_finds_it_going_on(
    world: Any, client: Any, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline's own thread is slow on its way to whoever goes on with it: the canceller does not overtake it."""
    reconciler = client.runs._registry.reconciler
    going_on = reconciler.unconfirmed

    def slowly(*args: Any) -> None:
        time.sleep(0.05)
        going_on(*args)

    monkeypatch.setattr(reconciler, "unconfirmed", slowly)
    client.runs.policy = QUICK.replace(timeout=0.2, on_timeout="return")
    begin(world, client, "scope")
    server.add(faults.IgnoresCancel())
    assert world.run(client.runs.cancel, "scope").outcome == "unconfirmed"
    assert len(reconciler) == 1


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
    assert "its word is all there is" in str(caught.value.diagnosis), "and not that the run went on: nobody knows"
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
    register.unrelated.cache_clear()
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
    register.unrelated.cache_clear()
    assert (child.outcome, child.kind) == ("cancelled", "job")
