"""One turn after the other under one name: where one ends and the next begins, and which of them a cancel is for."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any

import pytest
from fleet_homes import other_way
from remote_runs import JSON
from worlds import until

import deadstop
from deadstop import CancelPolicy, RunAlreadyOpenError
from deadstop.errors import CancelRefusedError
from deadstop.fleet.member import Member
from deadstop.ledger.base import Ledger
from deadstop.testing import FakeOpenAI, faults

BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


def client_of(server: FakeOpenAI, url: str) -> Any:
    one = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    one.runs.policy = CancelPolicy(timeout=5.0, recheck=0, on_timeout="return")
    assert member_of(one).writes.drain(20.0)
    return one


def member_of(client: Any) -> Any:
    found: Member = client.runs._registry.keeper.member
    return found


@pytest.fixture
def client(server: FakeOpenAI, url: str) -> Any:
    one = client_of(server, url)
    yield one
    one.close()


@pytest.fixture
def other(server: FakeOpenAI, url: str) -> Any:
    """As a client of another process."""
    one = client_of(server, other_way(url))
    yield one
    one.close()


def at_the_end(client: Any, monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    """Have that done while the next run that ends is on its way out."""
    keeper, left = client.runs._registry.keeper, [work]
    ended = keeper.ended

    def meanwhile(run: Any) -> None:
        if left:
            left.pop()()
        ended(run)

    monkeypatch.setattr(keeper, "ended", meanwhile)


def test_a_cancel_at_the_very_end_is_not_for_the_next_turn(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is ending is known all the time: nothing is parked that would have the next one born cancelled."""
    told = []
    at_the_end(client, monkeypatch, lambda: told.append(client.runs.cancel("chat-42").outcome))
    with client.runs.open("chat-42"):
        pass
    assert told == ["finished_first"]
    with client.runs.open("chat-42") as run:
        assert not run.cancelled


