"""What a record that is behind the facts must not lead to: a cancel that is confirmed, and a run that goes on."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from remote_runs import CREATES, JSON, begin
from worlds import until

from deadstop import CancelPolicy
from deadstop.core.model import Intent
from deadstop.errors import LedgerUnavailable
from deadstop.fleet.member import Member
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Opening, Process, RemoteRun
from deadstop.runs.hearing import Hearing
from deadstop.testing import FakeOpenAI, faults

pytestmark = pytest.mark.parametrize("world", ["threads"], indirect=True)

DEAD = Process(f"{socket.gethostname()}:99999:x:y", socket.gethostname(), 99_999)
"""One that was here, and has ended for sure."""


@pytest.fixture
def client(world: Any, server: FakeOpenAI, url: str) -> Any:
    one = world.client(server.base_url, max_retries=0, runs_url=url)
    one.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
    yield one
    world.close(one)


def member_of(client: Any) -> Member:
    found: Member = client.runs._registry.keeper.member
    return found


def settled(client: Any, ledger: Ledger) -> bool:
    """Have the client read the record again; whether nothing in it is open any more."""
    member = member_of(client)
    member.read(member.read_again)
    return not ledger.open_intents()


def left_behind(world: Any, server: FakeOpenAI, ledger: Ledger, name: str) -> str:
    """A remote run that a dead process had started under that name, at work; its id."""
    stranger = world.client(server.base_url, max_retries=0)
    made = str(begin(world, stranger)["id"])
    world.close(stranger)
    now = time.time()
    remote = RemoteRun("response", (made,), server.base_url, name, 0, DEAD.owner, now)
    ledger.record_remote(remote, Opening(name, DEAD, now), now=now)
    return made


def test_a_cancel_is_not_on_record_without_its_remote_runs(
    world: Any, client: Any, server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """The ledger was away when the id came to be known. Who finds the cancel later has to find the run with it: that
    the process has ended proves nothing of what it had started (I2)."""
    mine = member_of(client).ledger
    record, down = mine.record_remote, [True]

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        if down:
            down.clear()
            raise LedgerUnavailable("It is being restarted.")
        return record(*args, **kwargs)

    mine.record_remote = sometimes  # type: ignore[method-assign]
    client.runs.policy = CancelPolicy(timeout=0.5, give_up=0, recheck=0, on_timeout="return")
    path, body = CREATES["response"]
    with client.runs.open("chat-42"):
        client.post(path, body=body, cast_to=JSON)
        assert member_of(client).writes.drain(20.0)
        assert not down
        server.add(faults.Overloaded(503), path="/cancel")
        assert client.runs.cancel("chat-42").outcome == "unconfirmed"
    assert member_of(client).writes.drain(20.0)
    assert [each.ref for each in ledger.remotes("chat-42", 1)] == [f"response:{server.runs[0].id}"]
    world.close(client)
    member_of(client).close()  # the process ends
    server.clear()
    worker = world.client(server.base_url, runs_url=url)
    until(lambda: settled(worker, ledger), "the outcome")
    assert server.runs[0].truth == "cancelled"
    assert [(each.outcome, each.receipt.evidence) for each in ledger.receipts("chat-42")] == [("cancelled", "status")]
    world.close(worker)


@pytest.mark.parametrize("over", [False, True], ids=["at work", "over"])
def test_a_cancel_by_address_is_about_the_run_on_record_under_its_scope(
    world: Any, server: FakeOpenAI, url: str, ledger: Ledger, over: bool
) -> None:
    """Also where it is over by then, and where nobody's client can tell: it is never taken for a call that has died."""
    made, now = left_behind(world, server, ledger, "chat-42"), time.time()
    address = f"response:{made}"
    ledger.record_intent(Intent(address, at=now), DEAD, opening=Opening(address, DEAD, now), now=now)
    elsewhere = Intent("response:resp_of_another_server", at=now)
    ledger.record_intent(elsewhere, DEAD, opening=Opening(elsewhere.run, DEAD, now), now=now)
    if over:
        (remote,) = ledger.remotes("chat-42", 1)
        ledger.remote_status(remote, "completed", terminal=True, now=now)
    worker = world.client(server.base_url, runs_url=url)
    until(lambda: settled(worker, ledger) or ledger.receipts(address), "the outcome")
    assert [each.outcome for each in ledger.receipts(address)] == ["finished_first" if over else "cancelled"]
    assert server.runs[0].truth == ("active" if over else "cancelled")
    until(lambda: settled(worker, ledger) or ledger.receipts(elsewhere.run), "what is known of the other one")
    assert [each.outcome for each in ledger.receipts(elsewhere.run)] == ["unconfirmed"]
    world.close(worker)


