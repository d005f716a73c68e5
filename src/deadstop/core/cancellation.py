"""One cancellation's facts, and the vocabulary of its table: guards (may it?) and actions (what follows).

``machine.TRANSITIONS`` is written in these words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

from deadstop.core.events import (
    AbandonWait,
    Answer,
    CallFinished,
    CallLeft,
    CloseFence,
    Effect,
    InterruptCall,
    NeverSent,
    PlanRetry,
    ReadStatus,
    Record,
    SendCancel,
    Settle,
    StartTimer,
    StatusRead,
)
from deadstop.core.model import Evidence, Intent, Level, Outcome, RunStatus, Word


class State(Word):
    """Where a cancellation stands."""

    NONE = "none"
    INTENT = "intent"
    PARKED = "parked"
    SENDING = "sending"
    ACCEPTED = "accepted"
    BACKING_OFF = "backing_off"
    VERIFYING = "verifying"
    ESCALATING = "escalating"
    CONFIRMED = "confirmed"
    LOST_RACE = "lost_race"
    UNCONFIRMED = "unconfirmed"


class Target(Word):
    """What is cancelled: a call of this process, a run on a server, or one whose id is not known yet."""

    IN_FLIGHT = "in_flight"
    REMOTE = "remote"
    UNBORN = "unborn"


class Awaiting(Word):
    """The one thing the machine is waiting for; whatever else turns up is late or repeated."""

    NOTHING = "nothing"
    REPLY = "reply"
    READ = "read"
    PLAN = "plan"
    RETRY = "retry"
    POLL = "poll"


ACTIVE = (
    *(State.INTENT, State.PARKED, State.SENDING, State.ACCEPTED),
    *(State.BACKING_OFF, State.VERIFYING, State.ESCALATING),
)
ENDED = (State.CONFIRMED, State.LOST_RACE, State.UNCONFIRMED)

_OUTCOMES = {
    State.PARKED: Outcome.PARKED,
    State.CONFIRMED: Outcome.CANCELLED,
    State.LOST_RACE: Outcome.FINISHED_FIRST,
    State.UNCONFIRMED: Outcome.UNCONFIRMED,
}


@dataclass(frozen=True)
class Cancellation:
    """Everything the machine knows. Begin with ``Cancellation.new``; ``step`` returns the next one.

    ``deadline`` and ``level`` are the tightest and the strongest that any cancel of the run asked for.
    ``status`` is the provider's own word. ``poll`` (seconds) is the longest time between status reads. For ``young``
    seconds after its id was learned, a run that the server does not know is one that it does not know yet.
    """

    target: Target
    poll: float = 0.25
    young: float = 2.0
    state: State = State.NONE
    intent: Intent | None = None
    later: tuple[Intent, ...] = ()
    deadline: float | None = None
    level: Level | None = None
    known: bool = True
    known_at: float | None = None
    recorded: bool = False
    accepted: bool = False
    escalated: bool = False
    over: RunStatus | None = None
    awaiting: Awaiting = Awaiting.NOTHING
    attempts: int = 0
    reads: int = 0
    timer: int = 0
    status: str | None = None
    evidence: Evidence = Evidence.NONE
    settled: Outcome | None = None
    refined: bool = False

    @classmethod
    def new(cls, target: Target | str, *, poll: float = 0.25, young: float = 2.0) -> Cancellation:
        """A run that nobody has asked to cancel yet: ``in_flight``, ``remote`` or ``unborn``."""
        target = Target(target)
        return cls(target, poll=poll, young=young, known=target is not Target.UNBORN)

    @property
    def active(self) -> bool:
        """A cancel is under way."""
        return self.state in ACTIVE

    @property
    def ended(self) -> bool:
        """An outcome is on the record. An ``unconfirmed`` one may still be refined, once."""
        return self.state in ENDED

    @property
    def outcome(self) -> Outcome | None:
        """What the cancel has come to so far; None when nobody asked for one."""
        if self.state is State.NONE:
            return None
        return _OUTCOMES.get(self.state, Outcome.ACCEPTED if self.accepted else Outcome.SENT)


SOONEST_POLL = 0.02
"""Seconds between two status reads at the least."""

POLL_SHARE = 0.1
"""The wait before the next status read, as a share of the time that the cancel has taken so far."""


def replace(c: Cancellation, **changes: Any) -> Cancellation:
    """`c` with `changes`. As `dataclasses.replace`, which takes four times as long (it calls the constructor)."""
    new = object.__new__(Cancellation)
    new.__dict__.update(c.__dict__)
    new.__dict__.update(changes)
    return new


Guard = Callable[[Cancellation, Any], bool]
Next = tuple[Cancellation, tuple[Effect, ...]]
Action = Callable[[Cancellation, Any], Next]


# Guards: pure questions about the cancellation and the event.


def always(c: Cancellation, e: Any) -> bool:
    return True


def in_flight(c: Cancellation, e: Any) -> bool:
    return c.target is Target.IN_FLIGHT


def finished_already(c: Cancellation, e: Any) -> bool:
    return c.over is RunStatus.FINISHED


def cancelled_already(c: Cancellation, e: Any) -> bool:
    return c.over is RunStatus.CANCELLED


def request_repeated(c: Cancellation, e: Any) -> bool:
    ids = [each.request_id for each in (c.intent, *c.later) if each is not None]
    return e.intent.request_id is not None and e.intent.request_id in ids


def id_known(c: Cancellation, e: Any) -> bool:
    return c.known


def id_new(c: Cancellation, e: Any) -> bool:
    return not c.known


def id_new_and_recorded(c: Cancellation, e: Any) -> bool:
    return not c.known and c.recorded


def recorded_late(c: Cancellation, e: Any) -> bool:
    return not c.recorded and not in_flight(c, e)


def recorded_late_and_id_known(c: Cancellation, e: Any) -> bool:
    return recorded_late(c, e) and c.known


def never_ran(c: Cancellation, e: Any) -> bool:
    return in_flight(c, e) or not c.known


def not_yet_escalated(c: Cancellation, e: Any) -> bool:
    return not c.escalated


def request_out(c: Cancellation, e: Any) -> bool:
    return in_flight(c, e) or reply_awaited(c, e)


def reply_awaited(c: Cancellation, e: Any) -> bool:
    return c.awaiting is Awaiting.REPLY and bool(e.attempt == c.attempts)


def reply_retryable(c: Cancellation, e: Any) -> bool:
    young = c.known_at is not None and e.at - c.known_at < c.young
    retryable = e.status in (408, 429) or e.status >= 500 or (e.status == 404 and young)
    return reply_awaited(c, e) and retryable


def reply_accepts(c: Cancellation, e: Any) -> bool:
    terminal = e.run in (RunStatus.CANCELLED, RunStatus.FINISHED)
    return reply_awaited(c, e) and 200 <= e.status < 300 and not terminal


def may_have_arrived(c: Cancellation, e: Any) -> bool:
    return reply_awaited(c, e) and bool(e.may_have_arrived)


def retry_fits(c: Cancellation, e: Any) -> bool:
    return plan_awaited(c, e) and e.allowed and (c.deadline is None or e.at + e.delay < c.deadline)


def plan_awaited(c: Cancellation, e: Any) -> bool:
    return c.awaiting is Awaiting.PLAN and bool(e.attempt == c.attempts)


def read_cancelled(c: Cancellation, e: Any) -> bool:
    return not in_flight(c, e) and e.run is RunStatus.CANCELLED


def read_finished(c: Cancellation, e: Any) -> bool:
    return not in_flight(c, e) and e.run is RunStatus.FINISHED


def read_awaited(c: Cancellation, e: Any) -> bool:
    return c.awaiting is Awaiting.READ and bool(e.read == c.reads)


def read_accepted(c: Cancellation, e: Any) -> bool:
    return read_awaited(c, e) and (c.accepted or getattr(e, "run", None) is RunStatus.CANCELLING)


def retry_due(c: Cancellation, e: Any) -> bool:
    return c.awaiting is Awaiting.RETRY and bool(e.timer == c.timer)


def poll_due(c: Cancellation, e: Any) -> bool:
    return c.awaiting is Awaiting.POLL and bool(e.timer == c.timer)


# Actions: the new facts, and the effects. The state has moved already when they run.


def begin(c: Cancellation, e: Any) -> Next:
    """Keep the first intent, close the fence."""
    c = replace(c, intent=e.intent, deadline=e.intent.deadline, level=e.intent.level)
    return c, (Record(e.intent), CloseFence())


def join(c: Cancellation, e: Any) -> Next:
    """Append a later intent; the deadline may only come nearer, the level only rise."""
    deadline = e.intent.deadline if c.deadline is None else min(c.deadline, e.intent.deadline)
    level = e.intent.level if c.level is None or e.intent.level.rank > c.level.rank else c.level
    return replace(c, later=(*c.later, e.intent), deadline=deadline, level=level), (Record(e.intent),)


def append(c: Cancellation, e: Any) -> Next:
    """Append an intent that came after the end."""
    return replace(c, later=(*c.later, e.intent)), (Record(e.intent),)


def note_over(c: Cancellation, e: Any) -> Next:
    """Remember that the run ended before anybody cancelled it. Finished beats cancelled."""
    if c.over is RunStatus.FINISHED:
        return c, ()
    finished = isinstance(e, CallFinished) or e.run is RunStatus.FINISHED
    over = RunStatus.FINISHED if finished else RunStatus.CANCELLED
    return replace(_noting(c, e), over=over, evidence=_evidence(e)), ()


def note_recorded(c: Cancellation, e: Any) -> Next:
    return replace(c, recorded=True), ()


def learn_id(c: Cancellation, e: Any) -> Next:
    return replace(c, known=True, known_at=e.at), ()


def interrupt_call(c: Cancellation, e: Any) -> Next:
    return c, (InterruptCall(),)


def escalate(c: Cancellation, e: Any) -> Next:
    """Close the socket; a remote run's caller is let go as well."""
    effects: tuple[Effect, ...] = (InterruptCall(),)
    return replace(c, escalated=True), effects if in_flight(c, e) else (*effects, AbandonWait())


