"""Recording the wish to cancel: the same in every home."""

from __future__ import annotations

import math
import threading

import pytest
from ledger_homes import HERE, NOW, THERE, cancel, home, ledger, opening, receipt, remote

from deadstop.core.model import Cause, Level, Outcome
from deadstop.errors import CancelRefusedError, UnknownRunError, UsageError
from deadstop.ledger.base import Ledger

__all__ = ["home", "ledger"]


def test_the_first_cancel_closes_the_fence_of_its_epoch(ledger: Ledger) -> None:
    """The first is told so, and what was asked is there with who asked, from where and why."""
    recorded = cancel(ledger, opened=opening(), reason="stop", actor="alice", deadline=NOW + 5, request_id="a")
    assert recorded.first
    found = ledger.intent("chat")
    assert found == recorded.intent
    assert found is not None
    assert (found.epoch, found.intent.reason, found.intent.actor, found.by.host) == (1, "stop", "alice", "here")
    assert (found.intent.deadline, found.outcome, found.open) == (NOW + 5, None, True)
    assert ledger.open_intents() == [found]


def test_later_cancels_join_the_first(ledger: Ledger) -> None:
    """I10, I11: the first cause stays, level and deadline only get stronger, and the later ones are kept beside it."""
    cancel(ledger, opened=opening(), reason="stop", actor="alice", level=Level.ACCEPTED, deadline=NOW + 9)
    cancel(ledger, reason="again", actor="bob", level=Level.SENT, deadline=math.inf, cause=Cause.SHUTDOWN)
    last = cancel(ledger, reason="now", actor="carol", deadline=NOW + 1, by=THERE)
    assert not last.first
    intent = last.intent.intent
    assert (intent.reason, intent.actor, intent.cause) == ("stop", "alice", Cause.USER)
    assert (intent.level, intent.deadline) == (Level.CONFIRMED, NOW + 1)
    assert [(each.reason, each.actor, each.level) for each in last.intent.later] == [
        ("again", "bob", Level.SENT),
        ("now", "carol", Level.CONFIRMED),
    ]


def test_a_request_id_is_recorded_once(ledger: Ledger) -> None:
    """I8: the same request id gives the same record and changes nothing, before the end and after it."""
    first = cancel(ledger, opened=opening(), reason="stop", request_id="a")
    again = cancel(ledger, reason="other", request_id="a", deadline=NOW)
    assert (again.intent, again.first, again.repeated) == (first.intent, True, True)
    ledger.settle(receipt(), 1, by=HERE.owner, now=NOW)
    ledger.close_run("chat", 1, now=NOW)
    late = cancel(ledger, request_id="a")
    assert late.repeated
    assert late.intent.outcome is Outcome.CANCELLED
    assert late.intent.later == ()


def test_request_ids_belong_to_their_run(ledger: Ledger) -> None:
    """The same request id for another run is another cancel."""
    cancel(ledger, "one", opened=opening("one"), request_id="a")
    assert cancel(ledger, "two", opened=opening("two"), request_id="a").first


def test_a_cancel_of_one_life_does_not_touch_the_next(ledger: Ledger) -> None:
    """A run that opens again under the same name has a new epoch, and is not cancelled."""
    cancel(ledger, opened=opening())
    ledger.close_run("chat", 1, now=NOW)
    again = ledger.open_run(opening(at=NOW + 1))
    assert (again.epoch, again.intent) == (2, None)
    assert cancel(ledger).intent.epoch == 2
    assert cancel(ledger, epoch=1).intent.epoch == 1


def test_opening_again_gives_the_same_record(ledger: Ledger) -> None:
    """A holder may record its run as often as it likes: one record, until it is closed."""
    first = ledger.open_run(opening(metadata={"tenant": "a"}, cancellers=("alice",)))
    assert ledger.open_run(opening(at=NOW + 5)) == first
    assert first.metadata == {"tenant": "a"}
    assert ledger.open_run(opening(by=THERE)).epoch == 2


