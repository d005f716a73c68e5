"""Hosts with a ledger each and a bus between them: what one of them left behind is finished by another (I3, I7)."""

from __future__ import annotations

import logging
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Dict  # noqa: UP035

import pytest
from fleet_homes import Child
from fleet_hosts import HOLDER, Worker, at, client_at, found, hands, holder, jobs_of, left, outcomes
from nats_kit import NatsServer, nats_server, program
from worlds import until

from deadstop import CancelPolicy, RunCancelledError
from deadstop.fleet import jobs, jobs_claims, members
from deadstop.ledger import connect
from deadstop.testing import FakeOpenAI
from deadstop.testing.faults import CancelReplySlow, SlowHeaders, StaysCancelling

pytestmark = pytest.mark.skipif(program() is None, reason="no NATS comes as a package for this platform")

BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}
TAKEOVER = 10.0
"""Within how many seconds others have to have finished what a dead process left behind, or a worker had in hand."""


@pytest.fixture(autouse=True)
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of one host's file; `there()` is another's."""
    state = tempfile.mkdtemp(prefix="ds-")
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.delenv("DEADSTOP_URL", raising=False)
    try:
        yield f"sqlite:///{state}/a.db"
    finally:
        for each in list(members._members.values()):
            each.close()
        members._members.clear()
        shutil.rmtree(state)


@pytest.fixture
def bus() -> str:
    """The URL of a bus, with a space of the test's own."""
    return nats_server().space()


@pytest.fixture
def own() -> Iterator[NatsServer]:
    """A server that the test may stop, and that keeps its files."""
    where = tempfile.mkdtemp(prefix="nats-")
    server = NatsServer("-js", "-sd", where)
    yield server
    server.kill()
    shutil.rmtree(where, ignore_errors=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever works in this process looks often, and misses nobody for long."""
    monkeypatch.setattr(jobs, "LOOK", 0.05)
    monkeypatch.setattr(jobs, "IDLE", 0.05)
    monkeypatch.setattr(jobs_claims, "GONE", 0.3)


@pytest.fixture
def worker() -> Iterator[Any]:
    """Starts workers, and ends them after the test."""
    pytest.importorskip("typer")
    started: list[Worker] = []

    def start(url: str, base_url: str, *options: str) -> Worker:
        started.append(Worker(url, base_url, *options))
        return started[-1]

    yield start
    for each in started:
        each.end()


# One host dies


def test_what_a_dead_host_left_behind_is_finished_on_another(
    server: FakeOpenAI, child: Any, worker: Any, url: str, bus: str
) -> None:
    """Its cancel is on its own record and on the bus, and it is killed before its request has left: `reconcile` on
    another host confirms the cancel within 10 seconds, and has the receipt."""
    there = at(url, "b")
    one = worker(f"{there} {bus}", server.base_url)
    other = holder(child, f"{url} {bus}", server.base_url)
    one.ready()
    other.kill()
    began = time.monotonic()
    until(lambda: outcomes(there), "the receipt on the other host")
    took = time.monotonic() - began
    print(f"finished on another host after {took:.1f} s")
    assert outcomes(there) == ["cancelled"]
    assert [(run.truth, run.cancels, run.most_cancels) for run in server.runs] == [("cancelled", 1, 1)]
    assert took < TAKEOVER
    with connect(there) as ledger:
        [kept] = ledger.receipts()
        assert (kept.run, kept.receipt.reason, kept.receipt.actor) == ("chat-0", "stop", "ann")
    until(lambda: found(bus) == {}, "the end of the job")
    assert one.stop() == "1 finished.\n"
    # The host that died is back, with its own record: it reads how the run stands, and sends nothing.
    client = client_at(server, f"{url} {bus}")
    until(lambda: outcomes(url), "the receipt on the first host")
    assert outcomes(url) == ["cancelled"]
    assert [run.cancels for run in server.runs] == [1]
    client.close()


def test_a_request_that_had_left_is_not_sent_again(
    server: FakeOpenAI, child: Any, url: str, bus: str, quick: None
) -> None:
    """The host is killed before it hears what came of it: whoever takes over reads how the run stands."""
    other = holder(child, f"{url} {bus}", server.base_url, stuck="after")
    server.wait_for_runs(lambda runs: runs[0].cancels == 1, 20.0)
    other.kill()
    client = client_at(server, f"{at(url, 'b')} {bus}")
    until(lambda: outcomes(at(url, "b")) == ["cancelled"], "the receipt")
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]
    client.close()


def test_a_live_owner_is_left_alone(
    server: FakeOpenAI, child: Any, url: str, bus: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often others look, and however long its cancel takes, for as long as it is on the bus."""
    looks: list[float] = []
    look = jobs.Jobs._look

    async def looking(mine: Any, *what: Any) -> None:
        await look(mine, *what)
        if mine._seen:
            looks.append(time.monotonic())

    monkeypatch.setattr(jobs.Jobs, "_look", looking)
    other = holder(child, f"{url} {bus}", server.base_url)
    client = client_at(server, f"{at(url, 'b')} {bus}")
    until(lambda: len(looks) > 30 and looks[-1] - looks[0] > 1.5, "many looks")
    assert [run.cancels for run in server.runs] == [0]
    assert outcomes(at(url, "b")) == []
    other.kill()
    until(lambda: outcomes(at(url, "b")) == ["cancelled"], "the receipt")
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]
    client.close()


