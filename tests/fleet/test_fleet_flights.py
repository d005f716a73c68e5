"""One cancel request at a time for each remote run, whoever cancels it and by which name (I7). Which requests were
under way at once is told by the server's own record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import pytest
from fleet_homes import other_way
from worlds import Threads, until

import deadstop
from deadstop import CancelPolicy
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Flight, RemoteRun
from deadstop.runs import flights
from deadstop.testing import FakeOpenAI, faults

JSON = Dict[str, object]  # noqa: UP006
BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}
SLOW = 1.0
"""How long (seconds) the server takes to answer a cancel that it has taken."""


@pytest.fixture
def two(server: FakeOpenAI, url: str) -> Iterator[tuple[Any, Any]]:
    """Clients of two members of one fleet."""
    made = [
        deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=each)
        for each in (url, other_way(url))
    ]
    for each in made:
        each.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
    yield made[0], made[1]
    for each in made:
        each.close()


def started(client: Any) -> str:
    """A background response in the scope chat-42; its address."""
    with client.runs.open("chat-42"):
        made: Any = client.post("/responses", body=BACKGROUND, cast_to=JSON)
    return f"response:{made['id']}"


def cancels(server: FakeOpenAI) -> list[Any]:
    return [each for each in server.requests if each.path.endswith("/cancel")]


@pytest.mark.parametrize("first", ["scope", "address"])
def test_a_run_cancelled_by_two_names_gets_one_request_at_a_time(
    two: tuple[Any, Any], server: FakeOpenAI, ledger: Ledger, first: str
) -> None:
    """With its scope in one process, by its address in another, while the first one's request is under way: the second
    waits, sees that it was enough, and both have their receipt."""
    one, other = two
    address = started(one)
    server.add(faults.CancelReplySlow(seconds=SLOW))
    asked = [(one, "chat-42"), (other, address)]
    begun = []
    for client, name in asked if first == "scope" else reversed(asked):
        begun.append(Threads().start(client.runs.cancel, name))
        until(lambda: cancels(server), "the first request")
    assert [each.result().outcome for each in begun] == ["cancelled"] * 2
    assert (server.runs[0].truth, server.runs[0].cancels, server.runs[0].most_cancels) == ("cancelled", 1, 1)
    until(lambda: not ledger.open_intents(), "both outcomes on record")


def test_two_processes_that_go_by_the_address_are_no_different(
    two: tuple[Any, Any], server: FakeOpenAI, ledger: Ledger
) -> None:
    """Also at the very same moment, and where the run is on record under nobody's scope."""
    one, other = two
    made: Any = one.post("/responses", body=BACKGROUND, cast_to=JSON)
    server.add(faults.CancelReplySlow(seconds=SLOW))
    begun = [Threads().start(each.runs.cancel, f"response:{made['id']}") for each in (one, other)]
    assert [each.result().outcome for each in begun] == ["cancelled"] * 2
    assert (server.runs[0].truth, server.runs[0].most_cancels) == ("cancelled", 1)
    until(lambda: not ledger.open_intents(), "the outcome on record")


def test_a_request_that_came_to_nothing_is_followed_by_the_other_s(two: tuple[Any, Any], server: FakeOpenAI) -> None:
    """The server takes the first one late, and lets the run work on: the second finds it at work, and cancels it."""
    one, other = two
    address = started(one)
    server.add(faults.IgnoresCancel(), times=1)
    server.add(faults.CancelReplySlow(seconds=SLOW), times=1)
    first = Threads().start(one.runs.cancel, "chat-42")
    until(lambda: cancels(server), "the first request")
    assert other.runs.cancel(address).outcome == "cancelled"
    assert first.result().outcome == "cancelled"
    assert (server.runs[0].truth, server.runs[0].cancels, server.runs[0].most_cancels) == ("cancelled", 2, 1)


def test_what_nobody_gives_back_comes_free_by_itself(two: tuple[Any, Any], server: FakeOpenAI, ledger: Ledger) -> None:
    """Whoever was about to send one is stopped, and says nothing: the next one waits no longer than a request may take,
    and the time it waits is in its receipt."""
    one, _ = two
    address = started(one)
    kind, id = address.split(":")
    theirs = RemoteRun(kind, (id,), server.base_url, "other", 1, "elsewhere:1:1", time.time())
    assert ledger.take_off([Flight("t", theirs, 1.0)], by="elsewhere:1:1", now=time.time())
    began = time.monotonic()
    assert one.runs.cancel("chat-42").outcome == "cancelled"
    assert time.monotonic() - began >= 0.9
    assert server.runs[0].cancels == 1


def test_who_waits_in_vain_says_so(two: tuple[Any, Any], server: FakeOpenAI, ledger: Ledger) -> None:
    """Its time is up before the other request is over: unconfirmed, with nothing sent."""
    one, _ = two
    kind, id = started(one).split(":")
    theirs = RemoteRun(kind, (id,), server.base_url, "other", 1, "elsewhere:1:1", time.time())
    assert ledger.take_off([Flight("t", theirs, 60.0)], by="elsewhere:1:1", now=time.time())
    receipt = one.runs.cancel("chat-42", timeout=0.5, policy=CancelPolicy(on_timeout="return", give_up=0))
    assert (receipt.outcome, receipt.diagnosis.klass, server.runs[0].cancels) == ("unconfirmed", "not_sent", 0)


def test_a_place_that_was_lost_is_taken_anew(
    two: tuple[Any, Any], server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped just before it sent goes on when its place may be another's: it asks once more."""
    one, _ = two
    started(one)
    left, asked = flights.Alone.left, list[int]()

    def lost_once(self: flights.Alone) -> float:
        asked.append(1)
        return 0.0 if len(asked) == 1 else left(self)

    monkeypatch.setattr(flights.Alone, "left", lost_once)
    assert one.runs.cancel("chat-42").outcome == "cancelled"
    assert (len(asked) > 1, server.runs[0].cancels) == (True, 1)
