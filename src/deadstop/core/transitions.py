"""The life of a cancellation, as data: one total table.

A cell is a tuple of rules, tried in order: the first whose guard holds is taken, and if none does, nothing
changes. The empty cell is ``IGNORE``. Every (state, event) has a cell. The words that the rules are written
in are in ``cancellation``.

The same table serves the two kinds of run. An in-flight call goes NONE -> SENDING -> CONFIRMED as soon as it
has left the transport. A remote run's intent is recorded first; then a request is sent, and believed only
when the run's status has been read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from deadstop.core.cancellation import (
    Action,
    Guard,
    State,
    abandon_wait,
    accept,
    always,
    answer_outcome,
    answer_parked,
    answer_sent,
    append,
    begin,
    cancelled_already,
    escalate,
    finished_already,
    id_known,
    id_new,
    id_new_and_recorded,
    in_flight,
    interrupt_call,
    join,
    learn_id,
    may_have_arrived,
    never_ran,
    not_yet_escalated,
    note_over,
    note_recorded,
    plan_awaited,
    plan_retry,
    poll_due,
    read_accepted,
    read_awaited,
    read_cancelled,
    read_finished,
    read_status,
    recorded_late,
    recorded_late_and_id_known,
    reply_accepts,
    reply_awaited,
    reply_retryable,
    request_out,
    request_repeated,
    retry_due,
    retry_fits,
    send_cancel,
    settle,
    start_poll_timer,
    start_retry_timer,
)
from deadstop.core.events import (
    EVENTS,
    CallFinished,
    CallLeft,
    CancelRequested,
    DeadlinePassed,
    Event,
    GraceSpent,
    IdLearned,
    NeverSent,
    ReadFailed,
    Recorded,
    Replied,
    RequestLeft,
    RetryPlanned,
    SendFailed,
    StatusRead,
    TimerFired,
)

__all__ = ["IGNORE", "TRANSITIONS", "Cell", "Rule", "Table", "go"]


class Rule(NamedTuple):
    """If ``when`` holds: go to ``to`` (None: stay), then take the ``actions`` in order."""

    when: Guard
    to: State | None
    actions: tuple[Action, ...]


Cell = tuple[Rule, ...]
Table = Mapping[tuple[State, type[Event]], Cell]


def go(to: State | None, *actions: Action, when: Guard = always) -> Rule:
    return Rule(when, to, actions)


STAY = None
IGNORE: Cell = ()


def ignoring(*events: type[Event]) -> Mapping[type[Event], Cell]:
    return dict.fromkeys(events, IGNORE)


(NONE, INTENT, PARKED, SENDING) = (State.NONE, State.INTENT, State.PARKED, State.SENDING)
(ACCEPTED, BACKING_OFF, VERIFYING) = (State.ACCEPTED, State.BACKING_OFF, State.VERIFYING)
(ESCALATING, UNCONFIRMED) = (State.ESCALATING, State.UNCONFIRMED)
(CONFIRMED, LOST_RACE) = (State.CONFIRMED, State.LOST_RACE)

# Cells that several states share.

FIRST_CANCEL: Cell = (
    go(LOST_RACE, begin, settle, when=finished_already),
    go(CONFIRMED, begin, settle, when=cancelled_already),
    go(SENDING, begin, interrupt_call, when=in_flight),
    go(INTENT, begin),
)
LATER_CANCEL: Cell = (go(STAY, when=request_repeated), go(STAY, join))
LATE_CANCEL: Cell = (go(STAY, answer_outcome, when=request_repeated), go(STAY, append, answer_outcome))

CALL_LEFT: Cell = (go(CONFIRMED, settle, when=in_flight),)
CALL_FINISHED: Cell = (go(LOST_RACE, settle, when=in_flight),)
NEVER_SENT: Cell = (go(CONFIRMED, settle, when=never_ran),)
GRACE_SPENT: Cell = (go(ESCALATING, escalate, when=not_yet_escalated),)
DEADLINE: Cell = (go(UNCONFIRMED, abandon_wait, settle),)

REQUEST_LEFT: Cell = (go(STAY, answer_sent, when=request_out),)
REPLIED: Cell = (
    go(BACKING_OFF, plan_retry, when=reply_retryable),
    go(ACCEPTED, accept, start_poll_timer, when=reply_accepts),
    go(VERIFYING, read_status, when=reply_awaited),  # a refusal is never believed: read the truth back
)
SEND_FAILED: Cell = (
    go(VERIFYING, read_status, when=may_have_arrived),
    go(BACKING_OFF, plan_retry, when=reply_awaited),
)
RETRY_PLANNED: Cell = (
    go(STAY, start_retry_timer, when=retry_fits),
    go(STAY, start_poll_timer, when=plan_awaited),  # no retry to be had: the truth may still be read
)
TERMINAL: Cell = (
    go(CONFIRMED, settle, when=read_cancelled),
    go(LOST_RACE, settle, when=read_finished),
)
STATUS_READ: Cell = (
    *TERMINAL,
    go(ACCEPTED, accept, start_poll_timer, when=read_accepted),
    go(BACKING_OFF, plan_retry, when=read_awaited),
)
READ_FAILED: Cell = (
    go(ACCEPTED, start_poll_timer, when=read_accepted),
    go(BACKING_OFF, plan_retry, when=read_awaited),
)
POLL: Cell = (go(VERIFYING, read_status, when=poll_due),)
TIMER: Cell = (go(SENDING, send_cancel, when=retry_due), *POLL)

_ROWS: Mapping[State, Mapping[type[Event], Cell]] = {
    NONE: {
        CancelRequested: FIRST_CANCEL,
        IdLearned: (go(STAY, learn_id, when=id_new),),
        StatusRead: (go(STAY, note_over, when=read_cancelled), go(STAY, note_over, when=read_finished)),
        CallFinished: (go(STAY, note_over, when=in_flight),),
        NeverSent: IGNORE,  # the caller may submit it again
        CallLeft: IGNORE,  # the SDK may try it again
        **ignoring(
            Recorded,
            RequestLeft,
            Replied,
            SendFailed,
            RetryPlanned,
            ReadFailed,
            TimerFired,
            GraceSpent,
            DeadlinePassed,
        ),
    },
    INTENT: {
        CancelRequested: LATER_CANCEL,
        Recorded: (
            go(SENDING, note_recorded, send_cancel, when=id_known),
            go(PARKED, note_recorded, answer_parked),
        ),
        IdLearned: (go(STAY, learn_id, when=id_new),),
        NeverSent: NEVER_SENT,
        StatusRead: TERMINAL,
        GraceSpent: GRACE_SPENT,
        DeadlinePassed: DEADLINE,
        **ignoring(RequestLeft, Replied, SendFailed, RetryPlanned, ReadFailed, TimerFired, CallLeft, CallFinished),
    },
    PARKED: {
        CancelRequested: LATER_CANCEL,
        IdLearned: (go(SENDING, learn_id, send_cancel),),
        NeverSent: NEVER_SENT,
        StatusRead: TERMINAL,
        GraceSpent: GRACE_SPENT,
        DeadlinePassed: DEADLINE,
        **ignoring(
            Recorded,
            RequestLeft,
            Replied,
            SendFailed,
            RetryPlanned,
            ReadFailed,
            TimerFired,
            CallLeft,
            CallFinished,
        ),
    },
    SENDING: {
        CancelRequested: LATER_CANCEL,
        NeverSent: NEVER_SENT,
        RequestLeft: REQUEST_LEFT,
        Replied: REPLIED,
        SendFailed: SEND_FAILED,
        StatusRead: TERMINAL,
        CallLeft: CALL_LEFT,
        CallFinished: CALL_FINISHED,
        GraceSpent: GRACE_SPENT,
        DeadlinePassed: DEADLINE,
        **ignoring(Recorded, IdLearned, RetryPlanned, ReadFailed, TimerFired),
    },
    ACCEPTED: {
        CancelRequested: LATER_CANCEL,
        StatusRead: TERMINAL,
        TimerFired: POLL,
        GraceSpent: GRACE_SPENT,
        DeadlinePassed: DEADLINE,
        CallLeft: IGNORE,  # a remote run goes on without its caller
        **ignoring(
            Recorded,
            IdLearned,
            NeverSent,
            RequestLeft,
            Replied,
            SendFailed,
            RetryPlanned,
            ReadFailed,
            CallFinished,
        ),
    },
    BACKING_OFF: {
        CancelRequested: LATER_CANCEL,
        RetryPlanned: RETRY_PLANNED,
        StatusRead: TERMINAL,
        TimerFired: TIMER,
        GraceSpent: GRACE_SPENT,
        DeadlinePassed: DEADLINE,
        **ignoring(
            Recorded,
            IdLearned,
            NeverSent,
            RequestLeft,
            Replied,
            SendFailed,
            ReadFailed,
            CallLeft,
            CallFinished,
        ),
    },
    VERIFYING: {
        CancelRequested: LATER_CANCEL,
        StatusRead: STATUS_READ,
        ReadFailed: READ_FAILED,
        GraceSpent: GRACE_SPENT,
        DeadlinePassed: DEADLINE,
        **ignoring(
            Recorded,
            IdLearned,
            NeverSent,
            RequestLeft,
            Replied,
            SendFailed,
            RetryPlanned,
            TimerFired,
            CallLeft,
            CallFinished,
        ),
    },
    # Grace may be spent in any active state, so whatever that state was waiting for is still to come.
    ESCALATING: {
        CancelRequested: LATER_CANCEL,
        Recorded: (
            go(SENDING, note_recorded, send_cancel, when=recorded_late_and_id_known),
            go(STAY, note_recorded, when=recorded_late),
        ),
        IdLearned: (
            go(SENDING, learn_id, send_cancel, when=id_new_and_recorded),
            go(STAY, learn_id, when=id_new),
        ),
        NeverSent: NEVER_SENT,
        RequestLeft: REQUEST_LEFT,
        Replied: REPLIED,
        SendFailed: SEND_FAILED,
        RetryPlanned: RETRY_PLANNED,
        StatusRead: STATUS_READ,
        ReadFailed: READ_FAILED,
        TimerFired: TIMER,
        CallLeft: CALL_LEFT,
        CallFinished: CALL_FINISHED,
        DeadlinePassed: DEADLINE,
        **ignoring(GraceSpent),
    },
    # The caller has its answer; the truth may still come out, and a tombstone is still applied.
    UNCONFIRMED: {
        CancelRequested: LATE_CANCEL,
        Recorded: (
            go(STAY, note_recorded, send_cancel, when=recorded_late_and_id_known),
            go(STAY, note_recorded, when=recorded_late),
        ),
        IdLearned: (
            go(STAY, learn_id, send_cancel, when=id_new_and_recorded),
            go(STAY, learn_id, when=id_new),
        ),
        NeverSent: NEVER_SENT,
        Replied: (go(STAY, read_status, when=reply_awaited),),
        SendFailed: (go(STAY, read_status, when=may_have_arrived),),
        StatusRead: TERMINAL,
        CallLeft: CALL_LEFT,
        CallFinished: CALL_FINISHED,
        **ignoring(RequestLeft, RetryPlanned, ReadFailed, TimerFired, GraceSpent, DeadlinePassed),
    },
    CONFIRMED: {CancelRequested: LATE_CANCEL, **ignoring(*EVENTS[1:])},
    LOST_RACE: {CancelRequested: LATE_CANCEL, **ignoring(*EVENTS[1:])},
}

TRANSITIONS: Table = {(state, event): cell for state, row in _ROWS.items() for event, cell in row.items()}
