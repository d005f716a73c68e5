"""The machine keeps the promise, whatever it is told and in whatever order."""

from __future__ import annotations

from itertools import permutations

import pytest
from core_invariants import FINAL, FIRST, TIGHTER, Witness, alphabet, born, judged, walk
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from deadstop.core.machine import (
    ACTIVE,
    EVENTS,
    TRANSITIONS,
    AbandonWait,
    Answer,
    CallFinished,
    CallLeft,
    Cancellation,
    CancelRequested,
    CloseFence,
    DeadlinePassed,
    Effect,
    Event,
    GraceSpent,
    IdLearned,
    InterruptCall,
    NeverSent,
    PlanRetry,
    ReadFailed,
    ReadStatus,
    Record,
    Recorded,
    Replied,
    RequestLeft,
    RetryPlanned,
    Rule,
    SendCancel,
    SendFailed,
    Settle,
    StartTimer,
    State,
    StatusRead,
    Target,
    TimerFired,
    in_order,
    step,
)
from deadstop.core.model import Evidence, Level, Outcome, RunStatus

CANCEL = CancelRequested(1.0, FIRST)


def told(target: str, *events: Event) -> tuple[Cancellation, tuple[Effect, ...]]:
    """The cancellation after the events, and the effects of the last of them."""
    c = Cancellation.new(target)
    effects: tuple[Effect, ...] = ()
    for event in events:
        c, effects = step(c, event)
    return c, effects


def test_the_table_is_total() -> None:
    """Every state has a cell for every event, and there is no other cell."""
    assert set(TRANSITIONS) == {(state, event) for state in State for event in EVENTS}
    assert set(EVENTS) == set(Event.__subclasses__())


def test_every_rule_but_the_last_of_a_cell_has_a_guard() -> None:
    """No rule is dead: only the last of a cell may hold always."""
    for cell in TRANSITIONS.values():
        assert all(each.when.__name__ != "always" for each in cell[:-1])


def test_every_order_of_events_up_to_a_depth_keeps_every_invariant() -> None:
    """I1 to I20, as far as the core holds them: an exhaustive walk finds no breach, and takes every rule."""
    taken = set()

    def watched(rule: Rule) -> Rule:
        def when(c: Cancellation, e: Event) -> bool:
            holds = rule.when(c, e)
            if holds:
                taken.add(rule)
            return holds

        return Rule(when, rule.to, rule.actions)

    table = {key: tuple(watched(rule) for rule in cell) for key, cell in TRANSITIONS.items()}
    for target, depth in ((Target.IN_FLIGHT, 7), (Target.REMOTE, 6), (Target.UNBORN, 5)):
        assert walk(table, target, depth) > 300
    assert {rule for cell in TRANSITIONS.values() for rule in cell} - taken == set()


class Life(RuleBasedStateMachine):
    """One run, told anything at all; the judge checks every invariant after every step."""

    c: Cancellation
    w: Witness

    @initialize(kind=st.sampled_from(Target))
    def begin(self, kind: Target) -> None:
        self.c, self.w = born(kind)

    @rule(choice=st.integers(0, 100))
    def anything(self, choice: int) -> None:
        self._tell(list(alphabet(self.c)), choice)

    @rule(choice=st.integers(0, 100))
    def what_it_waits_for(self, choice: int) -> None:
        """Random noise alone seldom gets far: this follows the thread the machine has taken up."""
        awaited = {
            "nothing": (CancelRequested, Recorded, IdLearned),
            "reply": (Replied, SendFailed),
            "read": (StatusRead, ReadFailed),
            "plan": (RetryPlanned,),
            "retry": (TimerFired,),
            "poll": (TimerFired,),
        }[self.c.awaiting]
        self._tell([event for event in alphabet(self.c) if isinstance(event, awaited)], choice)

    def _tell(self, events: list[Event], choice: int) -> None:
        event = events[choice % len(events)]
        note(f"{event}")
        self.c, self.w = judged(self.c, self.w, event)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_i1_every_active_cancel_ends_at_its_deadline() -> None:
    """I1: from every active state the deadline leads to an outcome, and answers everybody."""
    for state in ACTIVE:
        (only,) = TRANSITIONS[state, DeadlinePassed]
        assert only.to is State.UNCONFIRMED
        assert [each.__name__ for each in (only.when, *only.actions)] == ["always", "abandon_wait", "settle"]


