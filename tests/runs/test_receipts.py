"""What a receipt says of a remote run is so: each of these is compared with the server's own record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from remote_runs import begin, create, needs_named_events, stream, truth
from worlds import until

from deadstop import CancelPolicy
from deadstop.testing import FakeOpenAI, faults
from deadstop.testing.faults.base import Fault

POLICY = CancelPolicy(timeout=0.8, attempt_timeout=0.3, give_up=0, recheck=0, on_timeout="return")

PATIENT = POLICY.replace(timeout=20.0, attempt_timeout=20.0)


@dataclass(frozen=True)
class Reads(Fault):
    """Status reads are answered with an error; 0: never; -1: with a reset, and so are cancels."""

    status: int

    def after_run(self, exchange: Any) -> None:
        if self.status == -1 and exchange.asked.action in ("cancel", "read"):
            exchange.hang_up(reset=True)
        elif exchange.asked.action == "read" and self.status:
            exchange.answer(self.status, {"error": {"message": "no"}})
        elif exchange.asked.action == "read":
            exchange.wait(None)


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=200, tokens=100_000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url, max_retries=0)
    one.runs.policy = POLICY
    yield one
    world.close(one)


def begin_all(world: Any, client: Any, *kinds: str) -> None:
    """Start runs of these kinds in one scope, and leave it."""
    creates = [create(client, kind) for kind in kinds]

    async def tasks() -> None:
        for function, args, kwargs in creates:
            with contextlib.suppress(openai.APIStatusError):
                await function(*args, **kwargs)

    def threads() -> None:
        for function, args, kwargs in creates:
            with contextlib.suppress(openai.APIStatusError):
                function(*args, **kwargs)

    world.run(world.call, client, "scope", tasks if world.is_async else threads)


def sent(server: FakeOpenAI) -> list[Any]:
    return [each.status for each in server.requests if each.path.endswith("/cancel")]


@pytest.mark.parametrize("reads", [0, 503, 401])
def test_a_status_from_before_the_cancel_is_no_word_on_it(
    world: Any, client: Any, server: FakeOpenAI, reads: int
) -> None:
    """The server took the cancel and the run is over, but that could not be read: nobody says that it ran on."""
    begin(world, client, "scope")
    server.add(faults.StaysCancelling(0.2), path="/cancel")
    server.add(Reads(reads))
    child = world.run(client.runs.cancel, "scope").children[0]
    assert (child.outcome, child.diagnosis.klass) == ("unconfirmed", "server_slow"), child.diagnosis
    assert "could not be read since" in child.diagnosis.evidence[0]
    assert "Last status read, before the cancel: in_progress." in child.diagnosis.evidence
    assert child.server_work == "unknown"


def test_what_was_read_since_is(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A run that is read as active after its cancel was taken is known to run on."""
    begin(world, client, "scope")
    server.add(faults.IgnoresCancel(), path="/cancel")
    child = world.run(client.runs.cancel, "scope").children[0]
    assert (child.diagnosis.klass, child.server_work) == ("server_ignored", "runs_on")
    assert "Last status read: in_progress." in child.diagnosis.evidence
    assert truth(server).truth == "active"


def test_a_refused_read_is_no_refused_cancel(world: Any, client: Any, server: FakeOpenAI) -> None:
    """No cancel was answered, and the reads were turned away: so it says."""
    begin(world, client, "scope")
    server.add(faults.CancelReplySlow(None), path="/cancel")
    server.add(Reads(401))
    child = world.run(client.runs.cancel, "scope").children[0]
    assert child.diagnosis.klass == "wrong_target"
    assert child.diagnosis.evidence[0] == "The server answered no cancel, and refused the status read with 401."


