"""Known real bugs, rebuilt in the table: the walk must catch each, and name the invariant that it breaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from core_invariants import walk

from deadstop.core import cancellation as do
from deadstop.core.machine import (
    TRANSITIONS,
    CallFinished,
    CallLeft,
    Cancellation,
    CancelRequested,
    CloseFence,
    DeadlinePassed,
    Event,
    GraceSpent,
    IdLearned,
    NeverSent,
    Record,
    Recorded,
    Replied,
    RetryPlanned,
    State,
    StatusRead,
    Target,
)
from deadstop.core.transitions import IGNORE, STAY, Cell, go


def begin_unfenced(c: Cancellation, e: Any) -> do.Next:
    c, effects = do.begin(c, e)
    return c, tuple(each for each in effects if not isinstance(each, CloseFence))


def begin_unrecorded(c: Cancellation, e: Any) -> do.Next:
    c, effects = do.begin(c, e)
    return c, tuple(each for each in effects if not isinstance(each, Record))


def join_as_the_first(c: Cancellation, e: Any) -> do.Next:
    assert c.intent is not None
    return replace(do.join(c, e)[0], intent=e.intent, later=(c.intent, *c.later)), (Record(e.intent),)


def join_with_its_own_bounds(c: Cancellation, e: Any) -> do.Next:
    return replace(do.join(c, e)[0], deadline=e.intent.deadline), (Record(e.intent),)


def join_with_its_own_level(c: Cancellation, e: Any) -> do.Next:
    return replace(do.join(c, e)[0], level=e.intent.level), (Record(e.intent),)


def forget_escalation(c: Cancellation, e: Any) -> do.Next:
    return replace(c, escalated=False), ()


S = State
MUTANTS: dict[str, tuple[str, Target, tuple[S, type[Event]], Cell]] = {
    "the deadline is not heard while escalating": (
        *("I1", Target.IN_FLIGHT, (S.ESCALATING, DeadlinePassed)),
        IGNORE,
    ),
    "a refusal (404, 409) is taken for delivered": (
        *("I2", Target.REMOTE, (S.SENDING, Replied)),
        (go(S.CONFIRMED, do.settle, when=do.reply_awaited),),
    ),
    "accepted is taken for cancelled": (
        *("I2", Target.REMOTE, (S.SENDING, Replied)),
        (go(S.CONFIRMED, do.settle, when=do.reply_accepts),),
    ),
    "a remote run is confirmed by closing its socket": (
        *("I2", Target.REMOTE, (S.SENDING, CallLeft)),
        (go(S.CONFIRMED, do.settle),),
    ),
    "a parked run is confirmed by a submission that may have left": (
        *("I2", Target.UNBORN, (S.PARKED, GraceSpent)),
        (go(S.CONFIRMED, do.settle),),
    ),
    "the intent is acted on before it is recorded": (
        *("I3", Target.UNBORN, (S.INTENT, IdLearned)),
        (go(S.SENDING, do.learn_id, do.send_cancel),),
    ),
    "the intent is not recorded": (
        *("I3", Target.REMOTE, (S.NONE, CancelRequested)),
        (go(S.INTENT, begin_unrecorded),),
    ),
    "a refusal leaves nobody in charge": (
        *("I3", Target.REMOTE, (S.SENDING, Replied)),
        (go(S.VERIFYING, when=do.reply_awaited),),
    ),
    "the fence is left open": (
        *("I4", Target.IN_FLIGHT, (S.NONE, CancelRequested)),
        (go(S.SENDING, begin_unfenced, do.interrupt_call),),
    ),
    "a second deadline writes a second outcome": (
        *("I5", Target.IN_FLIGHT, (S.UNCONFIRMED, DeadlinePassed)),
        (go(STAY, do.settle),),
    ),
    "an outcome is refined twice": (
        *("I6", Target.IN_FLIGHT, (S.CONFIRMED, CallFinished)),
        (go(S.LOST_RACE, do.settle),),
    ),
    "a call that leaves late turns a lost race into a cancel": (
        *("I6", Target.IN_FLIGHT, (S.LOST_RACE, CallLeft)),
        (go(S.CONFIRMED, do.settle),),
    ),
    "a cancelled run that completes later changes its outcome": (
        *("I6", Target.REMOTE, (S.CONFIRMED, StatusRead)),
        (go(S.LOST_RACE, do.settle, when=do.read_finished),),
    ),
    "a second cancel sends again": (
        *("I7", Target.REMOTE, (S.SENDING, CancelRequested)),
        (go(STAY, when=do.request_repeated), go(STAY, do.join, do.send_cancel)),
    ),
    "a second cancel interrupts again": (
        *("I7", Target.IN_FLIGHT, (S.SENDING, CancelRequested)),
        (go(STAY, when=do.request_repeated), go(STAY, do.join, do.interrupt_call)),
    ),
    "a cancel is sent while the last one is unanswered": (
        *("I7", Target.REMOTE, (S.SENDING, GraceSpent)),
        (go(S.ESCALATING, do.escalate, do.send_cancel),),
    ),
    "spent grace interrupts for ever": (
        *("I7", Target.IN_FLIGHT, (S.ESCALATING, GraceSpent)),
        (go(STAY, do.escalate),),
    ),
    "a repeated request id counts as another cancel": (
        *("I8", Target.IN_FLIGHT, (S.SENDING, CancelRequested)),
        (go(STAY, do.join),),
    ),
    "a cancel request is sent for a call without an id": (
        *("I9", Target.IN_FLIGHT, (S.ESCALATING, Recorded)),
        (go(S.SENDING, do.note_recorded, do.send_cancel),),
    ),
    "the last cause overwrites the first": (
        *("I10", Target.IN_FLIGHT, (S.SENDING, CancelRequested)),
        (go(STAY, when=do.request_repeated), go(STAY, join_as_the_first)),
    ),
    "a later cancel puts the deadline off": (
        *("I11", Target.IN_FLIGHT, (S.SENDING, CancelRequested)),
        (go(STAY, when=do.request_repeated), go(STAY, join_with_its_own_bounds)),
    ),
    "a weaker mode overwrites a stronger": (
        *("I11", Target.IN_FLIGHT, (S.SENDING, CancelRequested)),
        (go(STAY, when=do.request_repeated), go(STAY, join_with_its_own_level)),
    ),
    "an escalation is taken back": (
        *("I11", Target.REMOTE, (S.ESCALATING, Replied)),
        (go(S.SENDING, forget_escalation),),
    ),
    "a stop before the id is lost": (
        *("I12", Target.UNBORN, (S.PARKED, IdLearned)),
        (go(S.ACCEPTED, do.learn_id),),
    ),
    "a stop before the id is lost once its caller gave up": (
        *("I12", Target.UNBORN, (S.UNCONFIRMED, IdLearned)),
        IGNORE,
    ),
    "an id that is learned twice is cancelled twice": (
        *("I12", Target.UNBORN, (S.ACCEPTED, IdLearned)),
        (go(S.SENDING, do.send_cancel),),
    ),
    "a cancel is sent to a run that has finished": (
        *("I13", Target.REMOTE, (S.LOST_RACE, Recorded)),
        (go(STAY, do.send_cancel),),
    ),
    "a finished run is cancelled": (
        *("I18", Target.IN_FLIGHT, (S.NONE, CancelRequested)),
        (go(S.SENDING, do.begin, do.interrupt_call),),
    ),
    "a status that was not asked for is not believed": (
        *("I18", Target.REMOTE, (S.ACCEPTED, StatusRead)),
        IGNORE,
    ),
    "a retry does not ask the budget": (
        *("I20", Target.REMOTE, (S.BACKING_OFF, RetryPlanned)),
        (go(STAY, do.start_retry_timer, when=do.plan_awaited),),
    ),
    "a failed submission confirms a run whose id is known": (
        *("I2", Target.REMOTE, (S.SENDING, NeverSent)),
        (go(S.CONFIRMED, do.settle),),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name: str) -> None:
    """The walk finds the bug within six events, and the breach it reports is of the invariant named here."""
    invariant, target, key, cell = MUTANTS[name]
    assert TRANSITIONS[key] != cell
    with pytest.raises(AssertionError, match=rf"^{invariant}:"):
        walk({**TRANSITIONS, key: cell}, target, depth=6)


def test_every_invariant_of_the_core_has_a_mutant() -> None:
    """Each invariant that the judge checks is shown to be able to fail."""
    caught = {invariant for invariant, *_ in MUTANTS.values()}
    assert caught == {f"I{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 18, 20)}
