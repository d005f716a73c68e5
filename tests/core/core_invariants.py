"""The invariants that the machine can hold, as one judge that watches it from outside.

The judge keeps its own account of what happened (``Witness``), from events and effects alone, and compares
the machine's word with it after every step. A breach is an AssertionError that begins with the invariant's
number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deadstop.core.machine import (
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
    SendCancel,
    SendFailed,
    Settle,
    StartTimer,
    State,
    StatusRead,
    Table,
    Target,
    TimerFired,
    step,
)
from deadstop.core.model import Evidence, Intent, Level, Outcome, RunStatus

FINAL = (State.CONFIRMED, State.LOST_RACE)
FIRST = Intent("run", deadline=10.0, level=Level.ACCEPTED, actor="alice", request_id="a")
TIGHTER = Intent("run", deadline=5.0, level=Level.CONFIRMED, actor="bob", request_id="b")
LOOSER = Intent("run", deadline=20.0, level=Level.SENT, actor="carol")


def alphabet(c: Cancellation) -> Iterator[Event]:
    """Every event worth telling a machine in this state: the expected, the late, the repeated, the absurd."""
    for intent in (FIRST, TIGHTER, LOOSER) if c.intent else (FIRST,):
        yield CancelRequested(1.0, intent)
    for plain in (Recorded, IdLearned, NeverSent, CallLeft, CallFinished, GraceSpent, DeadlinePassed):
        yield plain(1.0)
    for attempt in {c.attempts, max(0, c.attempts - 1)}:
        yield RequestLeft(1.0, attempt)
        yield Replied(1.0, attempt, 200, RunStatus.CANCELLING, "cancelling")
        yield Replied(1.0, attempt, 200, RunStatus.CANCELLED, "cancelled")
        yield Replied(1.0, attempt, 409)
        yield Replied(1.0, attempt, 503, retry_after=2.0)
        yield Replied(1.0, attempt, 404)  # the id is young
        yield Replied(9.0, attempt, 404)
        yield SendFailed(1.0, attempt)
        yield SendFailed(1.0, attempt, may_have_arrived=True)
        yield RetryPlanned(1.0, attempt, 1.0, allowed=True)
        yield RetryPlanned(1.0, attempt, 1.0, allowed=False)
        yield RetryPlanned(1.0, attempt, 99.0, allowed=True)  # after the deadline
    for read in {c.reads, max(0, c.reads - 1)}:
        yield StatusRead(1.0, RunStatus.ACTIVE, "in_progress", read)
        yield StatusRead(1.0, RunStatus.CANCELLING, "cancelling", read)
        yield StatusRead(1.0, RunStatus.GONE, None, read)
        yield ReadFailed(1.0, read)
    yield StatusRead(1.0, RunStatus.CANCELLED, "cancelled", evidence=Evidence.EVENTS)
    yield StatusRead(1.0, RunStatus.FINISHED, "completed", c.reads)
    for timer in {c.timer, max(0, c.timer - 1)}:
        yield TimerFired(1.0, timer)


@dataclass(frozen=True)
class Witness:
    """What truly happened to a run, seen from outside its machine."""

    target: Target
    known: bool
    asked: tuple[Intent, ...] = ()
    recorded: bool = False
    gone: bool = False  # the call left the transport, or the request provably never ran, after the cancel
    cancelled: bool = False  # a status says so
    finished: bool = False
    sent: int = 0
    out: bool = False  # a cancel request is in flight
    interrupts: int = 0
    retry_timer: int | None = None
    pending: tuple[str, int] | None = None  # what the shell was told to do and has not reported on
    settled: tuple[Outcome, ...] = ()


def born(target: Target) -> tuple[Cancellation, Witness]:
    return Cancellation.new(target), Witness(target, known=target is not Target.UNBORN)


def judged(c: Cancellation, w: Witness, event: Event, table: Table = TRANSITIONS) -> tuple[Cancellation, Witness]:
    """One step, judged. Raises AssertionError, beginning with the number of the invariant that broke."""
    after, effects = step(c, event, table)
    told = _told(w, event)
    seen = _shown(c, told, event, effects)
    _judge_request(c, w, event, after, effects)
    _judge_sends(c, told, event, effects, seen)
    _judge_end(c, event, after, effects, seen)
    _judge_progress(c, told, event, after, effects, seen)
    return after, seen


def _told(w: Witness, event: Event) -> Witness:
    """The witness's account after the event, before the machine's reaction."""
    if _report(event) == w.pending:
        w = replace(w, pending=None)
    in_flight = w.target is Target.IN_FLIGHT
    if isinstance(event, CancelRequested):
        return w if _repeated(w, event) else replace(w, asked=(*w.asked, event.intent))
    if isinstance(event, Recorded):
        return replace(w, recorded=w.recorded or (bool(w.asked) and not in_flight))
    if isinstance(event, IdLearned):
        return replace(w, known=True)
    if isinstance(event, CallLeft):
        return replace(w, gone=w.gone or (in_flight and bool(w.asked)))
    if isinstance(event, NeverSent):
        return replace(w, gone=w.gone or (bool(w.asked) and (in_flight or not w.known)))
    if isinstance(event, CallFinished):
        return replace(w, finished=w.finished or in_flight)
    if isinstance(event, StatusRead) and not in_flight:
        over = event.run is RunStatus.FINISHED
        return replace(w, finished=w.finished or over, cancelled=w.cancelled or event.run == "cancelled")
    if isinstance(event, (Replied, SendFailed)) and event.attempt == w.sent:
        return replace(w, out=False)
    return w


def _shown(c: Cancellation, w: Witness, event: Event, effects: tuple[Effect, ...]) -> Witness:
    """The witness's account after the machine's reaction."""
    for effect in effects:
        if isinstance(effect, SendCancel):
            assert not w.out, "I7: a cancel request was sent while another was in flight"
            assert effect.attempt == w.sent + 1, "I7: the attempts are not numbered one by one"
            w = replace(w, sent=effect.attempt, out=True)
            w = replace(w, pending=("send", effect.attempt))
        elif isinstance(effect, ReadStatus):
            w = replace(w, pending=("read", effect.read))
        elif isinstance(effect, PlanRetry):
            w = replace(w, pending=("plan", effect.attempt))
        elif isinstance(effect, InterruptCall):
            w = replace(w, interrupts=w.interrupts + 1)
        elif isinstance(effect, Settle):
            w = replace(w, settled=(*w.settled, effect.outcome))
        elif isinstance(effect, StartTimer):
            allowed = isinstance(event, RetryPlanned) and event.allowed
            if isinstance(event, RetryPlanned) and c.deadline is not None:
                allowed = allowed and event.at + event.delay < c.deadline
            w = replace(w, retry_timer=effect.timer if allowed else None, pending=("timer", effect.timer))
    return w


def _report(event: Event) -> tuple[str, int]:
    """Which of the things that a shell may be told to do this event reports on."""
    if isinstance(event, (Replied, SendFailed)):
        return "send", event.attempt
    if isinstance(event, (StatusRead, ReadFailed)):
        return "read", event.read
    if isinstance(event, RetryPlanned):
        return "plan", event.attempt
    return ("timer", event.timer) if isinstance(event, TimerFired) else ("nothing", 0)


def _repeated(w: Witness, event: CancelRequested) -> bool:
    ids = [intent.request_id for intent in w.asked]
    return event.intent.request_id is not None and event.intent.request_id in ids


def _judge_request(c: Cancellation, w: Witness, event: Event, after: Cancellation, effects: tuple[Effect, ...]) -> None:
    assert [type(effect) for effect in effects].count(CloseFence) == (
        isinstance(event, CancelRequested) and not w.asked
    ), "I4: the fence closes with the first intent, in the same step, and then stays closed"
    if not isinstance(event, CancelRequested):
        assert (after.intent, after.later) == (c.intent, c.later), "I10: the causes changed without a cancel"
        assert (after.deadline, after.level) == (c.deadline, c.level), "I11: the bounds changed by themselves"
        assert c.escalated <= after.escalated, "I11: an escalation was taken back"
        return
    if _repeated(w, event):
        assert after == c, "I8: a repeated request id changed something"
        assert {type(effect) for effect in effects} <= {Answer}, "I8: a repeated request id did something"
    else:
        assert effects[:1] == (Record(event.intent),), "I3: the intent is not recorded first"
        assert (after.intent, *after.later) == (*w.asked, event.intent), "I10: the causes are not in order"
    if w.asked:
        assert {type(effect) for effect in effects} <= {Record, Answer}, "I7: a later cancel did something"
        assert after.state is c.state, "I7: a later cancel moved the machine"
        assert after.deadline is not None
        assert c.deadline is not None
        assert after.level is not None
        assert c.level is not None
        assert after.deadline <= c.deadline, "I11: the deadline was put off"
        assert after.level.rank >= c.level.rank, "I11: the level was lowered"
        if c.active and not _repeated(w, event):
            assert after.deadline <= event.intent.deadline, "I11: a nearer deadline was not taken over"
            assert after.level.rank >= event.intent.level.rank, "I11: a higher level was not taken over"
    if c.ended:
        assert c.settled is not None
        assert effects[-1] == Answer(c.settled, Level.CONFIRMED), "I8: a latecomer got another answer"


def _judge_sends(c: Cancellation, told: Witness, event: Event, effects: tuple[Effect, ...], seen: Witness) -> None:
    sends = [effect for effect in effects if isinstance(effect, SendCancel)]
    assert seen.interrupts <= 2, "I7: the call was interrupted more than once and its escalation"
    if told.target is Target.IN_FLIGHT:
        assert not sends, "I9: a cancel request was sent for a call that has no id"
        return
    if sends:
        assert told.recorded, "I3: a cancel request was sent before the intent was recorded"
        assert told.known, "I12: a cancel request was sent before there was an id"
        assert c.state not in FINAL, "I13: a cancel request was sent after the end"
    if told.recorded and told.known and c.state not in FINAL and isinstance(event, (IdLearned, Recorded)):
        assert len(sends) == (told.sent == 0), "I12: exactly one cancel must follow once the id is known"
    for send in sends:
        if send.attempt > 1:
            due = isinstance(event, TimerFired) and event.timer == told.retry_timer
            assert due, "I20: a retry was sent that the budget or the deadline had not allowed"


def _judge_end(c: Cancellation, event: Event, after: Cancellation, effects: tuple[Effect, ...], seen: Witness) -> None:
    if after.state is State.CONFIRMED:
        assert seen.gone or seen.cancelled, "I2: confirmed, and nothing says that it stopped"
        assert after.evidence is not Evidence.NONE, "I2: confirmed without evidence"
    if after.state is State.LOST_RACE:
        assert seen.finished, "I2: a race was lost to a run that nobody saw finish"
    if isinstance(event, CancelRequested) and c.state is State.NONE and seen.finished:
        assert after.state is State.LOST_RACE, "I18: a run that had finished was cancelled"
    if c.state in FINAL:
        kept = replace(after, later=c.later)
        assert kept == c, "I6: an outcome that never changes was changed"
        assert {type(effect) for effect in effects} <= {Record, Answer}, "I13: work was started after the end"
    if c.state is State.UNCONFIRMED:
        assert after.ended, "I6: an outcome on the record was withdrawn"
    assert seen.settled[:-1] in ((), (Outcome.UNCONFIRMED,)), "I5: a second outcome after a final one"
    assert Outcome.UNCONFIRMED not in seen.settled[1:], "I5: an outcome was recorded twice"
    assert len(seen.settled) == after.ended + after.refined, "I5: there is not one outcome"
    assert after.refined == (len(seen.settled) == 2), "I6: a refinement is not marked as one"
    assert seen.settled[-1:] == (() if after.settled is None else (after.settled,)), "I5: two records differ"
    if after.ended:
        assert after.outcome is after.settled, "I5: the record and the state differ"
    if c.active and isinstance(event, DeadlinePassed):
        assert after.ended, "I1: the deadline passed and the cancel goes on"
    terminal = isinstance(event, StatusRead) and event.run in (RunStatus.CANCELLED, RunStatus.FINISHED)
    if terminal and seen.target is not Target.IN_FLIGHT and (c.active or c.state is State.UNCONFIRMED):
        assert after.state in FINAL, "I18: the truth was read and not believed"


def _judge_progress(
    c: Cancellation,
    told: Witness,
    event: Event,
    after: Cancellation,
    effects: tuple[Effect, ...],
    seen: Witness,
) -> None:
    """What must happen, where the rest says what must not."""
    in_flight = seen.target is Target.IN_FLIGHT
    open_still = c.active or c.state is State.UNCONFIRMED
    if open_still and (seen.gone or (in_flight and seen.finished)):
        assert after.state in FINAL, "I3: the run is over and the cancel goes on"
    if isinstance(event, CancelRequested) and c.state is State.NONE:
        over = seen.finished or seen.cancelled
        assert after.ended == over, "I3: what was over is not said to be, or what was not is"
        assert (InterruptCall() in effects) == (in_flight and not over), "I3: the call was not interrupted"
    if after.active and seen.recorded and seen.known and not in_flight:
        assert seen.pending is not None, "I3: a cancel is under way and nothing is being done about it"
    if c.active and isinstance(event, GraceSpent) and not c.escalated:
        assert after.state is State.ESCALATING, "I11: spent grace did not escalate"
        expected = (InterruptCall(),) if in_flight else (InterruptCall(), AbandonWait())
        assert effects == expected, "I11: the escalation left the socket open or the caller waiting"
    if c.active and after.state is State.UNCONFIRMED:
        assert AbandonWait() in effects, "I1: the deadline left the caller waiting"
    if after.state is State.PARKED and c.state is not State.PARKED:
        assert Answer(Outcome.PARKED, Level.SENT) in effects, "I1: who waits for no more was not answered"
    if isinstance(event, RequestLeft) and told.pending == ("send", event.attempt) and c.active:
        assert effects == (Answer(Outcome.SENT, Level.SENT),), "I1: who waits for no more was not answered"
    if after.state is State.ACCEPTED and not c.accepted:
        assert Answer(Outcome.ACCEPTED, Level.ACCEPTED) in effects, "I1: who waits for no more was not answered"


def walk(table: Table, target: Target, depth: int) -> int:
    """Tell every order of events, up to ``depth`` of them. Returns how many situations there are."""
    start = born(target)
    known = {start}
    frontier: list[tuple[tuple[Cancellation, Witness], tuple[Event, ...]]] = [(start, ())]
    for _ in range(depth):
        following = []
        for (c, w), path in frontier:
            for event in alphabet(c):
                try:
                    there = judged(c, w, event, table)
                except AssertionError as breach:
                    raise AssertionError(f"{breach}\nafter {[*path, event]}") from None
                if there not in known:
                    known.add(there)
                    if there[0].state in FINAL and len(there[0].later) > 1:
                        continue  # nothing can come of it but more latecomers
                    following.append((there, (*path, event)))
        frontier = following
    return len(known)
