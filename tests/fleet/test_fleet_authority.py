"""Who may cancel a run (I19), and what becomes of the remote runs of a process that died."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fleet_homes import BOUND, Child
from remote_runs import create
from worlds import until

from deadstop import CancelPolicy, UsageError
from deadstop.errors import CancelRefusedError, RunCancellationTimeoutError
from deadstop.ledger.base import Ledger
from deadstop.runs import chased
from deadstop.testing import FakeOpenAI


@pytest.fixture
def client(world: Any, server: FakeOpenAI, url: str) -> Any:
    one = world.client(server.base_url, max_retries=0, runs_url=url)
    one.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
    yield one
    world.close(one)


def test_who_may_not_cancel_a_run_changes_nothing(world: Any, client: Any, ledger: Ledger, server: FakeOpenAI) -> None:
    """Every way to cancel it is refused, here and from another client; the tries are on record; ann's goes through."""
    call = world.start(world.create, client, "chat-42", {"cancellers": ["ann"]})
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    run = client.runs.get("chat-42")
    other = world.client(server.base_url, runs_url=client.__dict__["_deadstop_url"])
    for cancel in (client.runs.cancel, other.runs.cancel):
        for actor in ("bob", None):
            with pytest.raises(CancelRefusedError) as refused:
                world.run(cancel, "chat-42", actor=actor, reason="stop")
            assert (refused.value.run, refused.value.actor) == ("chat-42", actor)
    with pytest.raises(CancelRefusedError):
        run.cancel_soon(actor="bob")
    assert world.run(client.runs.cancel_all, actor="bob") == []
    assert not run.cancelled
    assert not call.done
    assert client.runs._registry.keeper.member.writes.drain(20.0)
    assert [each.actor for each in ledger.refusals("chat-42")] == ["bob", None, "bob", None, "bob"]
    assert world.run(other.runs.cancel, "chat-42", actor="ann").outcome == "cancelled"
    world.close(other)


@pytest.mark.parametrize("world", ["threads"], indirect=True)
def test_who_may_not_cancel_a_run_is_refused_from_another_process(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI, child: Any, url: str
) -> None:
    """The ledger refuses at once; the holder is not even signalled, and goes on."""
    other: Child = child("threads", url, server.base_url, "chat-42", "call", CANCELLERS="ann")
    assert other.line() == "ready"
    server.wait_for(lambda requests: any(each.tokens_generated for each in requests), 20.0)
    with pytest.raises(CancelRefusedError):
        world.run(client.runs.cancel, "chat-42", actor="bob")
    assert [each.actor for each in ledger.refusals("chat-42")] == ["bob"]
    assert world.run(client.runs.cancel, "chat-42", actor="ann", reason="stop").outcome == "cancelled"
    assert other.line() == "cancelled chat-42 stop ann"


def test_a_cancel_that_is_parked_by_somebody_else_is_refused_at_the_opening(
    world: Any, client: Any, ledger: Ledger
) -> None:
    """A run that names its cancellers is not born cancelled by an actor who is none of them."""
    assert world.run(client.runs.cancel, "chat-42", actor="bob").outcome == "parked"
    with FakeOpenAI(rate=0, tokens=3) as quick:
        other = world.client(quick.base_url, runs_url=client.__dict__["_deadstop_url"])
        assert world.run(world.create, other, "chat-42", {"cancellers": ["ann"]})
        world.close(other)
    assert [each.actor for each in ledger.refusals("chat-42")] == ["bob"]