def test_connections_that_break_are_told_from_a_slow_server(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Each cancel and each read is cut off by a reset: that is the network."""
    begin(world, client, "scope")
    server.add(Reads(-1))
    child = world.run(client.runs.cancel, "scope").children[0]
    assert child.diagnosis.klass == "network_loss"
    assert child.diagnosis.evidence[0].startswith("The connection broke before an answer came")
    assert child.server_work == "unknown"


def test_a_scope_names_the_reason_of_a_run_that_is_unconfirmed(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Not that of one which was over before; and where the reasons differ, the others are in its evidence."""
    begin_all(world, client, "response", "response", "batch")
    done, late = (each.id for each in server.runs[:2])
    server.add(faults.CompletesFirst(), path=f"/{done}/cancel")
    server.add(faults.Overloaded(503), path=f"/{late}/cancel")
    server.add(faults.IgnoresCancel(), path=f"/{server.runs[2].id}/cancel")
    receipt = world.run(client.runs.cancel, "scope", policy=PATIENT.replace(timeout=2.0))
    assert [each.outcome for each in receipt.children] == ["finished_first", "unconfirmed", "unconfirmed"]
    assert receipt.diagnosis.klass == "server_overloaded"
    assert receipt.diagnosis.evidence[-1] == f"Besides, 'batch:{server.runs[2].id}': server_ignored."


def test_a_scope_rests_on_the_weakest_evidence_in_it(world: Any, client: Any, server: FakeOpenAI) -> None:
    """One create was provably refused, and of the other run there is the server's word alone."""
    server.add(faults.Overloaded(429), path="/responses", times=1)
    begin_all(world, client, "response", "response")
    receipt = world.run(client.runs.cancel, "scope", policy=PATIENT)
    assert sorted(each.evidence for each in receipt.children) == ["status", "transport"]
    assert (receipt.outcome, receipt.evidence) == ("cancelled", "status")


@pytest.mark.parametrize("grace", [0.2, 5.0], ids=["let go at the grace", "at the deadline"])
def test_a_create_that_was_not_answered_in_time_leaves_a_suspect(
    world: Any, client: Any, server: FakeOpenAI, grace: float
) -> None:
    """Its caller is let go, and it is we who hang up: a run may exist, and the receipt says where to look."""
    server.add(faults.CreateReplySlow(None))
    function, args, kwargs = create(client)
    pending = world.start(world.call, client, "scope", function, *args, **kwargs)
    server.wait_for_runs(lambda runs: len(runs) == 1)
    child = world.run(client.runs.cancel, "scope", policy=POLICY.replace(grace=grace)).children[0]
    assert (child.outcome, child.diagnosis.klass) == ("unconfirmed", "not_sent"), child.diagnosis
    assert (child.orphan_suspect.kind, child.orphan_suspect.suspects) == ("response", 1)
    pending.failure()
    until(lambda: not client.runs.list(), "the end of the call")
    assert client.runs.get("scope").receipt.children[0].orphan_suspect.suspects == 1
    assert truth(server).truth == "active"


@pytest.mark.parametrize("status", [500, 408])
def test_a_create_that_was_answered_is_not_lost(world: Any, client: Any, server: FakeOpenAI, status: int) -> None:
    """Its caller has the error: the receipt of a later cancel says what it was, and not that the answer was lost."""
    server.add(faults.Overloaded(status), path="/responses")
    function, args, kwargs = create(client)
    world.start(world.call, client, "scope", function, *args, **kwargs).failure()
    child = world.run(client.runs.cancel, "scope").children[0]
    assert child.diagnosis.klass == "not_sent"
    assert child.diagnosis.evidence[0].startswith(f"The create was answered {status}")
    assert child.orphan_suspect is not None


@pytest.mark.parametrize("wait", ["accepted", "confirmed"])
def test_detached_it_has_come_as_far_as_it_has(world: Any, client: Any, server: FakeOpenAI, wait: str) -> None:
    """Every request was turned away when the grace was spent: it was sent, and not accepted."""
    begin(world, client, "scope")
    server.add(faults.Overloaded(503), path="/cancel")
    policy = POLICY.replace(timeout=5.0, grace=0.3, on_timeout="detach")
    receipt = world.run(client.runs.cancel, "scope", wait=wait, policy=policy)
    assert (receipt.outcome, receipt.children[0].outcome) == ("sent", "sent")
    assert sent(server)


def test_what_waits_for_its_id_is_parked(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Nothing was sent for it yet, though somebody who waits for `sent` has nothing to wait for."""
    server.add(faults.CreateReplySlow(2.0))
    function, args, kwargs = create(client)
    pending = world.start(world.call, client, "scope", function, *args, **kwargs)
    server.wait_for_runs(lambda runs: len(runs) == 1)
    receipt = world.run(client.runs.cancel, "scope", wait="sent", policy=PATIENT.replace(grace=20.0))
    assert (receipt.outcome, receipt.children[0].outcome, sent(server)) == ("parked", "parked", [])
    pending.failure()
    until(lambda: truth(server).truth == "cancelled", "the one cancel that follows")


@pytest.mark.parametrize("wait", ["sent", "accepted"])
def test_who_asks_again_for_less_is_not_told_the_old_answer(
    world: Any, client: Any, server: FakeOpenAI, wait: str
) -> None:
    """The first cancel was in vain. The second is sent anew, and what it comes to is what its caller is told."""
    begin(world, client, "scope")
    server.add(faults.Overloaded(503), path="/cancel")
    assert world.run(client.runs.cancel, "scope").outcome == "unconfirmed"
    server.clear()
    assert world.run(client.runs.cancel, "scope", wait=wait, timeout=20.0).outcome == "cancelled"


def test_the_receipt_has_the_request_that_did_it(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Also where it was sent in the background, after the time was up."""
    begin(world, client, "scope")
    server.add(faults.Overloaded(503), path="/cancel")
    policy = POLICY.replace(give_up=60.0)
    assert world.run(client.runs.cancel, "scope", policy=policy).outcome == "unconfirmed"
    server.clear()
    until(lambda: client.runs.get("scope").receipt.outcome == "cancelled", "the end in the background")
    (child,) = client.runs.get("scope").receipt.children
    assert [each.status for each in child.attempts] == sent(server)
    assert [each.number for each in child.attempts] == list(range(1, len(child.attempts) + 1))


def test_a_request_that_was_overtaken_by_the_events_is_in_the_receipt(
    world: Any, client: Any, server: FakeOpenAI
) -> None:
    """The run's own stream said that it is cancelled before the cancel was answered."""
    needs_named_events()
    server.add(faults.CancelReplySlow(None), path="/cancel")
    pending = world.start(world.read, client, "scope", stream(client), lambda each: None)
    server.wait_for_runs(lambda runs: bool(runs) and runs[0].tokens > 5)
    child = world.run(client.runs.cancel, "scope", policy=PATIENT).children[0]
    pending.wait()
    assert (child.outcome, child.evidence) == ("cancelled", "events")
    assert [each.error for each in child.attempts] == ["the run was over before this was answered"]
