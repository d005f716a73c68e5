"""Lives of runs on record: one after the other, with a ledger that fails for a moment, and after their process."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from contextlib import closing
from typing import Any

import pytest
from remote_runs import JSON, begin, http_client, http_package
from worlds import Threads, open_world, until

import deadstop
from deadstop import CancelPolicy
from deadstop.core.model import Intent
from deadstop.errors import LedgerUnavailable
from deadstop.fleet.member import KEEP, Member
from deadstop.fleet.post import Post, directory
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Opening, Orphans, Process, RemoteRun
from deadstop.runs.kept import monotonic, unix
from deadstop.testing import FakeOpenAI, faults

BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}
DEAD = Process("gone:1:1", "gone", 1)
files_alone = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


def worker_of(server: FakeOpenAI, url: str, **more: Any) -> Any:
    one = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    one.runs.policy = CancelPolicy(**{"timeout": 5.0, "recheck": 0, **more})
    return one


@pytest.fixture
def client(server: FakeOpenAI, url: str) -> Any:
    one = worker_of(server, url)
    yield one
    one.close()


def member_of(client: Any) -> Member:
    found: Member = client.runs._registry.keeper.member
    return found


def looks_again(client: Any) -> None:
    """It reads what is on record, as it does every few seconds."""
    member = member_of(client)
    member.read(member.read_again)
    assert member.reads.drain(20.0)


def once_it_looks(client: Any, condition: Any, what: str) -> None:
    until(lambda: looks_again(client) or condition(), what)


def stranger(server: FakeOpenAI) -> str:
    """A remote run that no ledger knows of; its id."""
    world = Threads()
    plain = world.client(server.base_url, max_retries=0)
    data = begin(world, plain)
    world.close(plain)
    return str(data["id"])


def left_behind(ledger: Ledger, server: FakeOpenAI, name: str = "chat-42", wanted: bool = True) -> str:
    """A process has died and left a remote run in a scope of that name, and maybe its cancel. The remote run's id."""
    now, id = time.time(), stranger(server)
    remote = RemoteRun("response", (id,), server.base_url, name, 0, DEAD.owner, now)
    ledger.record_remote(remote, Opening(name, DEAD, now), now=now)
    if wanted:
        ledger.record_intent(Intent(name, at=now), DEAD, now=now)
    return id


def fails_once(ledger: Any, name: str) -> None:
    """The ledger's method of that name fails when it is called next."""
    method, left = getattr(ledger, name), [1]

    def down(*args: Any, **kwargs: Any) -> Any:
        if left:
            left.pop()
            raise LedgerUnavailable("The server was restarted.")
        return method(*args, **kwargs)

    setattr(ledger, name, down)


# One after the other


@pytest.mark.parametrize("slow", [False, True], ids=["", "slow ledger"])
def test_the_next_turn_is_not_cancelled_with_the_last(client: Any, ledger: Ledger, slow: bool) -> None:
    """A name that is used for one turn after the other: each is a life of its own, also while the ledger is behind."""
    born: list[bool] = []
    for _ in range(4):
        with client.runs.open("chat-42", cancellers=["ann"]) as run:
            born.append(run.cancelled)
            if not run.cancelled:
                run.cancel(actor="ann")
            if slow:
                behind = threading.Event()
                member_of(client).writes.submit(lambda: behind.wait(0.3))  # noqa: B023
    assert member_of(client).writes.drain(20.0)
    assert born == [False] * 4
    assert len({each.epoch for each in ledger.runs("chat-42", ended=True)}) == 4


def test_a_cancel_by_address_on_a_second_loop(server: FakeOpenAI, url: str) -> None:
    """A program that runs one loop after the other, with a ledger: the run was begun on the loop that is over."""
    with open_world("asyncio") as world:
        limits = http_package(world).Limits(max_keepalive_connections=0)  # one of a loop that is over can't be closed
        http = http_client(world, limits=limits)
        client = world.client(server.base_url, max_retries=0, runs_url=url, http_client=http)
        client.runs.policy = CancelPolicy(timeout=5.0, recheck=0, on_timeout="return")
        data = begin(world, client, "chat-42")
    with open_world("asyncio") as world:
        receipt = world.run(client.runs.cancel, f"response:{data['id']}")
        world.close(client)
    assert (receipt.outcome, server.runs[0].truth) == ("cancelled", "cancelled")