def test_a_cancel_by_name_means_the_newest_live_run(ledger: Ledger) -> None:
    """Not one that was closed, nor one whose process has left; one with remote runs at work is live all the same."""
    ledger.enter(THERE, now=NOW)
    ledger.record_remote(remote(), opening(), now=NOW)
    ledger.close_run("chat", 1, now=NOW)
    ledger.open_run(opening(by=THERE))
    assert [each.epoch for each in ledger.runs("chat")] == [2, 1]
    ledger.leave(THERE.owner, now=NOW)
    assert cancel(ledger).intent.epoch == 1
    ledger.remote_status(remote(), "completed", terminal=True, now=NOW)
    with pytest.raises(UnknownRunError):
        cancel(ledger)


def test_what_is_not_there_is_not_cancelled(ledger: Ledger) -> None:
    """An unknown name, an unknown epoch, an empty name: an error, and nothing is recorded."""
    with pytest.raises(UnknownRunError):
        cancel(ledger, "nobody")
    ledger.open_run(opening())
    with pytest.raises(UnknownRunError):
        cancel(ledger, epoch=7)
    with pytest.raises(UsageError):
        cancel(ledger, "")
    with pytest.raises(UsageError):
        cancel(ledger, "chat", opened=opening("other"))
    assert ledger.open_intents() == []
    assert ledger.intent("nobody") is None


def test_a_cancel_before_the_run_is_parked(ledger: Ledger) -> None:
    """The run that opens under the name is born cancelled, once, by its first cancel; the one after it is not."""
    parked = cancel(ledger, park_until=NOW + 60, reason="stop", actor="alice")
    assert ledger.intent("chat") == parked.intent
    joined = cancel(ledger, park_until=NOW + 90, reason="really")
    assert (parked.first, joined.first, joined.intent.parked_until) == (True, False, NOW + 90)
    assert ledger.open_intents() == []
    assert [(each.by, each.parked_until) for each in ledger.runs()] == [(None, NOW + 90)]
    taken = ledger.take_tombstone(opening(at=NOW + 80))
    assert taken is not None
    assert (taken.intent.reason, taken.epoch, taken.parked_until) == ("stop", 1, None)
    assert ledger.open_intents() == [taken]
    assert ledger.take_tombstone(opening(by=THERE, at=NOW + 80)) is None
    assert ledger.open_run(opening(at=NOW + 80)).intent == taken


def test_opening_takes_a_tombstone_too(ledger: Ledger) -> None:
    """A holder that missed the signal finds the cancel when it records its run or its remote run."""
    cancel(ledger, park_until=NOW + 60)
    recorded = ledger.record_remote(remote(), opening(at=NOW + 1), now=NOW + 1)
    found = ledger.intent("chat", recorded.epoch)
    assert found is not None
    assert found.open


def test_a_tombstone_has_an_age(ledger: Ledger) -> None:
    """After it the run opens as if nothing had been, and the cancel ended as ``parked``."""
    cancel(ledger, park_until=NOW + 60)
    assert ledger.take_tombstone(opening(at=NOW + 60)) is None
    opened = ledger.open_run(opening(at=NOW + 60))
    assert (opened.epoch, opened.intent) == (2, None)
    ended = ledger.intent("chat", 1)
    assert ended is not None
    assert (ended.outcome, ended.parked_until, ended.open) == (Outcome.PARKED, None, False)


def test_an_expired_tombstone_makes_room_for_the_next(ledger: Ledger) -> None:
    """A cancel after the age has ended is a new one."""
    cancel(ledger, park_until=NOW + 60)
    assert cancel(ledger, park_until=NOW + 200, now=NOW + 100).first
    assert ledger.take_tombstone(opening(at=NOW + 150)) is not None


def test_a_tombstone_can_be_taken_back(ledger: Ledger) -> None:
    """The run that opens next is not born cancelled, and its record begins as if nothing had been."""
    cancel(ledger, park_until=NOW + 60, request_id="r1")
    assert ledger.retract("chat", 1, "r1")
    assert (ledger.intent("chat"), ledger.runs(ended=True), ledger.parked(now=NOW)) == (None, [], [])
    assert ledger.retract("chat", 1, "r1")  # again
    assert ledger.open_run(opening()).intent is None