def test_a_call_is_cancelled_by_leaving_the_transport() -> None:
    """I2: in flight, the first cancel records, fences and interrupts; the call's leaving confirms it."""
    c, effects = told("in_flight", CANCEL)
    assert c.state is State.SENDING
    assert effects == (Record(FIRST), CloseFence(), InterruptCall())
    c, effects = step(c, CallLeft(1.1))
    assert (c.state, c.outcome, c.evidence) == (State.CONFIRMED, Outcome.CANCELLED, Evidence.TRANSPORT)
    assert effects == (Settle(Outcome.CANCELLED, Evidence.TRANSPORT),)


def test_a_call_that_finished_before_the_fence_is_a_lost_race() -> None:
    """I18: finished beats cancelled, also when the news comes after the cancel."""
    c, effects = told("in_flight", CANCEL, CallFinished(1.1))
    assert (c.state, c.outcome) == (State.LOST_RACE, Outcome.FINISHED_FIRST)
    assert effects == (Settle(Outcome.FINISHED_FIRST, Evidence.TRANSPORT),)


def test_a_call_that_had_finished_is_not_interrupted() -> None:
    """I18: the cancel of a finished call is recorded and answered, and nothing is done."""
    c, effects = told("in_flight", CallFinished(0.5), CANCEL)
    assert c.state is State.LOST_RACE
    assert effects == (Record(FIRST), CloseFence(), Settle(Outcome.FINISHED_FIRST, Evidence.TRANSPORT))


def test_spent_grace_interrupts_the_call_once_more() -> None:
    """I11: grace escalates once; a second spent grace changes nothing."""
    c, effects = told("in_flight", CANCEL, GraceSpent(3.0))
    assert (c.state, effects) == (State.ESCALATING, (InterruptCall(),))
    assert step(c, GraceSpent(4.0)) == (c, ())
    assert step(c, CallLeft(4.0))[0].state is State.CONFIRMED


def test_an_unconfirmed_call_is_refined_once() -> None:
    """I6: what was unconfirmed may turn out confirmed, once; then nothing changes it."""
    c, effects = told("in_flight", CANCEL, DeadlinePassed(10.0))
    assert (c.state, effects) == (State.UNCONFIRMED, (AbandonWait(), Settle(Outcome.UNCONFIRMED)))
    c, effects = step(c, CallLeft(12.0))
    assert c.refined
    assert effects == (Settle(Outcome.CANCELLED, Evidence.TRANSPORT, refined=True),)
    for event in (CallLeft(13.0), CallFinished(13.0), DeadlinePassed(13.0)):
        assert step(c, event) == (c, ())


def test_a_second_cancel_joins_the_first() -> None:
    """I7, I10, I11: it sends nothing, its cause is appended, and it may only tighten and raise."""
    c, effects = told("in_flight", CANCEL, CancelRequested(1.0, TIGHTER))
    assert effects == (Record(TIGHTER),)
    assert (c.intent, c.later, c.deadline, c.level) == (FIRST, (TIGHTER,), 5.0, Level.CONFIRMED)


def test_a_latecomer_gets_the_outcome_on_the_record() -> None:
    """I5, I8: a cancel after the end adopts the recorded outcome; a repeated request id leaves no trace."""
    ended, _ = told("in_flight", CANCEL, CallLeft(2.0))
    c, effects = step(ended, CancelRequested(3.0, TIGHTER))
    assert c.later == (TIGHTER,)
    assert effects == (Record(TIGHTER), Answer(Outcome.CANCELLED, Level.CONFIRMED))
    assert step(ended, CANCEL) == (ended, (Answer(Outcome.CANCELLED, Level.CONFIRMED),))