def abandon_wait(c: Cancellation, e: Any) -> Next:
    return c, (AbandonWait(),)


def send_cancel(c: Cancellation, e: Any) -> Next:
    c = replace(c, attempts=c.attempts + 1, awaiting=Awaiting.REPLY)
    return c, (SendCancel(c.attempts),)


def read_status(c: Cancellation, e: Any) -> Next:
    c = replace(_noting(c, e), reads=c.reads + 1, awaiting=Awaiting.READ)
    return c, (ReadStatus(c.reads),)


def plan_retry(c: Cancellation, e: Any) -> Next:
    retry_after = getattr(e, "retry_after", None)
    return replace(_noting(c, e), awaiting=Awaiting.PLAN), (PlanRetry(c.attempts, retry_after),)


def start_retry_timer(c: Cancellation, e: Any) -> Next:
    c = replace(c, timer=c.timer + 1, awaiting=Awaiting.RETRY)
    return c, (StartTimer(e.delay, c.timer),)


def start_poll_timer(c: Cancellation, e: Any) -> Next:
    """Time the next status read; never sooner than the server asked for.

    Quick at first, then slower: a tenth of the time that the cancel has taken so far, at most `poll`.
    """
    asked = getattr(e, "delay", None) or getattr(e, "retry_after", None) or 0.0
    so_far = e.at - c.intent.at if c.intent is not None else 0.0
    wait = min(c.poll, max(SOONEST_POLL, so_far * POLL_SHARE))
    c = replace(_noting(c, e), timer=c.timer + 1, awaiting=Awaiting.POLL)
    return c, (StartTimer(max(wait, asked), c.timer),)


