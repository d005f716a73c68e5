"""What is on its way over the bus at a bad moment: to a holder that just lets go, on a connection that just ends."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest
from fleet_proxy import Proxy
from nats_kit import nats_server, program
from worlds import CHAT, until

import deadstop
from deadstop import CancelPolicy, RunCancelledError
from deadstop.fleet.addresses import split
from deadstop.fleet.member import Member
from deadstop.testing import FakeOpenAI

pytestmark = [
    pytest.mark.skipif(program() is None, reason="no NATS comes as a package for this platform"),
    pytest.mark.parametrize("url", ["sqlite"], indirect=True),
]


@pytest.fixture
def bus() -> str:
    """The URL of a bus, with a space of the test's own."""
    return nats_server().space()


@pytest.fixture
def proxy(bus: str) -> Iterator[Proxy]:
    """What is between the holder and that bus."""
    made = Proxy(bus)
    yield made
    made.close()


@pytest.fixture
def asker(url: str, bus: str) -> Iterator[Member]:
    made = Member(f"memory: {bus}")
    exchange: Any = made.exchange
    until(lambda: exchange.bus.up, "the bus")
    yield made
    made.close()


@pytest.fixture
def holder(url: str, server: FakeOpenAI, proxy: Proxy) -> Iterator[Any]:
    """A client that has a bus and no ledger."""
    made: Any = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=proxy.url)
    made.runs.policy = CancelPolicy(timeout=10.0)
    until(lambda: bus_of(made).up, "the holder's bus")
    yield made
    made.close()


def bus_of(client: Any) -> Any:
    return client.runs._registry.keeper.member.exchange.bus


def turns(bus: Any, many: int = 20) -> None:
    """Have the bus's loop do what it has to do by now."""
    for _ in range(many):
        done = threading.Event()
        bus.soon(done.set)
        assert done.wait(20.0)


def heard(holder: Any, asker: Member) -> None:
    """Until the server has what the holder has told it by now: it answers a question, which comes after that."""
    turns(bus_of(holder))
    owner = holder.runs._registry.keeper.member.process.owner
    until(lambda: asker.exchange is not None and asker.exchange.there(owner), "the holder's answer")


def asked(member: Member, ident: str = "x", epoch: int = 7) -> Callable[[], str]:
    """Ask for the run's holder, once. What gives the answer."""
    answers, exchange = list[str](), member.exchange
    member.waiting[ident] = lambda message: answers.append(message["do"])
    assert exchange is not None
    exchange.signal({"do": "cancel", "id": ident, "run": "chat-42", "epoch": epoch})

    def answer() -> str:
        until(lambda: any(each != "settled" for each in answers), "an answer")
        return next(each for each in answers if each != "settled")  # that may be of the time before

    return answer


def test_a_question_that_meets_a_holder_that_just_lets_go_is_answered(holder: Any, asker: Member, proxy: Proxy) -> None:
    """The server knows a holder until it has heard that there is none any more, and passes the question on to it."""
    one, answers = bus_of(holder), list[Callable[[], str]]()

    def out(line: bytes) -> None:
        if line.startswith(b"UNSUB"):
            until(proxy.answered, "the server's word on what came before")
            turns(one)
            answers.append(asked(asker))
            until(lambda: any(b".run." in each for each in proxy.came), "the question on its way")
            turns(one)

    with holder.runs.open("chat-42"):
        turns(one)
        proxy.out = out
    until(lambda: answers, "the holder's letting go")
    assert answers[0]() == "none"


def test_a_callback_that_means_to_leave_does_not_end_the_bus(holder: Any, asker: Member) -> None:
    """It is called in the bus's thread; the next question is heard all the same."""
    one = bus_of(holder)
    with holder.runs.open("chat-42") as run:
        run.on_cancel(lambda _: sys.exit())
        heard(holder, asker)
        assert asked(asker)() == "have"
        until(lambda: run.cancelled, "the cancel")
        heard(holder, asker)
        assert asked(asker, ident="y")() in ("have", "none")
    assert one.up