def test_a_remote_run_is_confirmed_by_a_status_that_was_read() -> None:
    """I2: recorded, sent, accepted, polled, read: each answers the callers of its level."""
    c, effects = told("remote", CANCEL)
    assert (c.state, effects) == (State.INTENT, (Record(FIRST), CloseFence()))
    c, effects = step(c, Recorded(1.0))
    assert (c.state, effects) == (State.SENDING, (SendCancel(1),))
    c, effects = step(c, RequestLeft(1.0, 1))
    assert effects == (Answer(Outcome.SENT, Level.SENT),)
    c, effects = step(c, Replied(1.1, 1, 200, RunStatus.CANCELLING, "cancelling"))
    assert c.outcome is Outcome.ACCEPTED
    assert effects == (Answer(Outcome.ACCEPTED, Level.ACCEPTED), StartTimer(pytest.approx(0.11), 1))
    c, effects = step(c, TimerFired(1.35, 1))
    assert (c.state, effects) == (State.VERIFYING, (ReadStatus(1),))
    c, effects = step(c, StatusRead(1.4, RunStatus.CANCELLING, "cancelling", 1))
    assert (c.state, effects) == (State.ACCEPTED, (StartTimer(pytest.approx(0.14), 2),))
    c, effects = step(c, StatusRead(1.5, RunStatus.CANCELLED, "cancelled"))
    assert (c.state, c.status) == (State.CONFIRMED, "cancelled")
    assert effects == (Settle(Outcome.CANCELLED, Evidence.STATUS),)


def test_polling_is_quick_at_first_then_slower_and_never_slower_than_the_policy() -> None:
    """The wait before a status read is a tenth of the time so far, from 20 ms up to the policy's `poll`."""
    waits = []
    for at in (0.0, 1.0, 2.0, 60.0):
        _, effects = told("remote", CANCEL, Recorded(0.0), Replied(at, 1, 200, RunStatus.CANCELLING))
        waits += [each.delay for each in effects if isinstance(each, StartTimer)]
    assert waits == pytest.approx([0.02, 0.1, 0.2, 0.25])


@pytest.mark.parametrize(
    "answer",
    [
        Replied(1.1, 1, 400),
        Replied(1.1, 1, 404),
        Replied(1.1, 1, 409),
        Replied(1.1, 1, 200, RunStatus.CANCELLED),
        Replied(1.1, 1, 200, RunStatus.FINISHED),
        SendFailed(1.1, 1, may_have_arrived=True),
    ],
    ids=str,
)
def test_neither_a_refusal_nor_an_all_clear_is_believed(answer: Event) -> None:
    """I2: whatever the cancel request was answered, an end is read back before it is recorded."""
    c, effects = told("remote", CANCEL, Recorded(1.0), answer)
    assert (c.state, effects) == (State.VERIFYING, (ReadStatus(1),))


