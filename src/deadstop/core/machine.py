"""The machine: ``step`` reads the table. This is the door the shells come in by.

::

    step(cancellation, event) -> (the next cancellation, the effects to perform in order)
"""

from __future__ import annotations

from collections.abc import Iterable

from deadstop.core.cancellation import ACTIVE, ENDED, Awaiting, Cancellation, State, Target, replace
from deadstop.core.events import (
    EVENTS,
    AbandonWait,
    Answer,
    CallFinished,
    CallLeft,
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
    StatusRead,
    TimerFired,
)
from deadstop.core.model import RunStatus
from deadstop.core.transitions import IGNORE, TRANSITIONS, Rule, Table

__all__ = [
    "ACTIVE",
    "ENDED",
    "EVENTS",
    "IGNORE",
    "TRANSITIONS",
    "AbandonWait",
    "Answer",
    "Awaiting",
    "CallFinished",
    "CallLeft",
    "CancelRequested",
    "Cancellation",
    "CloseFence",
    "DeadlinePassed",
    "Effect",
    "Event",
    "GraceSpent",
    "IdLearned",
    "InterruptCall",
    "NeverSent",
    "PlanRetry",
    "ReadFailed",
    "ReadStatus",
    "Record",
    "Recorded",
    "Replied",
    "RequestLeft",
    "RetryPlanned",
    "Rule",
    "SendCancel",
    "SendFailed",
    "Settle",
    "StartTimer",
    "State",
    "StatusRead",
    "Table",
    "Target",
    "TimerFired",
    "in_order",
    "step",
]


def step(
    cancellation: Cancellation, event: Event, table: Table = TRANSITIONS
) -> tuple[Cancellation, tuple[Effect, ...]]:
    """What follows from ``event``. Never raises; a late or repeated event changes nothing."""
    for rule in table[cancellation.state, type(event)]:
        if rule.when(cancellation, event):
            if rule.to is not None:
                cancellation = replace(cancellation, state=rule.to)
            effects: tuple[Effect, ...] = ()
            for action in rule.actions:
                cancellation, more = action(cancellation, event)
                effects += more
            return cancellation, effects
    return cancellation, ()


def in_order(events: Iterable[Event]) -> list[Event]:
    """Events of the same moment in the order that decides a tie: finished, cancelled, the rest, deadline."""
    return sorted(events, key=lambda event: (event.at, _tie(event)))


def _tie(event: Event) -> int:
    run = event.run if isinstance(event, StatusRead) else None
    if isinstance(event, CallFinished) or run is RunStatus.FINISHED:
        return 0
    if isinstance(event, (CallLeft, NeverSent)) or run is RunStatus.CANCELLED:
        return 1
    return 3 if isinstance(event, DeadlinePassed) else 2
