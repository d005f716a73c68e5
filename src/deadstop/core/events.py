"""What the shells tell the machine (events) and what it tells them to do (effects)."""

from __future__ import annotations

from dataclasses import dataclass

from deadstop.core.model import Evidence, Intent, Level, Outcome, RunStatus


@dataclass(frozen=True)
class Event:
    """Something that happened, at ``at`` seconds on the shell's monotonic clock."""

    at: float


@dataclass(frozen=True)
class CancelRequested(Event):
    """Somebody wants the run cancelled."""

    intent: Intent


class Recorded(Event):
    """The intent is on the record: a crash can't lose it any more."""


class IdLearned(Event):
    """The remote run has an id now, so a cancel can be addressed to it."""


class NeverSent(Event):
    """The request that starts the run provably never left, and won't."""


@dataclass(frozen=True)
class RequestLeft(Event):
    """The ``attempt``-th cancel request was handed to the network, its answer still to come."""

    attempt: int


@dataclass(frozen=True)
class Replied(Event):
    """The server answered the ``attempt``-th cancel request.

    ``status`` is HTTP's; ``word`` is the run's status as the provider says it and ``run`` what that means;
    ``retry_after`` is in seconds.
    """

    attempt: int
    status: int
    run: RunStatus = RunStatus.UNKNOWN
    word: str | None = None
    retry_after: float | None = None


@dataclass(frozen=True)
class SendFailed(Event):
    """The ``attempt``-th cancel request got no answer.

    ``may_have_arrived``: it timed out or was reset; False if it provably never reached the server.
    """

    attempt: int
    may_have_arrived: bool = False


@dataclass(frozen=True)
class RetryPlanned(Event):
    """The answer to PlanRetry: how long to wait (seconds), and whether the budget allows a retry then."""

    attempt: int
    delay: float
    allowed: bool


@dataclass(frozen=True)
class StatusRead(Event):
    """The run's status was learned: by the ``read``-th read, or unasked (0), as from an event stream."""

    run: RunStatus
    word: str | None = None
    read: int = 0
    evidence: Evidence = Evidence.STATUS


@dataclass(frozen=True)
class ReadFailed(Event):
    """The ``read``-th status read failed. ``retry_after`` is in seconds."""

    read: int
    retry_after: float | None = None


@dataclass(frozen=True)
class TimerFired(Event):
    """The timer of that number went off."""

    timer: int


class CallLeft(Event):
    """The in-flight call has left the transport and its socket is closed, or it never entered."""


class CallFinished(Event):
    """The in-flight call finished before the fence closed."""


class GraceSpent(Event):
    """The gentle way had its time."""


class DeadlinePassed(Event):
    """The cancel's time is up."""


EVENTS: tuple[type[Event], ...] = (
    *(CancelRequested, Recorded, IdLearned, NeverSent, RequestLeft, Replied, SendFailed, RetryPlanned),
    *(StatusRead, ReadFailed, TimerFired, CallLeft, CallFinished, GraceSpent, DeadlinePassed),
)


@dataclass(frozen=True)
class Effect:
    """Something for the shell to do, in the order given."""


@dataclass(frozen=True)
class Record(Effect):
    """Write the intent down; for a remote run, say Recorded when that is durable."""

    intent: Intent


class CloseFence(Effect):
    """From now on nothing of the run is delivered."""


class InterruptCall(Effect):
    """Abort the in-flight call and close its connection."""


class AbandonWait(Effect):
    """Stop waiting for the operation: free its caller where that can be done; ignore what arrives late."""


@dataclass(frozen=True)
class SendCancel(Effect):
    """Send the ``attempt``-th cancel request."""

    attempt: int


@dataclass(frozen=True)
class ReadStatus(Effect):
    """Read the run's status, for the ``read``-th time."""

    read: int


@dataclass(frozen=True)
class PlanRetry(Effect):
    """Say RetryPlanned: ``deadstop.core.budget.plan`` works it out."""

    attempt: int
    retry_after: float | None = None


@dataclass(frozen=True)
class StartTimer(Effect):
    """Say TimerFired, with that number, after ``delay`` seconds."""

    delay: float
    timer: int


@dataclass(frozen=True)
class Answer(Effect):
    """Answer the callers who wait for ``level`` or less."""

    outcome: Outcome
    level: Level


@dataclass(frozen=True)
class Settle(Effect):
    """Record the outcome and answer every caller. ``refined``: it replaces an ``unconfirmed`` one."""

    outcome: Outcome
    evidence: Evidence = Evidence.NONE
    refined: bool = False
