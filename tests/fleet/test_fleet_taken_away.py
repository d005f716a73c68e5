"""SQLite's file is taken away under processes that live: who finds the new one takes none of them for dead, and what
they hold is in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import pytest
from fleet_homes import other_way
from worlds import Threads, until

import deadstop
from deadstop import CancelPolicy
from deadstop.errors import CancelRefusedError
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Opening
from deadstop.testing import FakeOpenAI, faults

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)

JSON = Dict[str, object]  # noqa: UP006
BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}


@pytest.fixture
def two(server: FakeOpenAI, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """Clients of two members of one fleet, neither of which looks at the record by itself."""
    monkeypatch.setattr("deadstop.fleet.member.TICK", 60.0)
    monkeypatch.setattr("deadstop.fleet.member.RESTING", 60.0)
    made = [
        deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=each)
        for each in (url, other_way(url))
    ]
    for each in made:
        each.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
        look(each)
    yield made[0], made[1]
    for each in made:
        each.close()


def member_of(client: Any) -> Any:
    return client.runs._registry.keeper.member


def look(client: Any) -> None:
    """Have the record read now, and done what follows from it."""
    member = member_of(client)
    assert member.writes.drain(20.0)
    member.read(member.read_again)
    assert member.reads.drain(20.0)
    assert member.writes.drain(20.0)


def take_away(url: str) -> None:
    for each in Path(url[len("sqlite:///") :]).parent.iterdir():
        if each.is_file():
            each.unlink()


def start(client: Any) -> None:
    client.post("/responses", body=BACKGROUND, cast_to=JSON)


def test_nobody_collects_the_runs_of_a_process_that_lives(
    two: tuple[Any, Any], server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """A remote run that is begun just then is the first thing in the new file; it is no orphan."""
    holder, worker = two
    with holder.runs.open("chat-42", orphans="cancel"):
        start(holder)
        assert member_of(holder).writes.drain(20.0)
        take_away(url)
        start(holder)
        assert member_of(holder).writes.drain(20.0)
        for _ in range(2):
            look(worker)
        assert ledger.open_intents() == []
        assert [each.truth for each in server.runs] == ["active", "active"]
        assert member_of(worker).alive(member_of(holder).process.owner)
        assert len(ledger.active_remotes()) == 2  # the one before as well
        assert holder.runs.cancel("chat-42").outcome == "cancelled"


def test_a_process_that_has_not_come_by_yet_is_not_dead(two: tuple[Any, Any], url: str, ledger: Ledger) -> None:
    """It is unknown to the new file; that its number is in use here is proof enough. One that has left is gone."""
    holder, other = two
    owner = member_of(holder).process.owner
    take_away(url)
    assert ledger.processes() == []
    assert member_of(other).alive(owner)
    host, _, *rest = owner.split(":")
    assert not member_of(other).alive(":".join((host, "99999999", *rest)))
    assert not member_of(other).alive(f"{owner[:-1]}?")  # a number of another start of this machine
    look(holder)
    ledger.leave(owner, now=time.time())
    assert not member_of(other).alive(owner)


def test_a_cancel_that_is_under_way_is_its_holder_s(
    two: tuple[Any, Any], server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """It is on record anew, nobody else takes it up, and its outcome comes after it."""
    holder, worker = two
    holder.runs.policy = CancelPolicy(timeout=0.5, attempt_timeout=0.5, recheck=0, on_timeout="return")
    server.add(faults.Overloaded(503), path="/cancel")
    with holder.runs.open("chat-42"):
        start(holder)
    assert holder.runs.cancel("chat-42", reason="stop", actor="ann").outcome == "unconfirmed"
    assert member_of(holder).writes.drain(20.0)
    take_away(url)
    look(worker)
    look(holder)
    (found,) = ledger.open_intents()
    assert (found.run, found.intent.reason, found.intent.actor, found.outcome) == (
        *("chat-42", "stop", "ann"),
        "unconfirmed",
    )
    look(worker)
    assert not worker.runs._registry.keeper.pick_up.busy
    server.clear()
    until(lambda: [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"], "the holder to confirm it")
    assert server.runs[0].most_cancels == 1


def test_a_run_is_found_by_its_name_in_the_new_file(
    two: tuple[Any, Any], server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """Who may cancel it is on record once more, and whoever may does."""
    holder, other = two
    with holder.runs.open("chat-42", cancellers=["ann"]) as run:
        start(holder)
        assert member_of(holder).writes.drain(20.0)
        take_away(url)
        look(holder)
        with pytest.raises(CancelRefusedError):
            other.runs.cancel("chat-42", actor="bob")
        assert [each.actor for each in ledger.refusals("chat-42")] == ["bob"]
        pending = Threads().start(other.runs.cancel, "chat-42", actor="ann")
        until(lambda: run.cancelled, "the cancel")
        assert pending.result().outcome == "cancelled"


def test_epochs_of_the_old_file_mean_nothing_in_the_new_one(
    two: tuple[Any, Any], server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """Another run may have that name and number by now: what is recorded of ours is about ours."""
    holder, other = two
    with holder.runs.open("chat-42", orphans="cancel"):
        start(holder)
        assert member_of(holder).writes.drain(20.0)
        take_away(url)
        theirs = Opening("chat-42", member_of(other).process, time.time())
        assert member_of(other).ledger.open_run(theirs).epoch == 1
        assert holder.runs.cancel("chat-42").outcome == "cancelled"
        assert member_of(holder).writes.drain(20.0)
    assert [(each.epoch, each.outcome) for each in ledger.receipts("chat-42")] == [(2, "cancelled")]
    (found,) = (each for each in [ledger.intent("chat-42", 1), ledger.intent("chat-42", 2)] if each is not None)
    assert (found.epoch, found.later) == (2, ())