def test_a_cancel_that_is_settled_is_nobodys_job(server: FakeOpenAI, url: str, bus: str) -> None:
    """It is in the stream while it is under way, and taken out with its outcome."""
    server.add(StaysCancelling(0.3))
    client = client_at(server, f"{url} {bus}")
    with client.runs.open("chat-1") as run:
        begun: Any = client.post("/responses", body=BACKGROUND, cast_to=Dict[str, object])  # noqa: UP006
        run.cancel_soon(reason="stop", actor="ann")
        until(lambda: found(bus), "the job")
        job = found(bus).get("chat-1")
        assert run.cancel().outcome == "cancelled"
    assert job is not None
    assert [(each.kind, each.ids) for each in job.targets] == [("response", (begun["id"],))]
    assert (job.intent.reason, job.intent.actor, job.with_owner) == ("stop", "ann", True)
    until(lambda: found(bus) == {}, "its end")
    client.close()


def test_calls_and_runs_that_nobody_cancels_cost_nothing(server: FakeOpenAI, url: str, bus: str) -> None:
    """Calls die with their process, so their cancels are no jobs; and there is no stream before there is one."""
    client = client_at(server, f"{url} {bus}")
    assert jobs_of(client)._looked.wait(20.0)
    with client.runs.open("chat-1"):
        client.post("/responses", body=BACKGROUND, cast_to=Dict[str, object])  # noqa: UP006
    with client.runs.open("chat-2") as run:
        stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
        assert run.cancel().outcome == "cancelled"
        with pytest.raises(RunCancelledError):
            list(stream)
    assert client.runs._registry.keeper.member.writes.drain(20.0)
    jobs_of(client).flush(20.0)
    assert found(bus) == {}
    client.close()


def test_a_bus_alone_is_enough_to_finish_each_others_cancels(
    server: FakeOpenAI, child: Any, bus: str, quick: None
) -> None:
    """No record on either host: the job has all that it takes."""
    other = holder(child, bus, server.base_url)
    client = client_at(server, bus)
    other.kill()
    ledger = client.runs._registry.keeper.member.ledger
    until(ledger.receipts, "the receipt")
    assert [(each.run, each.outcome) for each in ledger.receipts()] == [("chat-0", "cancelled")]
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]
    client.close()


