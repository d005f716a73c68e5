"""A process that uses a ledger, seen by the others."""

from __future__ import annotations

import threading
import time
from typing import Callable

import pytest
from worlds import until

from deadstop.core.model import CancelReceipt, Evidence, Intent, Outcome
from deadstop.fleet import member
from deadstop.fleet.holder import Holder, Message
from deadstop.fleet.member import KEEP, Member
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import IntentRecord, Opening, Process


class Reader(Holder):
    """What is told of the record."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.wait: Callable[[float], object] = lambda timeout: None

    def holding(self) -> bool:
        return False

    def took_up(self, message: Message) -> bool:
        return False

    def read_again(self, wanted: list[IntentRecord], parked: list[IntentRecord]) -> None:
        self.began.append(len(wanted))
        self.wait(20.0)


def test_a_process_is_there_until_all_is_written(url: str) -> None:
    """While it closes it is not taken for dead: what it has still to write is not finished by others."""
    leaving, other, go_on = Member(url), Member(url), threading.Event()
    assert leaving.writes.drain(20.0)
    leaving.writes.submit(lambda: go_on.wait(20.0))
    closing = threading.Thread(target=leaving.close, args=(20.0,))
    closing.start()
    until(lambda: leaving._closed, "the closing to begin")
    assert other.alive(leaving.process.owner)
    go_on.set()
    closing.join(20.0)
    assert not other.alive(leaving.process.owner)
    other.close()


def test_a_process_that_closes_leaves_the_connection_to_who_reads(url: str) -> None:
    """What is read just now may take long: the close is bounded, and takes no connection out of anybody's hands."""
    leaving, reading, go_on = Member(url), threading.Event(), threading.Event()
    found: list[object] = []

    def read() -> object:
        reading.set()
        go_on.wait(20.0)
        return leaving.ledger.runs()

    leaving.read(read, lambda value, error: found.append(error or value))
    assert reading.wait(20.0)
    assert leaving.writes.drain(20.0)
    leaving.close(1.0)
    go_on.set()
    assert leaving.reads.drain(20.0)
    assert found == [[]]
    leaving.ledger.close()


def test_who_starts_keeps_house(url: str, ledger: Ledger) -> None:
    """What ended more than thirty days ago is forgotten, so a file that nobody looks after does not grow for ever."""
    by = Process("gone:1:1", "gone", 1)
    for run, at in (("old", time.time() - KEEP - 60), ("new", time.time() - KEEP + 3600)):
        ledger.record_intent(Intent(run, at=at), by, opening=Opening(run, by, at), now=at)
        ledger.settle(CancelReceipt(run, Outcome.CANCELLED, evidence=Evidence.STATUS), 1, by=by.owner, now=at)
        ledger.close_run(run, 1, now=at)
    starting = Member(url)
    assert starting.writes.drain(20.0)
    assert [each.run for each in ledger.runs(ended=True)] == ["new"]
    starting.close()


def test_a_run_that_begins_as_its_process_goes_to_rest_wakes_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the very moment in which it has seen that there is none: from then on the record is read often."""
    monkeypatch.setattr(member, "RESTING", 3600.0)
    monkeypatch.setattr(member, "TICK", 0.02)
    began, looks = threading.Event(), list[float]()

    def holding(one: Member) -> bool:
        found = began.is_set()
        if not found:
            began.set()
            one.wake()
        return found

    monkeypatch.setattr(Member, "holding", holding)
    monkeypatch.setattr(Member, "_read_again", lambda one: looks.append(time.monotonic()))
    made = Member(url)
    until(lambda: len(looks) > 10, "many looks at the record")
    made.close()


def test_what_is_to_be_read_again_while_it_is_read_is_read_once_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put on record meanwhile may have been too late for this time."""
    for each in ("RESTING", "TICK"):
        monkeypatch.setattr(member, each, 3600.0)
    holder, go_on = Reader(), threading.Event()
    holder.wait = go_on.wait
    made = Member(url)
    made.holders.add(holder)
    until(lambda: made._read_again() or holder.began, "the reading")
    made._read_again()
    go_on.set()
    until(lambda: len(holder.began) > 1, "one more look at the record")
    made.close()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_threads_of_a_forked_child_wait_until_it_is_a_process_of_its_own(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them begin at once: what the second one does is not put down to the parent, either."""
    made, beginning, go_on, seen = Member(url), threading.Event(), threading.Event(), list[str]()
    parent, make = made.process.owner, made._make_wire
    assert made.writes.drain(20.0)

    def slow(owner: str) -> object:
        beginning.set()
        assert go_on.wait(20.0)
        return make(owner)

    monkeypatch.setattr(made, "_make_wire", slow)
    made.forked()
    first = threading.Thread(target=lambda: made.write(lambda: None))
    first.start()
    assert beginning.wait(20.0)
    second = threading.Thread(target=lambda: made.write(lambda: seen.append(made.process.owner)))
    second.start()
    second.join(0.2)  # it would be done by now
    go_on.set()
    for each in (first, second):
        each.join(20.0)
    until(lambda: seen, "the work")
    assert seen[0] == made.process.owner != parent
    made.close()
