"""Attempts, outcomes, remote runs and what is forgotten: the same in every home."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from ledger_homes import BASE, HERE, NOW, THERE, cancel, home, ledger, opening, receipt, remote

from deadstop.core.model import (
    Attempt,
    CallFacts,
    CancelReceipt,
    Delivered,
    DiagnosisClass,
    Evidence,
    Interrupted,
    Level,
    Orphan,
    Outcome,
    Phase,
    ServerWork,
    Streamed,
)
from deadstop.errors import UnknownRunError, UsageError
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Orphans

__all__ = ["home", "ledger"]

RICH = CancelReceipt(
    "chat",
    Outcome.CANCELLED,
    "cancelled",
    "stop",
    "alice",
    level=Level.ACCEPTED,
    attempts=(Attempt(1, NOW, NOW + 1, status=200, request_id="req_1"),),
    elapsed=1.5,
    delivered=Delivered(3, 40),
    usage={"total_tokens": 7},
    evidence=Evidence.TRANSPORT,
    calls=(
        CallFacts(
            *("call-1", "POST", "/chat/completions", Phase.READING, Interrupted.SOCKET, Streamed.INSIDE),
            ServerWork.STOPPED,
            attempt=Attempt(1, NOW),
        ),
    ),
    children=(CancelReceipt("chat/child", Outcome.FINISHED_FIRST),),
    later=(("again", None),),
    kind="response",
    reads=(Attempt(1, NOW, status=200),),
    orphan_suspect=Orphan("response", "POST", "/responses", NOW, 2, "Look at the list."),
    revivals=((NOW, "in_progress"),),
    request_id="a",
)


def test_the_first_outcome_stays(ledger: Ledger) -> None:
    """I5: who settles later gets what is recorded, and learns that it did not win."""
    cancel(ledger, opened=opening())
    first = ledger.settle(RICH, 1, by=HERE.owner, now=NOW + 1)
    assert (first.won, first.record.receipt, first.record.owner, first.record.at) == (True, RICH, HERE.owner, NOW + 1)
    for outcome in (Outcome.CANCELLED, Outcome.FINISHED_FIRST, Outcome.UNCONFIRMED):
        later = ledger.settle(receipt(outcome), 1, by=THERE.owner, now=NOW + 2)
        assert (later.won, later.record) == (False, first.record)
    assert ledger.receipts("chat") == [first.record]
    assert ledger.open_intents() == []


@pytest.mark.parametrize("refinement", [Outcome.CANCELLED, Outcome.FINISHED_FIRST])
def test_an_unconfirmed_outcome_is_refined_once(ledger: Ledger, refinement: Outcome) -> None:
    """I6: by an end that is known, and never again; until then the intent is open."""
    cancel(ledger, opened=opening())
    assert ledger.settle(receipt(Outcome.UNCONFIRMED), 1, by=HERE.owner, now=NOW).won
    assert not ledger.settle(receipt(Outcome.UNCONFIRMED), 1, by=THERE.owner, now=NOW).won
    assert [each.outcome for each in ledger.open_intents()] == [Outcome.UNCONFIRMED]
    refined = ledger.settle(receipt(refinement), 1, by=THERE.owner, now=NOW + 9)
    assert (refined.won, refined.record.revision, refined.record.outcome) == (True, 1, refinement)
    for outcome in (Outcome.CANCELLED, Outcome.FINISHED_FIRST, Outcome.UNCONFIRMED):
        assert ledger.settle(receipt(outcome), 1, by=HERE.owner, now=NOW).record == refined.record
    assert ledger.receipts() == [refined.record]
    assert ledger.open_intents() == []


def test_every_unconfirmed_outcome_has_its_class(ledger: Ledger) -> None:
    """I17: the diagnosis comes back whole; where there is none, the class is ``unknown``."""
    cancel(ledger, opened=opening())
    given = receipt(Outcome.UNCONFIRMED)
    assert ledger.settle(given, 1, by=HERE.owner, now=NOW).record.receipt.diagnosis == given.diagnosis
    cancel(ledger, "bare", opened=opening("bare"))
    bare = replace(receipt(Outcome.UNCONFIRMED, "bare"), diagnosis=None)
    found = ledger.settle(bare, 1, by=HERE.owner, now=NOW).record.receipt.diagnosis
    assert found is not None
    assert found.klass is DiagnosisClass.UNKNOWN


def test_only_an_end_of_a_known_cancel_is_settled(ledger: Ledger) -> None:
    """``sent`` and ``accepted`` are no ends; without an intent there is nothing to settle or to attempt."""
    cancel(ledger, opened=opening())
    for outcome in (Outcome.SENT, Outcome.ACCEPTED):
        with pytest.raises(UsageError):
            ledger.settle(receipt(outcome), 1, by=HERE.owner, now=NOW)
    for act in (
        lambda: ledger.settle(receipt(), 2, by=HERE.owner, now=NOW),
        lambda: ledger.begin_attempt("chat", 2, by=HERE.owner, now=NOW),
        lambda: ledger.record_attempt("nobody", 1, Attempt(1, NOW), by=HERE.owner),
    ):
        with pytest.raises(UnknownRunError):
            act()
    assert ledger.receipts() == []


def test_of_many_who_settle_one_wins(ledger: Ledger) -> None:
    """Threads that settle at the same time all come back with the one recorded outcome."""
    cancel(ledger, opened=opening())
    start, found = threading.Barrier(8), []

    def settle(number: int) -> None:
        outcome = (Outcome.CANCELLED, Outcome.FINISHED_FIRST)[number % 2]
        start.wait(10)
        found.append(ledger.settle(receipt(outcome, elapsed=number), 1, by=HERE.owner, now=NOW))

    threads = [threading.Thread(target=settle, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert len(found) == 8
    assert sum(each.won for each in found) == 1
    assert len({each.record.receipt.elapsed for each in found}) == 1


def test_attempts_are_counted_over_all_processes(ledger: Ledger) -> None:
    """The ledger numbers them, for each target by itself, and the facts of one can be filled in later."""
    cancel(ledger, opened=opening())
    assert ledger.begin_attempt("chat", 1, "response:a", by=HERE.owner, now=NOW) == 1
    assert ledger.begin_attempt("chat", 1, "response:a", by=THERE.owner, now=NOW + 1) == 2
    assert ledger.begin_attempt("chat", 1, "response:b", by=HERE.owner, now=NOW + 2) == 1
    facts = Attempt(1, NOW, NOW + 3, 0.1, 0.2, 0.3, 0.4, 503, "req_1", 2.0, "Too busy.")
    ledger.record_attempt("chat", 1, facts, "response:a", by=HERE.owner)
    found = ledger.attempts("chat", 1)
    assert [(each.target, each.number, each.owner) for each in found] == [
        ("response:a", 1, HERE.owner),
        ("response:a", 2, THERE.owner),
        ("response:b", 1, HERE.owner),
    ]
    assert vars(facts).items() <= vars(found[0]).items()


def test_a_remote_run_is_kept_with_its_run(ledger: Ledger) -> None:
    """Its address, its owner and its status; recorded again it is the same one; an end is an end."""
    made = ledger.record_remote(remote(status="queued"), opening(), now=NOW)
    assert (made.epoch, made.ref, made.status, made.terminal) == (1, "response:resp_1", "queued", False)
    again = ledger.record_remote(remote("elsewhere", status="in_progress"), opening("elsewhere"), now=NOW)
    assert (again.run, again.status) == ("chat", "in_progress")
    assert ledger.active_remotes() == [again]
    assert ledger.remote_status(made, "cancelled", terminal=True, now=NOW + 1)
    assert not ledger.remote_status(made, "in_progress", terminal=False, now=NOW + 2)
    assert not ledger.remote_status(remote(id="resp_2"), "queued", terminal=False, now=NOW)
    assert [(each.status, each.terminal, each.status_at) for each in ledger.remotes("chat", 1)] == [
        ("cancelled", True, NOW + 1)
    ]
    assert ledger.active_remotes() == []


def test_an_inexact_address_is_refused(ledger: Ledger) -> None:
    """I9: empty ids, ids with slashes and unknown epochs are errors, and nothing is kept."""
    for wrong in ({"ids": ()}, {"ids": ("",)}, {"ids": ("a/b",)}, {"kind": ""}):
        with pytest.raises(UsageError):
            ledger.record_remote(replace(remote(), **wrong), opening(), now=NOW)
    with pytest.raises(UnknownRunError):
        ledger.record_remote(remote(epoch=3), now=NOW)
    assert ledger.runs(ended=True) == []


def test_no_secret_of_the_base_url_is_kept(ledger: Ledger) -> None:
    """User, password, query and fragment stay out; the rest tells servers apart."""
    secret = "https://user:hunter2@api.example.com/v1/?api-key=hunter2#hunter2"
    made = ledger.record_remote(remote(base_url=secret), opening(), now=NOW)
    assert made.base_url == BASE
    assert ledger.remote_status(remote(base_url=BASE), "queued", terminal=False, now=NOW)
    assert not ledger.remote_status(remote(base_url="https://other/v1"), "queued", terminal=False, now=NOW)


def test_a_revival_is_on_record(ledger: Ledger) -> None:
    """The outcome stays, the remote run is active again, and what was seen is kept."""
    made = ledger.record_remote(remote(), opening(), now=NOW)
    with pytest.raises(UnknownRunError):
        ledger.record_revival(made, "in_progress", by=HERE.owner, now=NOW)
    cancel(ledger)
    ledger.remote_status(made, "cancelled", terminal=True, now=NOW)
    ledger.settle(receipt(), 1, by=HERE.owner, now=NOW)
    ledger.record_revival(made, "in_progress", by=THERE.owner, now=NOW + 5)
    assert [(each.ref, each.status, each.at) for each in ledger.revivals("chat", 1)] == [
        ("response:resp_1", "in_progress", NOW + 5)
    ]
    assert [each.status for each in ledger.active_remotes()] == ["in_progress"]
    assert [each.outcome for each in ledger.receipts()] == [Outcome.CANCELLED]


def test_orphans_are_those_that_nobody_answers_for(ledger: Ledger) -> None:
    """Their owner left or fell silent, the grace has passed, their run asks for it, and nobody has cancelled it yet."""
    ledger.enter(HERE, now=NOW)
    for run, grace, policy in (("a", 10.0, Orphans.CANCEL), ("b", 40.0, Orphans.CANCEL), ("c", 0.0, Orphans.LEAVE)):
        opened = opening(run, orphans=policy, orphan_grace=grace)
        ledger.record_remote(remote(run, f"resp_{run}"), opened, now=NOW)

    def orphaned(now: float) -> list[str]:
        return [each.run for each in ledger.orphans(silent=30.0, now=now)]

    assert orphaned(NOW + 29) == []
    assert orphaned(NOW + 30) == ["a"]
    ledger.enter(HERE, now=NOW + 31)
    assert orphaned(NOW + 50) == []
    ledger.leave(HERE.owner, now=NOW + 51)
    assert orphaned(NOW + 60) == []
    assert orphaned(NOW + 61) == ["a"]
    assert orphaned(NOW + 91) == ["a", "b"]
    cancel(ledger, "a")
    assert orphaned(NOW + 91) == ["b"]


def test_processes_come_and_go(ledger: Ledger) -> None:
    """Listed with their addresses while they are here; one that was taken for dead and shows up again is here."""
    ledger.enter(HERE, now=NOW)
    ledger.enter(THERE, now=NOW + 1)
    ledger.enter(HERE, now=NOW + 2)
    found = ledger.processes()
    assert [(each.owner, each.address, each.entered_at, each.seen_at) for each in found] == [
        (HERE.owner, HERE.address, NOW, NOW + 2),
        (THERE.owner, None, NOW + 1, NOW + 1),
    ]
    ledger.leave(HERE.owner, now=NOW + 3)
    assert [each.owner for each in ledger.processes()] == [THERE.owner]
    ledger.enter(HERE, now=NOW + 4)
    assert len(ledger.processes()) == 2


def test_the_listing_shows_what_is_live(ledger: Ledger) -> None:
    """Open runs, remote runs at work and cancels under way; the rest only when asked for."""
    ledger.record_remote(remote(), opening(), now=NOW)
    ledger.open_run(opening("closed"))
    ledger.close_run("closed", 1, now=NOW)
    cancel(ledger, "ended", opened=opening("ended", at=NOW + 1))
    assert [each.run for each in ledger.runs()] == ["ended", "chat"]
    ledger.settle(receipt(run="ended"), 1, by=HERE.owner, now=NOW)
    ledger.close_run("ended", 1, now=NOW)
    shown = ledger.runs()
    assert [(each.run, each.by and each.by.host, each.remotes, each.active) for each in shown] == [
        ("chat", "here", 1, 1)
    ]
    every = ledger.runs(ended=True)
    assert {each.run: each.outcome for each in every} == {"chat": None, "closed": None, "ended": Outcome.CANCELLED}
    assert len(ledger.runs(ended=True, limit=2)) == 2
    assert [each.run for each in ledger.runs("closed", ended=True)] == ["closed"]


def test_the_sweep_forgets_what_ended_long_ago(ledger: Ledger) -> None:
    """In batches no larger than asked for, until nothing is left to forget."""
    ledger.enter(HERE, now=NOW)
    for number in range(5):
        run = f"old-{number}"
        ledger.record_remote(remote(run, f"resp_{number}", terminal=True), opening(run), now=NOW)
        cancel(ledger, run)
        ledger.begin_attempt(run, 1, by=HERE.owner, now=NOW)
        ledger.settle(receipt(run=run), 1, by=HERE.owner, now=NOW)
        ledger.close_run(run, 1, now=NOW)
    ledger.leave(HERE.owner, now=NOW)
    later = NOW + 100
    assert ledger.sweep(before=NOW, now=later) == 0
    batches = [ledger.sweep(before=NOW + 1, now=later, limit=2) for _ in range(5)]
    assert batches == [2, 2, 2, 0, 0]  # five runs, and then their process
    assert (ledger.runs(ended=True), ledger.receipts(), ledger.active_remotes()) == ([], [], [])


def test_the_sweep_spares_what_has_not_ended(ledger: Ledger) -> None:
    """I3: an intent without an outcome stays for ever; open runs and remote runs of living owners stay too."""
    ledger.enter(HERE, now=NOW + 99)
    cancel(ledger, "intent", opened=opening("intent"))
    ledger.close_run("intent", 1, now=NOW)
    ledger.open_run(opening("open"))
    ledger.record_remote(remote("remote"), opening("remote"), now=NOW)
    ledger.close_run("remote", 1, now=NOW)
    assert ledger.sweep(before=NOW + 50, now=NOW + 100) == 0
    ledger.leave(HERE.owner, now=NOW + 100)
    assert ledger.sweep(before=NOW + 200, now=NOW + 300) == 2
    assert [each.run for each in ledger.runs(ended=True)] == ["intent"]
    assert len(ledger.open_intents()) == 1


def test_the_sweep_settles_expired_tombstones_and_forgets_refusals(ledger: Ledger) -> None:
    """A tombstone ends as ``parked`` first, and goes when it is old; a refusal goes when it is old."""
    cancel(ledger, park_until=NOW + 10)
    cancel(ledger, "mine", opened=opening("mine", cancellers=("alice",)), actor="alice")
    ledger.settle(receipt(run="mine"), 1, by=HERE.owner, now=NOW)
    with pytest.raises(PermissionError):
        cancel(ledger, "mine", actor="mallory")
    assert ledger.sweep(before=NOW, now=NOW + 10) == 1
    assert [each.outcome for each in ledger.receipts("chat")] == [Outcome.PARKED]
    assert ledger.sweep(before=NOW + 11, now=NOW + 20) == 3
    assert ledger.refusals() == []
