"""A cancel from another host over NATS: with a ledger that both use, with one on each host, and with none at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_homes import Child
from nats_kit import NatsServer, nats_server, program
from worlds import until

from deadstop import CancelPolicy, RunCancelledError, UnknownRunError
from deadstop.errors import CancelRefusedError, LedgerUnavailable
from deadstop.fleet import exchange
from deadstop.fleet.roll import roll_call
from deadstop.ledger import connect
from deadstop.ledger.base import Ledger
from deadstop.testing import FakeOpenAI

pytestmark = pytest.mark.skipif(program() is None, reason="no NATS comes as a package for this platform")

threads_alone = pytest.mark.parametrize("world", ["threads"], indirect=True)
ELSEWHERE = {"HOST": "elsewhere", "DEAF": "1"}
"""A child that seems to be on another host, and does not look at the record on its own: it has the bus alone."""

SOON = 1.0
"""Within this (seconds) nothing is found by looking at the record again."""


@pytest.fixture
def bus() -> str:
    """The URL of a bus, with a space of the test's own."""
    return nats_server().space()


@pytest.fixture
def own() -> Iterator[NatsServer]:
    """A server that the test may stop."""
    server = NatsServer()
    yield server
    server.kill()


def client_at(world: Any, server: FakeOpenAI, url: str) -> Any:
    one = world.client(server.base_url, max_retries=0, runs_url=url)
    one.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
    return one


@pytest.fixture
def client(world: Any, server: FakeOpenAI, url: str, bus: str) -> Any:
    one = client_at(world, server, f"{url} {bus}")
    yield one
    world.close(one)


@pytest.fixture
def alone(world: Any, server: FakeOpenAI, url: str, bus: str) -> Any:
    """A client with a bus, and no ledger."""
    one = client_at(world, server, bus)
    yield one
    world.close(one)


def hold(child: Any, world: Any, url: str, server: FakeOpenAI, *what: str, **env: str) -> Child:
    """A child of the same sort that holds a run; `what` is under way in it, and it can be reached over the bus."""
    one: Child = child("tasks" if world.is_async else "threads", url, server.base_url, "chat-42", *what, **env)
    for _ in what:
        assert one.line() == "ready"
    if "call" in what:
        server.wait_for(lambda requests: any(each.tokens_generated for each in requests), 20.0)
    return one


def bus_of(client: Any) -> Any:
    return client.runs._registry.keeper.member.exchange.bus


def held(client: Any, name: str = "chat-42") -> None:
    """Until somebody on the bus holds that run."""
    member = client.runs._registry.keeper.member
    until(lambda: any(each.run == name for each in roll_call(member, 0.2)), "the run on the bus")


# One ledger for all


def test_a_cancel_reaches_a_holder_on_another_host(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, bus: str, ledger: Ledger
) -> None:
    """The caller there is freed at once, with who and why; here comes the receipt, of the call and the remote run."""
    other = hold(child, world, f"{url} {bus}", server, "remote", "call", **ELSEWHERE)
    held(client)
    began = time.monotonic()
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop", actor="ann")
    assert other.line() == "cancelled chat-42 stop ann"
    assert time.monotonic() - began < SOON
    assert (receipt.outcome, receipt.reason, receipt.actor) == ("cancelled", "stop", "ann")
    assert [each.kind for each in receipt.children] == ["response"]
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]
    other.end()
    assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]
    assert ledger.open_intents() == ledger.parked(now=0.0) == []


@threads_alone
def test_that_nobody_holds_a_run_is_known_at_once(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, bus: str
) -> None:
    """Although a process of another host lives: it is on the bus, and would have answered."""
    other = hold(child, world, f"{url} {bus}", server, "call", **ELSEWHERE)
    held(client)
    began = time.monotonic()
    assert world.run(client.runs.cancel, "chat-43").outcome == "parked"
    assert time.monotonic() - began < SOON
    other.kill()