def accept(c: Cancellation, e: Any) -> Next:
    """The server has taken the cancel on: answer whoever waits for no more than that, once."""
    effects = () if c.accepted else (Answer(Outcome.ACCEPTED, Level.ACCEPTED),)
    return replace(c, accepted=True), effects


def answer_sent(c: Cancellation, e: Any) -> Next:
    return c, (Answer(Outcome.SENT, Level.SENT),)


def answer_parked(c: Cancellation, e: Any) -> Next:
    return c, (Answer(Outcome.PARKED, Level.SENT),)


def answer_outcome(c: Cancellation, e: Any) -> Next:
    """Answer a latecomer with the outcome on the record."""
    return c, (Answer(_OUTCOMES[c.state], Level.CONFIRMED),)


def settle(c: Cancellation, e: Any) -> Next:
    """Put the outcome on the record, with what it rests on."""
    outcome, refined = _OUTCOMES[c.state], c.settled is not None
    evidence = c.evidence if c.over is not None else _evidence(e)
    c = replace(_noting(c, e), settled=outcome, refined=refined, evidence=evidence)
    return c, (Settle(outcome, evidence, refined),)


def _noting(c: Cancellation, e: Any) -> Cancellation:
    word = getattr(e, "word", None)
    return c if word is None else replace(c, status=word)


def _evidence(e: Any) -> Evidence:
    if isinstance(e, StatusRead):
        return e.evidence
    return Evidence.TRANSPORT if isinstance(e, (CallLeft, CallFinished, NeverSent)) else Evidence.NONE
