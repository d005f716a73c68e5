"""Who may cancel a run (I19), and what becomes of the remote runs of a process that died."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
from fleet_homes import BOUND, Child
from remote_runs import begin
from worlds import until

from deadstop import CancelPolicy, DeadstopError, UsageError
from deadstop.errors import CancelRefusedError
from deadstop.ledger.base import Ledger
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


@pytest.mark.parametrize("by", ["address", "object"])
def test_a_remote_run_of_another_process_is_not_cancelled_by_its_address_either(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI, child: Any, url: str, by: str
) -> None:
    """The scope that it was started in says who may. Nothing is sent for anybody else, and the try is on record."""
    other: Child = child("threads", url, server.base_url, "chat-42", "remote", CANCELLERS="ann")
    assert other.line() == "ready"
    until(ledger.active_remotes, "the remote run's record")
    (remote,) = ledger.active_remotes()
    address = f"{remote.kind}:{remote.ids[0]}"
    target = {"object": "response", "id": remote.ids[0], "status": "in_progress", "background": True}
    for actor in ("bob", None):
        with pytest.raises(CancelRefusedError, match="chat-42") as refused:
            world.run(client.runs.cancel, address if by == "address" else target, actor=actor, reason="stop")
        assert (refused.value.run, refused.value.actor) == (address, actor)
    assert [(each.actor, each.reason) for each in ledger.refusals("chat-42")] == [(None, "stop"), ("bob", "stop")]
    assert server.runs[0].cancels == 0
    assert client.runs.list() == []
    assert world.run(client.runs.cancel, address, actor="ann").outcome == "cancelled"
    assert server.runs[0].cancels == 1


def test_a_record_that_does_not_answer_stops_no_cancel(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Who may cancel a remote run by its address is asked for a second at most: then the cancel is sent."""
    stranger = world.client(server.base_url, max_retries=0)
    made = begin(world, stranger)
    world.close(stranger)
    ended = threading.Event()
    member = client.runs._registry.keeper.member
    member.read(lambda: ended.wait(BOUND))
    began = time.monotonic()
    try:
        with contextlib.suppress(DeadstopError):
            world.run(client.runs.cancel, f"response:{made['id']}", timeout=5.0)
        assert time.monotonic() - began < 4.0
        assert server.runs[0].cancels == 1
    finally:
        ended.set()