@files_alone
def test_a_cancel_by_address_that_is_wanted_again_is_sent_again(server: FakeOpenAI, url: str) -> None:
    """The server took no cancels for a while; the second one is as good as the first, and is on record as well."""
    client = worker_of(server, url, timeout=0.5, attempt_timeout=0.5, give_up=0, on_timeout="return")
    id = stranger(server)
    server.add(faults.Overloaded(503), path="/cancel")
    assert client.runs.cancel(f"response:{id}").outcome == "unconfirmed"
    server.clear()
    assert client.runs.cancel(f"response:{id}", timeout=5.0).outcome == "cancelled"
    client.close()
    assert server.runs[0].truth == "cancelled"


@files_alone
def test_ids_that_the_server_does_not_know_do_not_pile_up(server: FakeOpenAI, url: str) -> None:
    """A cancel of what is not there leaves no run behind that is listed for ever."""
    client = worker_of(server, url, timeout=0.5, on_timeout="return", give_up=0)
    for number in range(3):
        client.runs.cancel(f"response:resp_{number}")
    assert [each.name for each in client.runs.list()] == []
    client.close()


# A ledger that fails for a moment


def test_a_claim_is_given_back_when_the_ledger_fails(server: FakeOpenAI, client: Any, ledger: Ledger) -> None:
    """The ledger failed just after this process had got the claim: it does not keep the others, and itself, from it."""
    fails_once(member_of(client).ledger, "intent")
    left_behind(ledger, server)
    once_it_looks(client, lambda: not ledger.open_intents(), "the outcome")
    assert server.runs[0].truth == "cancelled"


def test_an_outcome_that_could_not_be_kept_is_kept_later(client: Any, ledger: Ledger) -> None:
    """The ledger failed when there was an outcome; the next look at the record puts it there."""
    with client.runs.open("chat-42"):
        client.post("/responses", body=BACKGROUND, cast_to=JSON)
    fails_once(member_of(client).ledger, "settle")
    assert client.runs.cancel("chat-42").outcome == "cancelled"
    once_it_looks(client, lambda: ledger.receipts("chat-42"), "the outcome on record")
    assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]
    assert ledger.open_intents() == []


@files_alone
def test_a_process_that_lives_long_is_not_forgotten(client: Any, url: str, ledger: Ledger) -> None:
    """A process that has been there for longer than anything is kept is there still, and so are its runs."""
    member = member_of(client)
    assert member.writes.drain(20.0)
    ago = KEEP + 86_400
    with closing(sqlite3.connect(url[len("sqlite:///") :])) as by_hand, by_hand:
        by_hand.execute(
            "UPDATE deadstop_processes SET entered_at = entered_at - :ago, seen_at = seen_at - :ago", {"ago": ago}
        )
    member._beaten -= ago
    looks_again(client)
    with client.runs.open("chat-42", orphans="cancel"):
        until(lambda: ledger.runs("chat-42"), "its record")
        other = Member(url)  # who starts keeps house
        assert other.writes.drain(20.0)
        assert other.alive(member.process.owner)
        assert ledger.runs("chat-42")
    other.close()


# What the dead leave behind


@pytest.mark.parametrize("second", ["realtime", "another server"])
def test_a_scope_with_runs_of_two_servers_is_finished(
    server: FakeOpenAI, url: str, client: Any, ledger: Ledger, second: str
) -> None:
    """A client does its own server's share; what lived on a connection is nobody's, for that ended with its process.
    What is another server's leaves the cancel open, for a client of that one."""
    left_behind(ledger, server, wanted=False)
    now = time.time()
    of = {"realtime": ("realtime_response", "resp_rt", "realtime")}
    kind, id, base = of.get(second, ("response", "resp_9", "http://127.0.0.1:9/v1"))
    ledger.record_remote(RemoteRun(kind, (id,), base, "chat-42", 1, DEAD.owner, now), now=now)
    ledger.record_intent(Intent("chat-42", at=now), DEAD, now=now)
    once_it_looks(client, lambda: server.runs[0].truth == "cancelled", "the cancel")
    if second == "realtime":
        once_it_looks(client, lambda: ledger.receipts("chat-42"), "the outcome")
    else:
        once_it_looks(client, lambda: not client.runs._registry.keeper.pick_up.busy, "the end of it")
        assert [each.run for each in ledger.open_intents()] == ["chat-42"]