@pytest.mark.parametrize(
    "answer",
    [
        Replied(1.1, 1, 408),
        Replied(1.1, 1, 429),
        Replied(1.1, 1, 500),
        Replied(1.1, 1, 529),
        SendFailed(1.1, 1),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(answer: Event) -> None:
    """I20: a retryable answer leads to a plan, the plan to a timer, and the timer to the next attempt."""
    c, effects = told("remote", CANCEL, Recorded(1.0), answer)
    assert (c.state, effects) == (State.BACKING_OFF, (PlanRetry(1),))
    c, effects = step(c, RetryPlanned(1.1, 1, 0.5, allowed=True))
    assert effects == (StartTimer(0.5, 1),)
    assert step(c, TimerFired(1.6, 1))[1] == (SendCancel(2),)


def test_a_young_id_may_not_have_arrived_everywhere() -> None:
    """I9: a 404 right after the id was learned is retried; later it is a refusal, to be verified."""
    parked, _ = told("unborn", CANCEL, Recorded(1.0))
    sent, _ = step(parked, IdLearned(2.0))
    assert step(sent, Replied(2.1, 1, 404))[0].state is State.BACKING_OFF
    assert step(sent, Replied(9.0, 1, 404))[0].state is State.VERIFYING


def test_without_budget_the_truth_is_still_read() -> None:
    """I20: a retry that is not allowed, or would come after the deadline, is not made; a read is."""
    c, _ = told("remote", CANCEL, Recorded(1.0), Replied(1.1, 1, 503))
    for plan in (RetryPlanned(1.1, 1, 0.5, allowed=False), RetryPlanned(1.1, 1, 99.0, allowed=True)):
        waiting, effects = step(c, plan)
        assert effects == (StartTimer(plan.delay, 1),)
        assert step(waiting, TimerFired(2.0, 1))[1] == (ReadStatus(1),)


def test_a_cancel_before_the_id_is_parked() -> None:
    """I12: it is answered as parked, and exactly one cancel follows the id."""
    c, effects = told("unborn", CANCEL, Recorded(1.0))
    assert (c.state, effects) == (State.PARKED, (Answer(Outcome.PARKED, Level.SENT),))
    c, effects = step(c, IdLearned(2.0))
    assert effects == (SendCancel(1),)
    assert step(c, IdLearned(2.0)) == (c, ())


def test_a_parked_cancel_outlives_its_deadline() -> None:
    """I12: an id that is learned after the caller gave up is cancelled all the same."""
    c, effects = told("unborn", CANCEL, Recorded(1.0), DeadlinePassed(10.0), IdLearned(11.0))
    assert (c.state, effects) == (State.UNCONFIRMED, (SendCancel(1),))
    c, effects = step(c, Replied(11.1, 1, 200, RunStatus.CANCELLING))
    assert effects == (ReadStatus(1),)
    c, effects = step(c, StatusRead(11.2, RunStatus.CANCELLED, "cancelled", 1))
    assert effects == (Settle(Outcome.CANCELLED, Evidence.STATUS, refined=True),)


def test_a_submission_that_never_left_confirms_a_parked_cancel() -> None:
    """I2: a request that provably never ran needs no cancel."""
    c, _ = told("unborn", CANCEL, Recorded(1.0), NeverSent(1.1))
    assert (c.state, c.evidence) == (State.CONFIRMED, Evidence.TRANSPORT)


def test_closing_the_socket_does_not_confirm_a_remote_run() -> None:
    """I2: a background run goes on without its caller."""
    for events in ((Recorded(1.0),), (Recorded(1.0), GraceSpent(3.0))):
        c, _ = told("remote", CANCEL, *events)
        assert step(c, CallLeft(3.0)) == (c, ())


@pytest.mark.parametrize("target", ["in_flight", "remote"])
def test_i18_a_tie_is_decided_the_same_way_in_every_order(target: str) -> None:
    """I18: of what happens at the same moment, finished beats cancelled, and both beat the deadline."""
    finished: Event = CallFinished(2.0) if target == "in_flight" else StatusRead(2.0, RunStatus.FINISHED)
    left: Event = CallLeft(2.0) if target == "in_flight" else StatusRead(2.0, RunStatus.CANCELLED)
    deadline = DeadlinePassed(2.0)
    for tie, outcome in (
        ((finished, left, deadline), Outcome.FINISHED_FIRST),
        ((left, deadline), Outcome.CANCELLED),
        ((finished, deadline), Outcome.FINISHED_FIRST),
    ):
        for order in permutations(tie):
            c, _ = told(target, CANCEL, Recorded(1.0), *in_order(order))
            assert c.outcome is outcome
            assert c.state in FINAL