def test_what_others_have_asked_for_is_not_taken_back(ledger: Ledger) -> None:
    """Only the cancel that is meant goes, and only where nobody builds on it; the others' still waits for the run."""
    cancel(ledger, park_until=NOW + 60, request_id="r1", reason="stop")
    cancel(ledger, park_until=NOW + 60, request_id="r2", reason="late")
    assert ledger.retract("chat", 1, "r1")
    assert ledger.retract("chat", 1, "another")
    found = ledger.intent("chat")
    assert found is not None
    assert (found.intent.reason, [each.reason for each in found.later]) == ("stop", ["late"])
    assert ledger.retract("chat", 1, "r2")
    cancel(ledger, park_until=NOW + 60, request_id="r3", reason="again")
    taken = ledger.open_run(opening(at=NOW + 1)).intent
    assert taken is not None
    assert (taken.intent.reason, [each.reason for each in taken.later]) == ("stop", ["again"])


def test_what_a_run_has_taken_up_is_not_taken_back(ledger: Ledger) -> None:
    """It is cancelled, and that is on record."""
    cancel(ledger, park_until=NOW + 60, request_id="r1")
    ledger.open_run(opening(at=NOW + 1))
    assert not ledger.retract("chat", 1, "r1")
    found = ledger.intent("chat")
    assert found is not None
    assert found.open


def test_who_may_not_cancel_changes_nothing(ledger: Ledger) -> None:
    """I19: an error that names who and what, nothing else changed, and the try is on record."""
    ledger.open_run(opening(cancellers=("alice",)))
    for actor in ("mallory", None):
        with pytest.raises(CancelRefusedError) as refused:
            cancel(ledger, actor=actor, reason="mine", by=THERE)
        assert (refused.value.run, refused.value.actor) == ("chat", actor)
    assert ledger.intent("chat") is None
    assert [(each.actor, each.reason, each.by.host) for each in ledger.refusals("chat")] == [
        (None, "mine", "there"),
        ("mallory", "mine", "there"),
    ]
    assert cancel(ledger, actor="alice").first
    with pytest.raises(CancelRefusedError):
        cancel(ledger, actor="mallory")
    found = ledger.intent("chat")
    assert found is not None
    assert found.later == ()


def test_a_run_may_always_end_itself(ledger: Ledger) -> None:
    """Deadlines, parents, signals and shutdowns are no actors: the list of cancellers does not bind them."""
    ledger.open_run(opening(cancellers=()))
    for cause in (Cause.DEADLINE, Cause.PARENT, Cause.SIGNAL, Cause.SHUTDOWN):
        cancel(ledger, cause=cause)


def test_a_tombstone_by_a_stranger_is_refused(ledger: Ledger) -> None:
    """I19 for a run that was not there yet: it opens uncancelled, and the try is on record."""
    cancel(ledger, actor="mallory", park_until=NOW + 60)
    assert ledger.take_tombstone(opening(cancellers=("alice",))) is None
    assert [each.actor for each in ledger.refusals()] == ["mallory"]
    assert ledger.open_intents() == []
    cancel(ledger, "other", actor="mallory", park_until=NOW + 60)
    cancel(ledger, "other", actor="alice", park_until=NOW + 60)
    assert ledger.take_tombstone(opening("other", cancellers=("alice",))) is not None


def test_a_refusal_is_on_record_once(ledger: Ledger) -> None:
    """I8: the same request, asked again, is refused again, and leaves no other trace."""
    ledger.open_run(opening(cancellers=("alice",)))
    for _ in range(2):
        with pytest.raises(CancelRefusedError):
            cancel(ledger, actor="mallory", request_id="q-1")
    assert [each.actor for each in ledger.refusals()] == ["mallory"]
    with pytest.raises(CancelRefusedError):
        cancel(ledger, actor="mallory", request_id="q-2")
    assert len(ledger.refusals()) == 2