def test_a_job_of_another_server_waits_for_its_own(
    server: FakeOpenAI, child: Any, url: str, bus: str, quick: None
) -> None:
    """A key is one server's: who has a client for another leaves it alone."""
    other = holder(child, f"{url} {bus}", server.base_url)
    other.kill()
    with FakeOpenAI() as elsewhere:
        wrong = client_at(elsewhere, f"{at(url, 'b')} {bus}")
        right = client_at(server, f"{at(url, 'c')} {bus}")
        until(lambda: outcomes(at(url, "c")) == ["cancelled"], "the receipt")
        assert (outcomes(at(url, "b")), elsewhere.requests) == ([], [])
        for each in (wrong, right):
            each.close()


# Workers


def test_a_stopped_worker_is_overtaken_and_cancels_nothing_when_it_goes_on(
    server: FakeOpenAI, child: Any, worker: Any, url: str, bus: str
) -> None:
    """It was stopped with the job in hand, before its request had left: the only one is that of whoever takes over."""
    first = worker(f"{at(url, 'b')} {bus}", server.base_url)
    other = holder(child, f"{url} {bus}", server.base_url)
    first.ready()
    reads = f"/responses/{server.runs[0].id}"
    server.add(SlowHeaders(10.0), path=reads, times=1)
    other.kill()
    server.wait_for(lambda requests: requests[-1].path.endswith(reads), 20.0)  # it has the job, and reads how it stands
    first.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert found(bus)["chat-0"].worker.split(":")[1] == str(first.process.pid)
    second = client_at(server, f"{at(url, 'c')} {bus}")
    until(lambda: outcomes(at(url, "c")), "the receipt")
    print(f"a stopped worker's job was finished after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < TAKEOVER
    before = len(server.requests)
    first.signal(signal.SIGCONT)
    until(lambda: outcomes(at(url, "b")) == ["cancelled"], "the outcome on its own record")
    assert [each.method for each in server.requests[before:]] == ["GET"]  # by which it knows
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]
    second.close()