@threads_alone
def test_one_that_is_not_on_the_bus_is_waited_for(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of another host that has no bus finds the cancel on record, and its receipt comes all the same."""
    monkeypatch.setattr(exchange, "MISSED", 60.0)  # no signs of life are written to a file
    other = hold(child, world, url, server, "call", HOST="elsewhere")
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop")
    assert other.line() == "cancelled chat-42 stop None"
    assert receipt.outcome == "cancelled"


def test_a_dead_holder_of_another_host_is_noticed(
    world: Any,
    client: Any,
    server: FakeOpenAI,
    child: Any,
    url: str,
    bus: str,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not on the bus, and has given no sign of life for a while: its remote run is cancelled from here."""
    monkeypatch.setattr(exchange, "MISSED", 1.0)
    other = hold(child, world, f"{url} {bus}", server, "remote", **ELSEWHERE)
    until(ledger.active_remotes, "the remote run's record")
    other.kill()
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop", actor="ann")
    assert (receipt.outcome, receipt.reason, receipt.evidence) == ("cancelled", "stop", "status")
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]


@threads_alone
def test_a_live_holder_whose_bus_is_down_is_not_taken_for_dead(
    world: Any, server: FakeOpenAI, child: Any, url: str, bus: str, own: NatsServer, ledger: Ledger, monkeypatch: Any
) -> None:
    """It finds the cancel on record, and strikes itself; nobody cancels in its place."""
    monkeypatch.setattr(exchange, "MISSED", 60.0)  # no signs of life are written to a file
    client = client_at(world, server, f"{url} {bus}")
    other = hold(child, world, f"{url} {own.url()}", server, "remote", "call", HOST="elsewhere")
    until(ledger.active_remotes, "the remote run's record")
    own.kill()
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop")
    assert other.line() == "cancelled chat-42 stop None"
    assert receipt.outcome == "cancelled"
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]
    world.close(client)


@threads_alone
def test_a_refusal_comes_over_the_bus(
    world: Any, alone: Any, server: FakeOpenAI, child: Any, url: str, bus: str
) -> None:
    """A run that names who may cancel it is cancelled by nobody else from another host (I19)."""
    other = hold(child, world, bus, server, "call", CANCELLERS="ann", **ELSEWHERE)
    held(alone)
    with pytest.raises(CancelRefusedError):
        world.run(alone.runs.cancel, "chat-42", actor="bob")
    assert world.run(alone.runs.cancel, "chat-42", actor="ann", reason="stop").outcome == "cancelled"
    assert other.line() == "cancelled chat-42 stop ann"


@threads_alone
def test_a_holder_that_dies_of_its_cancel_has_answered_before(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, bus: str, monkeypatch: Any, ledger: Ledger
) -> None:
    """The answer is out before the strike, so nothing stays parked; that it is gone is no proof from afar (I2)."""
    monkeypatch.setattr(exchange, "MISSED", 1.0)
    client.runs.policy = CancelPolicy(timeout=10.0, on_timeout="return")
    hold(child, world, f"{url} {bus}", server, "die", **ELSEWHERE)
    held(client)
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop")
    assert receipt.outcome == "unconfirmed"
    assert "cut off" in receipt.note
    assert receipt.elapsed < 8.0
    assert ledger.parked(now=0.0) == []


@threads_alone
@pytest.mark.parametrize("theirs", [{}, {"DOWN": "1"}], ids=["here", "everywhere"])
def test_a_ledger_that_is_down_stops_no_cancel_over_the_bus(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, bus: str, theirs: Any
) -> None:
    """The holder is reached, its receipt comes; where nobody holds the run, the ledger's error does."""
    other = hold(child, world, f"{url} {bus}", server, "call", **ELSEWHERE, **theirs)
    held(client)
    ledger = client.runs._registry.keeper.member.ledger

    def down(*args: Any, **kwargs: Any) -> Any:
        raise LedgerUnavailable("The database is down.")

    for each in ("record_intent", "processes", "intent", "open_run"):
        setattr(ledger, each, down)
    assert world.run(client.runs.cancel, "chat-42", reason="stop").outcome == "cancelled"
    assert other.line() == "cancelled chat-42 stop None"
    with pytest.raises(LedgerUnavailable):
        world.run(client.runs.cancel, "chat-43")