def test_a_refusal_at_the_opening_is_on_record_once(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal of a parked cancel may be so slow that it finds the run that has refused it already."""
    assert world.run(client.runs.cancel, "chat-42", actor="bob", request_id="q-1").outcome == "parked"
    call = world.start(world.create, client, "chat-42", {"cancellers": ["ann"]})
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    message = {"do": "cancel", "id": "x", "run": "chat-42", "actor": "bob", "request": "q-1"}
    assert client.runs._registry.keeper.heard(message)
    assert writes_of(client).drain(20.0)
    assert [each.actor for each in ledger.refusals("chat-42")] == ["bob"]
    assert not client.runs.get("chat-42").cancelled
    client.runs.get("chat-42").cancel_soon(actor="ann")
    call.wait()


@pytest.mark.parametrize("wrong", [{"cancellers": []}, {"cancellers": [7]}, {"orphans": "eat"}, {"orphan_grace": -1.0}])
@pytest.mark.parametrize("world", ["threads"], indirect=True)
def test_nonsense_is_refused(world: Any, client: Any, wrong: Any) -> None:
    """Nobody, no name, no such word, no such time: a usage error, and nothing is opened."""
    with pytest.raises(UsageError):
        client.runs.open("chat-42", **wrong)
    assert client.runs.list() == []


@pytest.mark.parametrize("orphans", ["leave", "cancel"])
@pytest.mark.parametrize("world", ["threads"], indirect=True)
def test_the_remote_runs_of_a_dead_process(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI, child: Any, url: str, orphans: str
) -> None:
    """They are left to themselves, or cancelled by another process, as their run asked for."""
    other: Child = child("threads", url, server.base_url, "chat-42", "remote", ORPHANS=orphans)
    assert other.line() == "ready"
    until(ledger.active_remotes, "the remote run's record")
    other.kill()
    member = client.runs._registry.keeper.member
    for _ in range(3):
        member.read(member.read_again)
        assert member.reads.drain(20.0)
    if orphans == "cancel":
        server.wait_for_runs(lambda runs: runs[0].truth == "cancelled", 20.0)
        until(lambda: ledger.receipts("chat-42"), "its receipt")
        assert ledger.receipts("chat-42")[0].receipt.reason == "its owner died"
        assert server.runs[0].cancels == 1
    else:
        assert (server.runs[0].truth, ledger.intent("chat-42")) == ("active", None)


def writes_of(client: Any) -> Any:
    return client.runs._registry.keeper.member.writes


def held_up(client: Any) -> threading.Event:
    """What the client puts on record waits for this event."""
    going_on = threading.Event()
    client.runs._registry.keeper.member.write(lambda: going_on.wait(BOUND))
    return going_on


@pytest.fixture
def remote(world: Any, ledger: Ledger, server: FakeOpenAI, child: Any, url: str) -> Any:
    """A remote run that another process has started in a scope that only ann may cancel."""
    other: Child = child("threads", url, server.base_url, "chat-42", "remote", CANCELLERS="ann")
    assert other.line() == "ready"
    until(ledger.active_remotes, "the remote run's record")
    return ledger.active_remotes()[0]


def test_a_remote_run_of_another_process_is_not_cancelled_by_its_address_either(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI, remote: Any
) -> None:
    """The scope that it was started in says who may. Nothing is sent for anybody else, and the try is on record.

    By its address, by that of the kind that has the same ids, by the SDK's object, and where it is known here already.
    """
    (id,) = remote.ids
    address, twin = f"response:{id}", f"beta_response:{id}"
    thing = {"object": "response", "id": id, "status": "in_progress", "background": True}
    for number, (target, name) in enumerate([(address, address), (twin, twin), (thing, address), (address, address)]):
        if number == 3:
            assert world.run(client.runs.wait, address, timeout=0.01) is None
        for actor in ("bob", None):
            with pytest.raises(CancelRefusedError, match="chat-42") as refused:
                world.run(client.runs.cancel, target, actor=actor, reason=f"try {number}")
            assert (refused.value.run, refused.value.actor) == (name, actor)
        assert client.runs.list() == []
    tries = [(each.actor, each.reason) for each in reversed(ledger.refusals("chat-42"))]
    assert tries == [(actor, f"try {number}") for number in range(4) for actor in ("bob", None)]
    assert server.runs[0].cancels == 0
    assert world.run(client.runs.cancel, address, actor="ann").outcome == "cancelled"
    assert server.runs[0].cancels == 1


def test_who_does_not_wait_for_a_refusal_is_refused(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI, remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's time is up before the record has answered: then he does not know, and still nothing is sent."""
    monkeypatch.setattr(chased, "PATIENCE", BOUND)
    going_on = held_up(client)
    with pytest.raises(RunCancellationTimeoutError):
        world.run(client.runs.cancel, f"response:{remote.ids[0]}", actor="eve", timeout=0.05)
    going_on.set()
    assert writes_of(client).drain(20.0)
    until(lambda: client.runs.list() == [], "nobody asks any more")
    assert len(client.runs._registry.reconciler) == 0
    assert [each.actor for each in ledger.refusals("chat-42")] == ["eve"]
    assert server.runs[0].cancels == 0


def test_another_client_of_the_process_asks_the_record_too(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI
) -> None:
    """The remote run has only just been started by the one, and the other is refused."""
    other = world.client(server.base_url, max_retries=0, runs_url=client.__dict__["_deadstop_url"])

    function, args, kwargs = create(client)

    def in_threads() -> Any:
        with client.runs.open("chat-42", cancellers=["ann"]):
            return function(*args, **kwargs)

    async def in_tasks() -> Any:
        async with client.runs.open("chat-42", cancellers=["ann"]):
            return await function(*args, **kwargs)

    made = world.run(in_tasks if world.is_async else in_threads)
    with pytest.raises(CancelRefusedError):
        world.run(other.runs.cancel, f"response:{made['id']}", actor="eve")
    assert server.runs[0].cancels == 0
    world.close(other)


def test_who_may_is_not_refused_with_who_may_not(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI, remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cancels of one run share its cancellation; the second goes on alone when the first is refused."""
    monkeypatch.setattr(chased, "PATIENCE", BOUND)
    going_on = held_up(client)
    eve = world.start(client.runs.cancel, f"response:{remote.ids[0]}", actor="eve")
    until(lambda: client.runs.list() and client.runs.list()[0].cancelled, "eve's cancel")
    ann = world.start(client.runs.cancel, f"response:{remote.ids[0]}", actor="ann")
    until(lambda: client.runs.list()[0].cancelling._late, "ann's cancel, that joins it")
    going_on.set()
    assert isinstance(eve.failure(), CancelRefusedError)
    assert ann.result().outcome == "cancelled"
    assert server.runs[0].cancels == 1


def test_a_record_that_does_not_answer_stops_no_cancel(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI, remote: Any
) -> None:
    """Who may cancel it is asked for a second at most. Then the cancel is sent, and nobody says that it was refused."""
    going_on = held_up(client)
    try:
        assert world.run(client.runs.cancel, f"response:{remote.ids[0]}", actor="eve", wait="accepted")
    finally:
        going_on.set()
    assert server.runs[0].cancels == 1
    assert writes_of(client).drain(20.0)
    assert ledger.refusals("chat-42") == []