def test_a_job_that_came_to_nothing_is_tried_again(server: FakeOpenAI, child: Any, url: str, bus: str, quick: None,
    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The server does nothing in time: unconfirmed on that host's record, then by whoever comes next, and refined."""
    monkeypatch.setattr(jobs_claims, "PAUSE", 0.2)
    server.add(StaysCancelling(1.5))
    other = holder(child, f"{url} {bus}", server.base_url)
    client = client_at(server, f"{at(url, 'b')} {bus}")
    client.runs.policy = CancelPolicy(timeout=0.5, recheck=0)
    other.kill()
    until(lambda: outcomes(at(url, "b")) == ["unconfirmed"], "a first try that comes to nothing")
    until(lambda: "cancelled" in outcomes(at(url, "b")), "the refinement")
    until(lambda: found(bus) == {}, "the end of the job")
    assert [(run.truth, run.most_cancels) for run in server.runs] == [("cancelled", 1)]
    client.close()


# The server


def test_without_jetstream_all_is_as_before(
    server: FakeOpenAI, child: Any, url: str, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """No warning, no delay; what a dead host left behind waits for it, and is finished once it is back."""
    plain = NatsServer()
    try:
        other: Child = child(f"{url} {plain.url()}", server.base_url, "1", "before", script=HOLDER)
        assert other.line() == "ready"
        with caplog.at_level(logging.WARNING, "deadstop"):
            client = client_at(server, f"{at(url, 'b')} {plain.url()}")
            until(jobs_of(client)._looked.is_set, "a look")
            assert not jobs_of(client).up
            with client.runs.open("chat-1") as run:
                client.post("/responses", body=BACKGROUND, cast_to=Dict[str, object])  # noqa: UP006
                began = time.monotonic()
                assert run.cancel().outcome == "cancelled"
                until(lambda: not jobs_of(client)._own._mine, "nothing that waits to be said")
                client.close()
                assert time.monotonic() - began < 3.0
        assert caplog.text == ""
        other.say("cancel")
        assert other.line() == "kept"
        other.kill()
        back = client_at(server, f"{url} {plain.url()}")
        until(lambda: outcomes(url) == ["cancelled"], "the receipt on the host that is back")
        back.close()
    finally:
        plain.kill()


def test_a_restart_of_the_server_loses_no_job(
    server: FakeOpenAI, child: Any, worker: Any, url: str, own: NatsServer
) -> None:
    """It is killed after the owner, and started again before anybody has looked: the job is in its files, and
    `reconcile --once`, for a timer, waits until it is free, and ends when it is done."""
    bus = own.url("test")
    other = holder(child, f"{url} {bus}", server.base_url)
    other.kill()
    own.kill()
    own.start()
    assert list(found(bus)) == ["chat-0"]
    one = worker(f"{at(url, 'b')} {bus}", server.base_url, "--once").ready()
    assert one.last() == "1 finished.\n"
    assert outcomes(at(url, "b")) == ["cancelled"]
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]


def test_a_restart_of_the_server_takes_no_job_from_its_owner(
    server: FakeOpenAI, child: Any, url: str, own: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody is off the bus for a while: that is no death. What was seen before does not count afterwards."""
    monkeypatch.setattr(jobs, "LOOK", 0.05)
    bus = own.url("test")
    holder(child, f"{url} {bus}", server.base_url)
    client = client_at(server, f"{at(url, 'b')} {bus}")
    until(lambda: jobs_of(client)._seen, "the job")
    own.kill()
    until(lambda: not jobs_of(client).up, "the end of the bus")
    own.start()
    until(lambda: jobs_of(client)._seen, "the job once more")
    seen = next(iter(jobs_of(client)._seen.values()))
    until(lambda: elapsed_since(seen) > jobs_claims.GONE + 0.5, "more time than an owner may be missing for")
    assert [run.cancels for run in server.runs] == [0]
    client.close()


def elapsed_since(seen: Any) -> float:
    return float(jobs_claims.elapsed() - seen.since)


# All at once


@pytest.mark.timeout(120)
def test_whatever_happens_to_workers_every_run_is_cancelled_once_at_a_time(
    server: FakeOpenAI, child: Any, worker: Any, url: str, bus: str
) -> None:
    """A host dies with 30 cancels under way; three workers finish them, one of which is killed and one stopped with
    jobs in hand: all confirmed, never two requests for a run at once, each takeover within 10 seconds."""
    server.add(CancelReplySlow(0.3))
    server.add(StaysCancelling(0.5))
    count, began, dice = 30, time.monotonic(), random.Random(7)
    other = holder(child, f"{url} {bus}", server.base_url, count)
    workers = [worker(f"{at(url, host)} {bus}", server.base_url) for host in "bcd"]
    for each in workers:
        each.ready()
    other.kill()
    died, takeovers = time.monotonic(), list[str]()
    for number in (signal.SIGKILL, signal.SIGSTOP):
        in_hand: list[tuple[Worker, set[str]]] = []
        until(lambda: in_hand.extend(hands(bus, workers)) or in_hand, "a worker with a job in hand")  # noqa: B023
        victim, names = dice.choice(in_hand)
        victim.signal(number)
        then = time.monotonic()
        tokens = {name: job.worker for name, job in found(bus).items() if name in names}
        until(lambda: not left(bus, tokens), "others to take over")  # noqa: B023
        takeovers.append(f"{len(tokens)} jobs in {time.monotonic() - then:.1f} s")
        assert time.monotonic() - then < TAKEOVER
        workers.remove(victim)
        if number == signal.SIGSTOP:
            victim.signal(signal.SIGCONT)
    until(lambda: all(run.truth == "cancelled" for run in server.runs) and found(bus) == {}, "the last cancels")
    requests = Counter(run.cancels for run in server.runs)
    print(
        f"{count} cancels finished {time.monotonic() - died:.1f} s after their host's end; one worker killed, one ",
        end="",
    )
    print(f"stopped: taken over {', '.join(takeovers)}; requests for a run: {dict(requests)}; ", end="")
    print(f"{time.monotonic() - began:.0f} s")
    assert max(run.most_cancels for run in server.runs) == 1
    receipts = Counter(each for host in "bcd" for each in outcomes(at(url, host)))
    assert set(receipts) == {"cancelled"}
    assert receipts["cancelled"] >= count