# A ledger for each host


def test_a_cancel_reaches_a_holder_with_a_ledger_of_its_own(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, bus: str, ledger: Ledger
) -> None:
    """The outcome is on record on both hosts, and the next run of that name is not born cancelled on either."""
    there = url.replace("ledger.db", "elsewhere.db")
    other = hold(child, world, f"{there} {bus}", server, "remote", "call", **ELSEWHERE)
    held(client)
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop", actor="ann")
    assert other.line() == "cancelled chat-42 stop ann"
    assert (receipt.outcome, receipt.reason, receipt.actor) == ("cancelled", "stop", "ann")
    assert [each.kind for each in receipt.children] == ["response"]
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]
    other.end()
    with connect(there) as theirs:
        for each in (ledger, theirs):
            assert [kept.outcome for kept in each.receipts("chat-42")] == ["cancelled"]
            assert each.open_intents() == each.parked(now=0.0) == []
    with FakeOpenAI(rate=0, tokens=3) as quick:
        again = world.client(quick.base_url, runs_url=f"{url} {bus}")
        assert world.run(world.create, again, "chat-42")
        world.close(again)


@threads_alone
@pytest.mark.parametrize("wait", ["sent", "accepted"])
def test_nothing_stays_parked_for_one_who_does_not_wait(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, bus: str, ledger: Ledger, wait: str
) -> None:
    """The holder with a ledger of its own strikes, and the tombstone here is withdrawn."""
    other = hold(child, world, f"{url.replace('ledger', 'there')} {bus}", server, "call", **ELSEWHERE)
    held(client)
    world.run(client.runs.cancel, "chat-42", reason="stop", wait=wait)
    assert other.line() == "cancelled chat-42 stop None"
    until(lambda: ledger.parked(now=0.0) == [], "the tombstone's end")


@threads_alone
def test_a_holder_that_is_gone_is_not_taken_for_cancelled(
    world: Any, alone: Any, server: FakeOpenAI, child: Any, bus: str, url: str
) -> None:
    """It took the cancel up and vanished from the bus: without a ledger in common that proves nothing (I2)."""
    hold(child, world, bus, server, "die", **ELSEWHERE)
    held(alone)
    alone.runs.policy = CancelPolicy(timeout=10.0, on_timeout="return")
    receipt = world.run(alone.runs.cancel, "chat-42")
    assert receipt.outcome == "unconfirmed"
    assert "over the bus" in receipt.note
    assert receipt.elapsed < 8.0


# No ledger


def test_a_bus_alone_is_enough_to_reach_a_holder(
    world: Any, alone: Any, server: FakeOpenAI, child: Any, bus: str, url: str
) -> None:
    """A cancel by name from another host, with nothing on record anywhere; also from a client just made."""
    other = hold(child, world, bus, server, "call", **ELSEWHERE)
    held(alone)
    fresh = client_at(world, server, bus)
    receipt = world.run(fresh.runs.cancel, "chat-42", reason="stop", actor="ann")
    assert other.line() == "cancelled chat-42 stop ann"
    assert (receipt.outcome, receipt.reason, len(receipt.calls)) == ("cancelled", "stop", 1)
    world.close(fresh)


@threads_alone
def test_a_run_that_nobody_on_the_bus_holds_is_unknown_at_once(
    world: Any, alone: Any, server: FakeOpenAI, child: Any, bus: str, url: str
) -> None:
    """No responders: never held, or held by a process that was killed a moment ago."""
    other = hold(child, world, bus, server, "call", **ELSEWHERE)
    held(alone)
    for dead, name in ((False, "chat-43"), (True, "chat-42")):
        if dead:
            other.kill()
            until(lambda: not roll_call(alone.runs._registry.keeper.member, 0.1), "its end")
        began = time.monotonic()
        with pytest.raises(UnknownRunError):
            world.run(alone.runs.cancel, name)
        assert time.monotonic() - began < SOON