def test_one_cancel_is_the_first(ledger: Ledger) -> None:
    """Of many threads that cancel one run at the same time, one closed the fence, and every one is on record."""
    start, firsts = threading.Barrier(16), []
    ledger.open_run(opening())

    def shout(number: int) -> None:
        start.wait(10)
        firsts.append(cancel(ledger, reason=str(number)).first)

    threads = [threading.Thread(target=shout, args=(number,)) for number in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert sorted(firsts) == [False] * 15 + [True]
    found = ledger.intent("chat")
    assert found is not None
    assert {found.intent.reason, *(each.reason for each in found.later)} == set(map(str, range(16)))


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "ä" * 5000, "'; DROP TABLE x; --", "%s %(x)s :y", "🛑"])
def test_any_text_can_be_kept(ledger: Ledger, text: str) -> None:
    """Names, reasons and actors may hold anything; what no database can hold is replaced, for lookups too."""
    cancel(ledger, text, opened=opening(text), reason=text, actor=text, request_id=text)
    found = ledger.intent(text)
    assert found is not None
    assert (
        found.intent.reason
        == found.intent.actor
        == found.run
        == text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    )
    assert cancel(ledger, text, request_id=text).repeated


def test_since_and_limit_bound_the_open_intents(ledger: Ledger) -> None:
    """The oldest first, no more than asked for, and none that was given up for its age."""
    for number in range(5):
        cancel(ledger, f"run-{number}", opened=opening(f"run-{number}"), now=NOW + number)
    assert [each.run for each in ledger.open_intents(limit=2)] == ["run-0", "run-1"]
    assert [each.run for each in ledger.open_intents(since=NOW + 3)] == ["run-3", "run-4"]


def test_what_could_not_be_confirmed_does_not_hide_what_nobody_has_tried(ledger: Ledger) -> None:
    """Many old cancels that a server did not confirm come after the new ones, whatever the limit is."""
    for number in range(3):
        cancel(ledger, f"old-{number}", opened=opening(f"old-{number}"), now=NOW + number)
        ledger.settle(receipt(Outcome.UNCONFIRMED, f"old-{number}"), 1, by=HERE.owner, now=NOW + number)
    cancel(ledger, "new", opened=opening("new"), now=NOW + 100)
    assert [each.run for each in ledger.open_intents(limit=2)] == ["new", "old-0"]


def test_what_its_owner_has_given_up_is_anybody_s(ledger: Ledger) -> None:
    """A process that lives on may say so of a cancel that is not final, of a run of its own: once, and it stays."""

    def given_up() -> list[bool]:
        return [each.left for each in ledger.open_intents()]

    assert not ledger.give_up("chat", 1, by=HERE.owner, now=NOW)  # there is none
    cancel(ledger, opened=opening())
    assert not ledger.give_up("chat", 1, by=THERE.owner, now=NOW)
    assert given_up() == [False]
    assert ledger.give_up("chat", 1, by=HERE.owner, now=NOW)
    assert not ledger.give_up("chat", 1, by=HERE.owner, now=NOW + 1)
    ledger.settle(receipt(Outcome.UNCONFIRMED), 1, by=THERE.owner, now=NOW)
    cancel(ledger, by=THERE)
    assert given_up() == [True]
    cancel(ledger, "final", opened=opening("final"))
    ledger.settle(receipt(run="final"), 1, by=HERE.owner, now=NOW)
    assert not ledger.give_up("final", 1, by=HERE.owner, now=NOW)


def test_a_claim_is_one_thread_s(ledger: Ledger) -> None:
    """While it is held nobody else gets it; given back, the next one does; another run's is free."""
    with connect_claim(ledger, "chat") as mine:
        assert mine.held
        assert ledger.claim("chat") is None
        with connect_claim(ledger, "other") as other:
            assert other.held
    assert not mine.held
    again = connect_claim(ledger, "chat")
    mine.release()  # an old claim's release does not touch the new one
    assert again.held
    again.release()


def connect_claim(ledger: Ledger, run: str):  # type: ignore[no-untyped-def]
    made = ledger.claim(run)
    assert made is not None
    return made