@pytest.mark.parametrize("signal", ["heard", "lost"])
def test_a_name_that_is_on_record_from_an_earlier_turn_means_the_turn_of_now_too(
    world: Any, client: Any, server: FakeOpenAI, ledger: Ledger, signal: str
) -> None:
    """The earlier turn was left behind by a process that died. The record knows it alone, and nothing of a call."""
    left_behind(world, server, ledger, "chat-42")
    call = world.start(world.create, client, "chat-42")
    server.wait_for(lambda requests: any(each.tokens_generated for each in requests), 20.0)
    keeper: Hearing = client.runs._registry.keeper
    before = Intent("chat-42", at=time.time() - 60.0, request_id="r-0")
    ledger.record_intent(before, DEAD, now=time.time())
    keeper.read_again(ledger.open_intents(), [])
    assert not client.runs.get("chat-42").cancelled, "a cancel from before it was opened is not meant for it"
    wanted = {"do": "cancel", "run": "chat-42", "epoch": 1, "id": "q-1", "request": "r-1", "reply": None}
    if signal == "heard":
        assert keeper.heard(wanted)
    else:
        found = ledger.record_intent(Intent("chat-42", at=time.time(), request_id="r-1"), DEAD, now=time.time())
        keeper.read_again([each for each in ledger.open_intents() if found], [])
    assert "cancelled" in str(call.failure())
    until(lambda: len({each.epoch for each in ledger.receipts("chat-42")}) == 2, "an outcome for each of the two lives")
    assert {each.outcome for each in ledger.receipts("chat-42")} == {"cancelled"}
    assert server.runs[0].truth == "cancelled"


def test_the_turn_of_now_is_cancelled_by_nobody_who_may_not(
    world: Any, client: Any, server: FakeOpenAI, ledger: Ledger
) -> None:
    """I19 also where the record did not come to know who may: the holder knows."""
    left_behind(world, server, ledger, "chat-42")
    with client.runs.open("chat-42") as run:
        run.cancellers = frozenset({"ann"})  # as of one whose opening could not be recorded
        keeper: Hearing = client.runs._registry.keeper
        for actor, struck in (("eve", False), ("ann", True)):
            wanted = Intent("chat-42", actor=actor, at=time.time(), request_id=f"r-{actor}")
            ledger.record_intent(wanted, DEAD, now=time.time())
            keeper.read_again(ledger.open_intents(), [])
            assert run.cancelled is struck, actor
            until(lambda: member_of(client).writes.drain(1.0) and ledger.life("chat-42", 2), "what follows on record")
    assert [each.epoch for each in ledger.receipts("chat-42") if each.receipt.actor == "ann"] == [2]


def test_a_request_id_of_an_earlier_turn_is_no_reason_to_take_this_one_for_that(
    world: Any, client: Any, ledger: Ledger
) -> None:
    """Each turn has an outcome of its own on record, also where a program uses the id of its request once more."""
    for _ in range(2):
        with client.runs.open("chat-42"):
            assert client.runs.cancel("chat-42", request_id="stop").outcome == "cancelled"
    member_of(client).writes.drain(5.0)
    assert sorted(each.epoch for each in ledger.receipts("chat-42")) == [1, 2]
