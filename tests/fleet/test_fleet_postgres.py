"""What is Postgres's own beyond one process: signals, who is there, and a database that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_homes import SOURCES, Child
from ledger_postgres import server as database
from nursery import popen
from remote_runs import JSON
from worlds import until

import deadstop
from deadstop import CancelPolicy, RunCancellationTimeoutError, RunCancelledError
from deadstop.core.model import Intent
from deadstop.errors import CancelRefusedError, LedgerSchemaError, LedgerUnavailable
from deadstop.fleet.member import Member
from deadstop.ledger import connect
from deadstop.ledger.base import Claim, Ledger
from deadstop.ledger.facts import Process
from deadstop.testing import FakeOpenAI, faults

psycopg = pytest.importorskip("psycopg")
pytestmark = [
    pytest.mark.parametrize("url", ["postgres"], indirect=True),
    pytest.mark.parametrize("world", ["threads"], indirect=True),
]


@pytest.fixture
def client(world: Any, server: FakeOpenAI, url: str) -> Any:
    one = world.client(server.base_url, max_retries=0, runs_url=url)
    one.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
    yield one
    world.close(one)


@pytest.fixture
def power(url: str) -> Iterator[Any]:
    """Stops and starts the database (``down``, ``up``); after the test it is there again."""
    said = ["up"]

    def tell(word: str) -> None:
        database().tell(word)
        said.append(word)

    yield tell
    if said[-1] == "down":
        database().tell("up")


def member_of(client: Any) -> Member:
    found: Member = client.runs._registry.keeper.member
    return found


def held(child: Any, url: str, server: FakeOpenAI, *what: str) -> Child:
    """A child that holds the run chat-42; `what` is under way in it."""
    one: Child = child("threads", url, server.base_url, "chat-42", *what)
    for _ in what:
        assert one.line() == "ready"
    if "call" in what:
        server.wait_for(lambda requests: any(each.tokens_generated for each in requests), 20.0)
    return one


def notify(url: str, channel: str, payload: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_notify(%s, %s)", [channel, payload])


def test_hints_of_anybody_cancel_nothing(world: Any, client: Any, server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """Whoever may connect to the database may send any hint: what is not on record does not happen."""
    call = world.start(world.create, client, "chat-42")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    until(member_of(client).wire.listening.is_set, "the listening")
    heard = threading.Event()
    member_of(client).waiting["x"] = lambda message: heard.set()
    address = member_of(client).post.address
    forged = {"run": "chat-42", "request_id": "r", "by": "somebody", "left": None}
    for each in (json.dumps(forged), "nonsense", "[1]", '{"run": 7}', ""):
        notify(url, "deadstop", each)
    notify(url, address, json.dumps({"do": "dance"}))
    notify(url, address, json.dumps({"do": "have", "id": "x"}))
    assert heard.wait(20.0)
    assert not call.done
    assert client.runs.cancel("chat-42").outcome == "cancelled"


@pytest.mark.parametrize("wait", ["confirmed", "sent"])
@pytest.mark.parametrize("cancellers", [None, ["ann"]])
def test_a_cancel_that_came_too_late_is_not_of_the_next_run(
    world: Any, client: Any, server: FakeOpenAI, url: str, ledger: Ledger, child: Any, cancellers: Any, wait: Any
) -> None:
    """Others are asked by way of the record who holds a run of that name: nobody, and the question goes."""
    held(child, url, server)
    until(lambda: len(ledger.processes()) == 2, "the other process to be on record")
    with client.runs.open("chat-7", cancellers=cancellers):
        pass
    if cancellers is None:
        assert client.runs.cancel("chat-7", reason="late", wait=wait).outcome == "finished_first"
    else:
        with pytest.raises(CancelRefusedError):
            client.runs.cancel("chat-7", reason="late", wait=wait)
    assert ledger.intent("chat-7") is None
    with client.runs.open("chat-7") as run:
        assert member_of(client).writes.drain(20.0)
        assert not run.cancelled


def test_a_cut_connection_is_made_anew_and_what_was_missed_is_made_good(
    world: Any, client: Any, server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """A holder whose connections are ended hears cancels again soon, and is not taken for dead by the others."""
    call = world.start(world.create, client, "chat-42")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    member, other = member_of(client), Member(url)
    assert member.writes.drain(20.0)
    assert other.alive(member.process.owner)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    assert other.alive(member.process.owner)
    assert call.done is False
    canceller = world.client(server.base_url, runs_url=url)
    assert canceller.runs.cancel("chat-42", reason="stop").outcome == "cancelled"
    assert isinstance(call.failure(), RunCancelledError)
    world.close(canceller)
    other.close()


def test_a_restart_of_the_database_makes_nobody_dead(world: Any, server: FakeOpenAI, child: Any, url: str) -> None:
    """After a restart a process that is stopped is not taken for dead at once; one that goes on is heard of again."""
    stopped = held(child, url, server, "call")
    seen = Member(url)
    assert seen.writes.drain(20.0)
    (owner,) = (each.owner for each in seen.ledger.processes() if each.pid == stopped.pid)
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        database().tell("restart")
        assert seen.alive(owner)
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    canceller = world.client(server.base_url, runs_url=url)
    assert canceller.runs.cancel("chat-42", reason="stop", timeout=15.0).outcome == "cancelled"
    assert stopped.line() == "cancelled chat-42 stop None"
    world.close(canceller)
    seen.close()


def test_a_holder_that_is_cut_off_is_not_taken_for_ended(
    world: Any, client: Any, server: FakeOpenAI, url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell a process that has ended from one that is cut off, unless it was of this machine: so a cancel of
    its calls is unconfirmed, until it is back and strikes."""
    call = world.start(world.create, client, "chat-42", {"cancellers": ["ann"]})
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    member = member_of(client)
    until(lambda: ledger.runs("chat-42"), "the run's record")
    monkeypatch.setattr(member.wire, "_connect", lambda: False)
    monkeypatch.setattr(member, "read_again", lambda: None)  # who is cut off does not find it on record, either
    member.wire._connection.close()
    member.wire.wake()
    canceller = world.client(server.base_url, runs_url=url + "&application_name=other")
    with pytest.raises(RunCancellationTimeoutError) as told:
        canceller.runs.cancel("chat-42", actor="ann", timeout=5.0)
    assert "cut off" in str(told.value.receipt.note)
    assert not call.done
    monkeypatch.undo()
    assert isinstance(call.failure(), RunCancelledError)
    until(lambda: [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"], "the refinement")
    world.close(canceller)


def test_who_has_lost_a_claim_sends_nothing_for_it(
    world: Any, server: FakeOpenAI, child: Any, url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose claim has ended before its request leaves does not send it, and forgets about it; the next one
    to get the claim finishes the cancel."""

    class Lost(Claim):
        run = "chat-42"
        held = True  # when the run was looked at,
        left = 0.0  # and not when the request was to leave

        def release(self) -> None:
            """There is nothing to give back."""

    other = held(child, url, server, "remote")
    until(ledger.active_remotes, "the remote run's record")
    other.kill()
    lost = world.client(server.base_url, runs_url=url)
    pick_up = lost.runs._registry.keeper.pick_up
    asked: list[str] = []
    member_of(lost).ledger.claim = lambda run: asked.append(run) or Lost()
    ledger.record_intent(Intent("chat-42", at=time.time()), Process("x:1", "x", 1), now=time.time())
    member_of(lost).read(member_of(lost).read_again)
    until(lambda: asked and server.runs[0].reads, "the claim, and the look at the run")
    until(lambda: not _chased(pick_up), "the end of it")
    monkeypatch.setattr(Lost, "held", False)
    member_of(lost).read(member_of(lost).read_again)
    until(lambda: not pick_up.busy, "nothing in hand")
    assert server.runs[0].cancels == 0
    assert [each.outcome for each in ledger.open_intents()] == [None]
    world.close(lost)
    worker = world.client(server.base_url, runs_url=url + "&application_name=other")
    until(lambda: server.runs[0].truth == "cancelled", "the cancel")
    until(lambda: not ledger.open_intents(), "the outcome")
    assert server.runs[0].cancels == 1
    world.close(worker)


@pytest.mark.parametrize("how", ["before the look", "before the cancel"])
def test_who_has_lost_a_claim_and_gets_it_again_finishes_the_cancel(
    world: Any, server: FakeOpenAI, child: Any, url: str, ledger: Ledger, how: str
) -> None:
    """A worker that was stopped for a while, or cut off, may be the one that takes the run up again."""

    class Short(Claim):
        def __init__(self, inner: Claim) -> None:
            self.run, self._inner = inner.run, inner

        @property
        def held(self) -> bool:
            return self._inner.held and not (lost.is_set() or (how == "before the cancel" and server.runs[0].reads))

        def release(self) -> None:
            self._inner.release()

    lost = threading.Event()
    other = held(child, url, server, "remote")
    until(ledger.active_remotes, "the remote run's record")
    other.kill()
    worker = world.client(server.base_url, runs_url=url)
    mine = member_of(worker).ledger
    claim, taken = mine.claim, []

    def once_short(run: str) -> Any:
        mine.claim = claim
        found = claim(run)
        taken.append(run)
        return None if found is None else Short(found)

    mine.claim = once_short
    ledger.record_intent(Intent("chat-42", at=time.time()), Process("x:1", "x", 1), now=time.time())
    member_of(worker).read(member_of(worker).read_again)
    until(lambda: taken and (how == "before the look" or server.runs[0].reads), "the claim")
    if how == "before the look":
        lost.set()
    until(lambda: member_of(worker).read(member_of(worker).read_again) or not ledger.open_intents(), "the outcome")
    assert (server.runs[0].truth, server.runs[0].cancels) == ("cancelled", 1)
    world.close(worker)


def test_a_cancel_that_was_not_confirmed_is_sent_again_by_the_same_worker(
    world: Any, server: FakeOpenAI, child: Any, url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider takes no cancels for a while. The only worker there is keeps on asking, and gets there."""
    monkeypatch.setattr("deadstop.runs.pickup.AGAIN", 0.3)
    other = held(child, url, server, "remote")
    until(ledger.active_remotes, "the remote run's record")
    other.kill()
    server.add(faults.Overloaded(503), path="/cancel")
    worker = world.client(server.base_url, runs_url=url)
    worker.runs.policy = CancelPolicy(timeout=0.5, attempt_timeout=0.5, recheck=0)
    ledger.record_intent(Intent("chat-42", at=time.time()), Process("x:1", "x", 1), now=time.time())
    member_of(worker).read(member_of(worker).read_again)
    until(lambda: [each.outcome for each in ledger.open_intents()] == ["unconfirmed"], "the first outcome")
    server.clear()
    until(lambda: member_of(worker).read(member_of(worker).read_again) or not ledger.open_intents(), "the outcome")
    assert server.runs[0].truth == "cancelled"
    assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]
    world.close(worker)


def _chased(pick_up: Any) -> bool:
    scopes = [each.scope for each in list(pick_up._working.values()) if each.scope is not None]
    chases = [run.cancelling._chase for each in scopes for run in each.children.values() if run.cancelling]
    return not chases or not all(each is not None and each.stopped for each in chases)


def test_a_database_that_is_down_stops_no_local_cancel(
    world: Any, client: Any, server: FakeOpenAI, url: str, power: Any, ledger: Ledger
) -> None:
    """Calls and remote runs of this process are cancelled all the same, and their receipts say that they are not kept;
    a cancel of another process's run is a clear error. When it is there again, cancels are on record again."""
    with client.runs.open("remote"):
        client.post("/responses", body={"model": "m", "input": "hi", "background": True}, cast_to=JSON)
    call = world.start(world.create, client, "call")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    assert member_of(client).writes.drain(20.0)
    power("down")
    for name in ("call", "remote"):
        began = time.monotonic()
        receipt = client.runs.cancel(name)
        assert receipt.outcome == "cancelled"
        assert "not on record" in str(receipt.note)
        assert time.monotonic() - began < 5.0
    assert isinstance(call.failure(), RunCancelledError)
    assert server.runs[0].truth == "cancelled"
    with pytest.raises(LedgerUnavailable, match="can't be used now"):
        client.runs.cancel("of another process")
    with pytest.raises(LedgerUnavailable):
        deadstop.OpenAI(api_key="k", runs_url=url + "&application_name=other")
    power("up")
    until(lambda: client.runs.cancel("nobody", timeout=5.0).outcome == "parked", "the record")


def test_a_database_that_is_read_only_stops_no_local_cancel(world: Any, server: FakeOpenAI, url: str) -> None:
    """The same: a standby, or a role that may not write."""
    connect(url).close()
    readonly = url.replace("options=", "options=-cdefault_transaction_read_only%3Don%20")
    client = world.client(server.base_url, max_retries=0, runs_url=readonly)
    call = world.start(world.create, client, "call")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    receipt = client.runs.cancel("call")
    assert receipt.outcome == "cancelled"
    assert "read-only" in str(receipt.note)
    assert isinstance(call.failure(), RunCancelledError)
    with pytest.raises(LedgerUnavailable, match="read-only"):
        client.runs.cancel("of another process")
    world.close(client)


def test_a_foreign_schema_is_an_error_at_construction(world: Any, url: str) -> None:
    """Tables named as ours that are not ours: the client is not made, and nothing is written."""
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("CREATE TABLE deadstop_runs (x INTEGER)")
    with pytest.raises(LedgerSchemaError, match="not ours"):
        deadstop.OpenAI(api_key="k", runs_url=url)


@pytest.mark.timeout(180)  # three processes of the command line
def test_the_commands_see_every_host(
    world: Any, server: FakeOpenAI, child: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ps` lists what another process holds, `cancel` cancels it, `receipts` tells of it."""
    pytest.importorskip("typer")
    other = held(child, url, server, "call")
    path = os.pathsep.join(filter(None, [SOURCES, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "DEADSTOP_URL": url, "OPENAI_API_KEY": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def command(*words: str) -> str:
        with popen(["-m", "deadstop", *words], **pipes, text=True, env=env) as process:
            out, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors
        return str(out)

    (row,) = json.loads(command("ps", "--json"))
    assert (row["run"], row["state"], row["holder"].split(":")[1]) == ("chat-42", "open", str(other.pid))
    assert "cancelled" in command("cancel", "chat-42", "--reason", "stop", "--actor", "ann")
    assert other.line() == "cancelled chat-42 stop ann"
    (receipt,) = json.loads(command("receipts", "--json"))
    assert (receipt["outcome"], receipt["actor"]) == ("cancelled", "ann")


def test_a_cancel_that_nobody_takes_is_parked_soon(world: Any, client: Any, url: str) -> None:
    """Nobody says that it is his, and within a second or so that is the answer; alone at once."""
    assert member_of(client).writes.drain(20.0)
    began = time.monotonic()
    assert client.runs.cancel("chat-42").outcome == "parked"
    alone = time.monotonic() - began
    other = Member(url)
    assert other.writes.drain(20.0)
    began = time.monotonic()
    assert client.runs.cancel("chat-43").outcome == "parked"
    assert alone < 1.0 <= time.monotonic() - began < 3.0
    other.close()
