"""How far a cancel must get that another process asks for: what it is told is what the holder would tell its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_homes import other_way
from nats_kit import nats_server, program
from remote_runs import create
from test_fleet_turns import client_of, member_of
from worlds import until

from deadstop import CancelPolicy
from deadstop.fleet.roll import roll_call
from deadstop.testing import FakeOpenAI, faults

OVER = ["record", "bus"]


@pytest.fixture(params=OVER)
def pair(request: Any, world: Any, server: FakeOpenAI, url: str) -> Iterator[Any]:
    """A client that holds runs and one that asks, as of two processes: with a record in common, or a bus alone."""
    here, there = url, other_way(url)
    if request.param == "bus":
        if program() is None:
            pytest.skip("no NATS comes as a package for this platform")
        here = nats_server().space()
        there = here.replace("127.0.0.1", "localhost")
    holder, asker = client_of(server, here), world.client(server.base_url, max_retries=0, runs_url=there)
    asker.runs.policy = CancelPolicy(timeout=20.0, recheck=0, on_timeout="return")
    assert member_of(asker).writes.drain(20.0)
    yield holder, asker
    holder.close()
    world.close(asker)


pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


@contextlib.contextmanager
def held(holder: Any, asker: Any, kind: str) -> Iterator[None]:
    """A scope with a remote run of that kind, that the other one knows of."""
    with holder.runs.open("chat-42"):
        function, args, kwargs = create(holder, kind)
        function(*args, **kwargs)
        until(lambda: any(each.run == "chat-42" for each in roll_call(member_of(asker), 0.2)), "the run")
        yield


@pytest.mark.parametrize("wait", ["accepted", "confirmed"])
def test_what_its_server_turns_away_is_not_accepted(
    world: Any, pair: Any, server: FakeOpenAI, wait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder has heard of it, and its server has answered nothing but 503: so it is told, as the holder is.

    How long past the deadline the holder's word is waited for is set aside: that is a bound, and not the promise here.
    """
    for shell in ("blocking", "concurrent"):
        monkeypatch.setattr(f"deadstop.runs.{shell}.RECORDING", 20.0)
    holder, asker = pair
    with held(holder, asker, "response"):
        server.add(faults.Overloaded(503), path="/cancel")
        receipt = world.run(asker.runs.cancel, "chat-42", wait=wait, timeout=1.0)
        assert receipt.outcome == "unconfirmed"
        assert receipt.diagnosis.klass == "server_overloaded", receipt.diagnosis.evidence
        assert holder.runs.get("chat-42").receipt.diagnosis == receipt.diagnosis


def test_what_its_server_accepts_is_accepted(world: Any, pair: Any, server: FakeOpenAI) -> None:
    """The server has the cancel, and goes on with it for as long as it likes."""
    holder, asker = pair
    with held(holder, asker, "thread_run"):
        server.add(faults.StaysCancelling(None))
        receipt = world.run(asker.runs.cancel, "chat-42", wait="accepted")
        assert (receipt.outcome, receipt.diagnosis) == ("accepted", None)
        assert server.runs[0].cancels == 1
        assert receipt.elapsed < 10.0


def test_accepted_is_not_told_before_the_server_has_answered(world: Any, pair: Any, server: FakeOpenAI) -> None:
    """That the holder has taken it up, and that its request has left, is not enough."""
    holder, asker = pair
    with held(holder, asker, "thread_run"):
        server.add(faults.SlowHeaders(None), path="/cancel")
        pending = world.start(asker.runs.cancel, "chat-42", wait="accepted", timeout=1.0)
        server.wait_for(lambda requests: any(each.path.endswith("/cancel") for each in requests), 20.0)
        assert not pending.done
        assert pending.result().outcome == "unconfirmed"


def test_a_holder_of_an_older_version_tells_no_more_than_that_it_was_told(
    world: Any, pair: Any, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it has the run and nothing of levels: the cancel was sent, and nobody knows of more."""
    holder, asker = pair
    member = member_of(holder)
    answer = member.answer

    def older(address: Any, message: Any, then: Any = lambda: None) -> None:
        if message["do"] == "accepted":
            then()
        else:
            answer(address, {key: value for key, value in message.items() if key != "accepted"}, then)

    monkeypatch.setattr(member, "answer", older)
    with held(holder, asker, "thread_run"):
        server.add(faults.SlowHeaders(None), path="/cancel")
        receipt = world.run(asker.runs.cancel, "chat-42", wait="accepted")
        assert receipt.outcome == "sent"
        assert receipt.elapsed < 10.0