def test_the_pauses_between_tries_are_kept(server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """A cancel that the server did not confirm is tried again after a while, and not each time that something else is
    looked after."""
    left_behind(ledger, server)
    server.add(faults.Overloaded(503), path="/cancel")
    worker = worker_of(server, url, timeout=0.5, attempt_timeout=0.5)
    once_it_looks(worker, lambda: [each.outcome for each in ledger.open_intents()] == ["unconfirmed"], "a try")
    pick_up = worker.runs._registry.keeper.pick_up
    before = set(pick_up._tries)
    left_behind(ledger, server, "another")
    another = ledger.intent("another")
    pick_up([another])  # a canceller that looks gives its own intent alone
    after = set(pick_up._tries)
    worker.close()
    assert ("chat-42", 1) in before
    assert ("chat-42", 1) in after


@files_alone
def test_the_grace_of_orphans_begins_when_their_process_is_found_dead(
    server: FakeOpenAI, url: str, client: Any, ledger: Ledger
) -> None:
    """A process of this host gives no sign of life while it lives, so its last one says nothing of its death."""
    host, began = socket.gethostname(), time.time()
    gone, entered = Process(f"{host}:1:gone:x", host, 1, str(directory() / "gone.sock")), began - 60.0
    ledger.enter(gone, now=entered)
    opening = Opening("chat-42", gone, entered, orphans=Orphans.CANCEL, orphan_grace=2.0)
    remote = RemoteRun("response", (stranger(server),), server.base_url, "chat-42", 0, gone.owner, entered)
    ledger.record_remote(remote, opening, now=entered)
    once_it_looks(client, lambda: server.runs[0].truth == "cancelled", "the end of the orphan")
    assert time.time() - began > 2.0


@files_alone
def test_a_process_with_many_orphans_to_be_is_asked_once(
    server: FakeOpenAI, url: str, client: Any, ledger: Ledger
) -> None:
    """Whether it is there does not depend on how many runs it has."""
    holder, member = Member(url), member_of(client)
    assert isinstance(member.post, Post)
    assert holder.writes.drain(20.0)
    now, by, asked = time.time(), holder.process, list[str]()
    opening = Opening("many", by, now, orphans=Orphans.CANCEL)
    for number in range(50):
        remote = RemoteRun("response", (f"resp_{number}",), server.base_url, "many", 0, by.owner, now)
        ledger.record_remote(remote, opening, now=now)
    send = member.post.send
    member.post.send = lambda address, message: asked.append(message["do"]) or send(address, message)
    looks_again(client)
    assert 1 <= asked.count("ping") <= 5, "once for each look, and it may have looked by itself"
    holder.close()


@files_alone
def test_a_cancel_by_address_that_is_finished_here_is_the_one_on_record(
    client: Any, server: FakeOpenAI, ledger: Ledger
) -> None:
    """A process died with it, and the scope of the remote run is open here: whoever is in it is told of that cancel,
    and the record has one cancel with its outcome."""
    with client.runs.open("chat-42") as run:
        made = client.post("/responses", body=BACKGROUND, cast_to=JSON)
        assert member_of(client).writes.drain(20.0)
        name, now = f"response:{made['id']}", time.time()
        opening = Opening(name, DEAD, now)
        ledger.record_intent(Intent(name, reason="enough", at=now), DEAD, opening=opening, now=now)
        once_it_looks(client, ledger.receipts, "the outcome")
        with pytest.raises(deadstop.RunCancelledError, match="enough"):
            client.runs.get(name).check()
        assert not run.cancelled
    assert member_of(client).writes.drain(20.0)
    assert [(each.run, each.epoch, each.outcome) for each in ledger.receipts()] == [(name, 1, "cancelled")]
    assert server.runs[0].truth == "cancelled"


def test_a_thread_that_is_held_up_between_the_clocks_reads_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a run was opened decides whether an earlier cancel of its name is for it: a busy machine moves it by
    nothing."""
    read, held_up = time.time, [0.3]

    def slow() -> float:
        now = read()
        if held_up:
            threading.Event().wait(held_up.pop())
        return now

    before, moment = time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", slow)
    assert abs(unix(moment) - before) < 0.1
    held_up.append(0.3)
    assert abs(monotonic(before) - moment) < 0.1