# The server comes and goes


def test_a_bus_that_is_down_at_the_start_is_a_warning(
    world: Any, server: FakeOpenAI, child: Any, url: str, own: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The client is made at once, runs here are cancelled, others can't be; and it is found when it comes up."""
    own.kill()
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "deadstop"):
        client = client_at(world, server, own.url())
        assert time.monotonic() - began < 5.0
        with pytest.raises(LedgerUnavailable) as down:
            world.run(client.runs.cancel, "chat-43")
        assert f"nats://127.0.0.1:{own.port}" in str(down.value)
        assert "can't be reached now" in caplog.text
    call = world.start(world.create, client, "chat-1")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    assert world.run(client.runs.cancel, "chat-1", reason="stop").outcome == "cancelled"
    assert isinstance(call.failure(), RunCancelledError)
    own.start()
    until(lambda: bus_of(client).up, "the bus")
    other = hold(child, world, own.url(), server, "call", **ELSEWHERE)
    held(client)
    assert world.run(client.runs.cancel, "chat-42", reason="stop").outcome == "cancelled"
    assert other.line() == "cancelled chat-42 stop None"
    world.close(client)


def test_a_bus_that_restarts_is_found_again(
    world: Any, server: FakeOpenAI, child: Any, url: str, own: NatsServer
) -> None:
    """Holders and cancellers connect again by themselves, and what is held is known on the new server."""
    client = client_at(world, server, own.url())
    other = hold(child, world, own.url(), server, "call", **ELSEWHERE)
    held(client)
    own.kill()
    until(lambda: not bus_of(client).up, "the end of the bus")
    own.start()
    held(client)
    assert world.run(client.runs.cancel, "chat-42", reason="stop").outcome == "cancelled"
    assert other.line() == "cancelled chat-42 stop None"
    world.close(client)


@threads_alone
def test_a_cancel_while_the_bus_is_down_is_made_good_by_the_record(
    world: Any, server: FakeOpenAI, child: Any, url: str, own: NatsServer
) -> None:
    """The holder reads the open intents again, while the bus is down."""
    client = client_at(world, server, f"{url} {own.url()}")
    other = hold(child, world, f"{url} {own.url()}", server, "call", HOST="elsewhere")
    held(client)
    own.kill()
    until(lambda: not bus_of(client).up, "the end of the bus")
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop")
    assert other.line() == "cancelled chat-42 stop None"
    assert receipt.outcome == "cancelled"
    world.close(client)


@threads_alone
def test_a_holder_looks_at_the_record_as_soon_as_the_bus_is_back(
    world: Any, server: FakeOpenAI, child: Any, url: str, own: NatsServer, ledger: Ledger
) -> None:
    """What was asked while it was cut off is struck with the first connection, without any look in between."""
    client = client_at(world, server, url)
    other = hold(child, world, f"{url} {own.url()}", server, "call", **ELSEWHERE)
    own.kill()
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop", wait="sent")
    at_most = {"accepted"} if url.startswith("postgres") else set()  # which has a way of its own to the holder
    assert receipt.outcome in {"parked", "sent", *at_most}
    own.start()
    assert other.line() == "cancelled chat-42 stop None"
    world.close(client)


@threads_alone
def test_a_question_that_the_bus_lost_is_asked_again(
    world: Any, alone: Any, server: FakeOpenAI, child: Any, bus: str, url: str
) -> None:
    """No answer within a second: once more, for as long as the cancel's timeout."""
    other = hold(child, world, bus, server, "call", **ELSEWHERE)
    held(alone)
    one, lost = bus_of(alone), []
    ask = one.ask
    one.ask = lambda *what: lost.append(what) if not lost else ask(*what)
    assert world.run(alone.runs.cancel, "chat-42", reason="stop").outcome == "cancelled"
    assert other.line() == "cancelled chat-42 stop None"
    assert len(lost) == 1