def test_a_turn_that_begins_at_the_very_end_of_the_last_is_not_taken_for_it(
    client: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is free once all that belongs to the last run of it is on its way to the record."""
    born = []

    def next_turn() -> None:
        with contextlib.suppress(RunAlreadyOpenError), client.runs.open("chat-42", cancellers=["ann"]) as run:
            born.append(run.cancelled)

    at_the_end(client, monkeypatch, next_turn)
    with client.runs.open("chat-42", cancellers=["ann"]) as run:
        run.cancel(actor="ann")
    next_turn()
    assert not any(born)
    assert len(ledger.runs("chat-42", ended=True)) == 1 + len(born)


def test_a_turn_that_ends_before_it_is_on_record_is_closed_there(
    client: Any, other: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger was slow to open it. Who cancels by name later means the run that there is then."""
    monkeypatch.setattr("deadstop.runs.blocking.PATIENCE", 0.05)
    member, free = member_of(client), threading.Event()
    member.writes.submit(lambda: free.wait(20.0))
    with client.runs.open("chat-42", cancellers=["ann"]):
        pass
    free.set()
    assert member.writes.drain(20.0)
    assert ledger.runs("chat-42") == []
    with client.runs.open("chat-42") as run:
        assert other.runs.cancel("chat-42").outcome == "cancelled"
        assert run.cancelled


def test_a_cancel_by_name_is_for_the_turn_of_now_and_what_the_last_one_left(
    client: Any, other: Any, server: FakeOpenAI
) -> None:
    """The last turn is on record, since its remote run goes on; the one of now is not, as nearly all."""
    with client.runs.open("chat-42"):
        client.post("/responses", body=BACKGROUND, cast_to=JSON)
    assert member_of(client).writes.drain(20.0)
    with client.runs.open("chat-42") as run:
        assert other.runs.cancel("chat-42").outcome == "cancelled"
        assert server.runs[0].truth == "cancelled"
        until(lambda: run.cancelled, "the cancel of the turn of now")


def test_a_scope_that_was_left_is_cancelled_with_a_record(
    client: Any, other: Any, server: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """What it began is at work, so its cancel is put on record before a request leaves, and nobody waits in vain."""
    with client.runs.open("chat-42"):
        client.post("/responses", body=BACKGROUND, cast_to=JSON)
    assert member_of(client).writes.drain(20.0)
    with caplog.at_level(logging.WARNING, "deadstop"):
        assert other.runs.cancel("chat-42").outcome == "cancelled"
    assert [each.getMessage() for each in caplog.records if "record" in each.getMessage()] == []


def test_a_request_that_is_repeated_is_not_for_the_turn_of_now(
    client: Any, other: Any, server: FakeOpenAI, url: str
) -> None:
    """It was about the last turn and has its result, and nothing is changed (I8); who holds the name now goes on."""
    asker, heard = client_of(server, other_way(url).replace("/./", "/././")), threading.Event()
    with client.runs.open("chat-42"):
        first = asker.runs.cancel("chat-42", request_id="stop")
    with other.runs.open("chat-42") as run:
        again = asker.runs.cancel("chat-42", request_id="stop")
        member_of(other).waiting["x"] = lambda message: heard.set()
        member_of(asker).post.send(member_of(other).post.address, {"do": "have", "id": "x"})
        assert heard.wait(20.0), "what was signalled before has been heard by then"
        assert not run.cancelled
    asker.close()
    assert (first.outcome, again.outcome) == ("cancelled", "cancelled")


def test_a_refused_cancel_by_address_leaves_nothing_open(client: Any, ledger: Ledger) -> None:
    """The try is on record, and the run is not listed for it after its end (I19)."""
    with client.runs.open("chat-42", cancellers=["ann"]):
        made = client.post("/responses", body=BACKGROUND, cast_to=JSON)
        with pytest.raises(CancelRefusedError):
            client.runs.cancel(f"response:{made['id']}", actor="eve")
        client.runs.cancel("chat-42", actor="ann")
    assert member_of(client).writes.drain(20.0)
    assert [each.actor for each in ledger.refusals()] == ["eve"]
    assert ledger.runs() == []


def test_who_takes_a_question_up_while_it_is_taken_back_is_waited_for(
    client: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of that name has ended here, so it was only asked who holds it; the holder's answer came at the last."""
    with client.runs.open("chat-42"):
        pass
    member, wanted = member_of(client), threading.Event()
    retract = member.ledger.retract
    monkeypatch.setattr(type(member), "across", 0.1)
    monkeypatch.setattr(member, "signal", lambda message: (set(), True))  # others that say nothing if it is not theirs

    def meanwhile(*about: Any) -> bool:
        for each in list(member.waiting.values()):
            each({"do": "have", "owner": member_of(other).process.owner})
        wanted.set()
        return retract(*about)

    monkeypatch.setattr(member.ledger, "retract", meanwhile)
    with other.runs.open("chat-42") as run:

        def take_up() -> None:
            wanted.wait(20.0)
            member.writes.drain(20.0)
            run.cancel(request_id="stop")

        holder = threading.Thread(target=take_up)
        holder.start()
        assert client.runs.cancel("chat-42", request_id="stop").outcome == "cancelled"
        holder.join()


def test_a_cancel_by_address_takes_no_remote_run_from_its_scopes_record(client: Any, ledger: Ledger) -> None:
    """It came before the remote run was on record. Who finds the scope's cancel later has to find that run with it."""
    member, free = member_of(client), threading.Event()
    member.writes.submit(lambda: free.wait(20.0))
    with client.runs.open("chat-42"):
        made = client.post("/responses", body=BACKGROUND, cast_to=JSON)
        client.runs.get(f"response:{made['id']}").cancel_soon()
        free.set()
    until(lambda: member.writes.drain(1.0) and ledger.receipts(), "the outcome")
    assert [each.run for each in ledger.receipts()] == [f"response:{made['id']}"]
    assert [each.ref for each in ledger.remotes("chat-42", 1)] == [f"response:{made['id']}"]


def test_all_that_a_closed_client_leaves_is_left_on_record(
    client: Any, other: Any, server: FakeOpenAI, ledger: Ledger
) -> None:
    """A remote run was cancelled by its address, and then with its scope: neither was confirmed; others do it."""
    client.runs.policy = CancelPolicy(timeout=0.3, attempt_timeout=0.3, recheck=0, on_timeout="return")
    server.add(faults.Overloaded(503), path="/cancel")
    with client.runs.open("chat-42"):
        made = client.post("/responses", body=BACKGROUND, cast_to=JSON)
        for name in (f"response:{made['id']}", "chat-42"):
            assert client.runs.cancel(name).outcome == "unconfirmed"
    assert member_of(client).writes.drain(20.0)
    client.close()
    server.clear()
    looking = member_of(other)
    until(
        lambda: looking.read(looking.read_again) or (looking.reads.drain(20.0) and not ledger.open_intents()),
        "the outcomes",
    )
    assert server.runs[0].truth == "cancelled"
    assert [each.outcome for each in ledger.receipts()] == ["cancelled"] * 2