@pytest.mark.parametrize("when", ["before", "connecting"])
def test_a_bus_that_is_closed_as_it_begins_ends(url: str, bus: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its thread has begun, or just as the connection is made: it does not stay on the bus."""
    from deadstop.fleet.bus import Bus
    from deadstop.fleet.need_nats import Client

    go, made, serve, connect = threading.Event(), list[Bus](), Bus._serve, Client.connect

    def late(one: Bus) -> None:
        assert go.wait(20.0)
        serve(one)

    async def connecting(client: Any, *args: Any, **kwargs: Any) -> None:
        await connect(client, *args, **kwargs)
        made[0]._stop()

    monkeypatch.setattr(Bus, "_serve", late)
    if when == "connecting":
        monkeypatch.setattr(Client, "connect", connecting)
    address = split(bus)[1]
    assert address is not None
    made.append(Bus(address, "me", lambda message: None, lambda: None))
    if when == "before":
        made[0].close(0.0)
    go.set()
    made[0]._thread.join(20.0)
    assert not made[0]._thread.is_alive()


def test_an_answer_that_was_lost_as_its_run_ended_comes_when_it_is_asked_for_again(
    holder: Any, server: FakeOpenAI, bus: str, proxy: Proxy
) -> None:
    """The holder's connection ends in that moment, so the outcome is not told; nobody holds the run when it is back."""
    lost, caught = list[bytes](), list[BaseException]()

    def out(line: bytes) -> None:
        if b'"settled"' in line and not lost:
            lost.append(line)
            proxy.cut()
            raise ConnectionResetError

    def call() -> None:
        try:
            with holder.runs.open("chat-42"):
                holder.chat.completions.create(**CHAT)
        except RunCancelledError as error:
            caught.append(error)

    proxy.out = out
    calling = threading.Thread(target=call)
    calling.start()
    server.wait_for(lambda requests: any(each.tokens_generated for each in requests), 20.0)
    asker: Any = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=bus)
    receipt = asker.runs.cancel("chat-42", reason="stop", timeout=15.0)
    calling.join(20.0)
    assert (receipt.outcome, receipt.reason) == ("cancelled", "stop")
    assert len(lost) == len(caught) == 1
    asker.close()


@pytest.mark.parametrize("whose", ["the same", "another"])
def test_a_question_that_is_asked_again_does_not_strike_the_next_run_of_that_name(
    holder: Any, server: FakeOpenAI, asker: Member, proxy: Proxy, whose: str
) -> None:
    """It was taken up by the one before, which has ended; the next one may be another client's of that process."""
    one = bus_of(holder)
    with holder.runs.open("chat-42") as first:
        heard(holder, asker)
        assert asked(asker, epoch=0)() == "have"
        until(lambda: first.cancelled, "the cancel")
    other: Any = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=proxy.url)
    with (holder if whose == "the same" else other).runs.open("chat-42") as second:
        heard(holder, asker)
        assert asked(asker, epoch=0)() == "have"
        turns(one)
        assert not second.cancelled
        assert asked(asker, ident="y", epoch=0)() == "have"
        until(lambda: second.cancelled, "another cancel")
    other.close()


def test_a_holder_that_is_not_back_yet_after_an_outage_is_asked_again(
    holder: Any, server: FakeOpenAI, bus: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody has lost the bus, and the asker is the first to be back: that nobody is there yet proves nothing."""
    monkeypatch.setattr("deadstop.fleet.bus.RETURN", 60.0)
    near, receipts = Proxy(bus), list[Any]()
    asker: Any = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=near.url)
    until(lambda: bus_of(asker).up, "the asker's bus")
    with holder.runs.open("chat-42") as run:
        turns(bus_of(holder))
        proxy.open.clear()
        for each in (proxy, near):
            each.cut()
        until(lambda: not bus_of(holder).up and bus_of(asker).just_back, "the outage")
        until(lambda: bus_of(asker).up, "its end")
        near.came.clear()
        asking = threading.Thread(target=lambda: receipts.append(asker.runs.cancel("chat-42", timeout=30.0)))
        asking.start()
        until(lambda: any(b"503" in each for each in near.came), "the word that nobody is there")
        turns(bus_of(asker))
        assert asker.runs._registry.keeper.member.reads.drain(20.0)
        proxy.open.set()
        until(lambda: run.cancelled, "the cancel")
    asking.join(30.0)
    assert [each.outcome for each in receipts] == ["cancelled"]
    asker.close()
    near.close()


def test_a_run_of_which_no_answer_came_is_not_said_to_be_unknown(url: str, server: FakeOpenAI, bus: str) -> None:
    """Nor to be on record: with a bus alone there is none."""
    asker: Any = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=bus)
    asker.runs.policy = CancelPolicy(timeout=0.2, on_timeout="return")
    one = bus_of(asker)
    until(lambda: one.up, "the bus")
    one.ask = lambda *lost: None
    receipt = asker.runs.cancel("chat-42")
    assert (receipt.outcome, receipt.note) == ("unconfirmed", "No answer came.")
    asker.close()
