"""On what terms a canceller waits, and what it does while it waits. Without the waiting itself."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable, Final, NamedTuple, Optional, Union

from deadstop.calls.call import Call, current_call
from deadstop.calls.completion import Completion
from deadstop.core.model import CancelReceipt, Intent, Level, Outcome
from deadstop.core.policy import CancelPolicy
from deadstop.errors import RunCancellationTimeoutError, UsageError
from deadstop.runs.asking import go_on, is_unconfirmed
from deadstop.runs.checks import checked_policy, checked_seconds

if TYPE_CHECKING:
    from deadstop.runs.cancelling import Cancelling
    from deadstop.runs.registry import Registry
    from deadstop.runs.run import BaseRun

__all__ = [
    "ANY",
    "FACTS",
    "FIRST",
    "HEAD_START",
    "LOOK",
    "NEVER",
    "RECORDING",
    "SETTLING",
    "TURNS",
    "Facts",
    "Terms",
    "Wanted",
    "Wish",
    "answer",
    "away_answer",
    "first_wait",
    "goals",
    "intent",
    "next_moment",
    "overdue",
    "reached",
    "somebody_elses",
    "stuck",
    "terms",
    "wish",
]


class Terms(NamedTuple):
    """What a canceller asked for. `deadline` and `grace` are moments on the monotonic clock."""

    level: Level
    deadline: float
    grace: float
    on_timeout: str


class Wish(NamedTuple):
    """What a canceller said itself, checked. What it left open is looked up when there is time (`terms`)."""

    level: Optional[Level]
    timeout: Optional[float]
    policy: Optional[CancelPolicy]


ANY = Wish(None, None, None)
"""The wish of nearly all cancels."""

FACTS: Final = ("reason", "actor", "request_id")
Facts = tuple[Optional[str], Optional[str], Optional[str]]
"""What a canceller said of itself: the values of `FACTS`. (A dict of them takes as long as a third of the strike.)"""

Wanted = tuple[Wish, float, Facts]
"""A wish, its moment (monotonic seconds) and those facts: what an intent is built from."""


def wish(wait: Union[Level, str, None], timeout: Optional[float], policy: Optional[CancelPolicy]) -> Wish:
    """The wish of a cancel. Raises `UsageError`, and then nothing was cancelled."""
    if wait is None and timeout is None and policy is None:
        return ANY
    level = None
    if wait is not None:
        try:
            level = Level(wait)
        except ValueError:
            raise UsageError(f"wait is {wait!r}: give one of 'sent', 'accepted' and 'confirmed'.") from None
    if timeout is not None:
        timeout = checked_seconds("timeout", timeout)
    return Wish(level, timeout, None if policy is None else checked_policy(policy))


def intent(run: BaseRun, wanted: Wanted) -> Intent:
    """The intent that a canceller's words come to. Not before the strike: this is more than all of that."""
    asked, at, (reason, actor, request_id) = wanted
    return run.intent(
        at=at,
        deadline=float("inf") if asked.timeout is None else at + asked.timeout,
        level=asked.level or Level.CONFIRMED,
        reason=reason,
        actor=actor,
        request_id=request_id,
    )


def terms(registry: Registry, run: Optional[BaseRun], asked: Wish, at: float) -> Terms:
    """The terms: the wish of the moment `at`, and the policy in force for what it leaves open."""
    chosen = registry.policy_for(run, asked.policy)
    seconds = chosen.timeout if asked.timeout is None else asked.timeout
    level = asked.level or chosen.wait
    return Terms(level, at + seconds, at + min(chosen.grace, seconds), chosen.on_timeout)


SETTLING = 0.1
"""How long (seconds) to wait for the outcome after the deadline: another thread may be at work on it just now."""

RECORDING = 0.25
"""The same, where another process holds the run: its receipt is put on record first, and then read."""

FIRST = 0.05
"""How long (seconds) to wait for what was interrupted before anything else is done."""

HEAD_START = 0.0004
"""How long (seconds) a thread that has interrupted another one looks away, before it asks to be woken by it."""

NEVER = threading.Lock()
"""Nobody lets go of it: to wait for it is to sleep, which those who test with us may have replaced."""
NEVER.acquire()

TURNS = 3
"""How many turns of the loop a task that has interrupted another one sits out first: that one needs two or three."""

LOOK = 0.25
"""How often (seconds) the record is read by one who waits for an outcome, should the signal of it be lost."""


def goals(cancelling: Cancelling, asked: Terms, wanted: Wanted) -> Iterator[Completion]:
    """What to wait for, one after the other, until the cancel has come as far as was asked for.

    `wanted` is that of this canceller. If its time is not up when another's was, it goes on with what is left to it.
    """
    if asked.level is Level.CONFIRMED:
        yield from (cancelling.done, *cancelling.run.recorded())
    elif not is_unconfirmed(cancelling):
        yield from _lesser_goals(cancelling, asked.level)
    if is_unconfirmed(cancelling) and time.monotonic() < asked.deadline:
        more = go_on(cancelling, intent(cancelling.run, wanted))
        if more is not None:
            yield more


def _lesser_goals(cancelling: Cancelling, level: Level) -> Iterator[Completion]:
    if cancelling.run.remote is not None:
        yield cancelling.chasing  # another canceller may be about to begin with it
        if cancelling._chase is not None:
            yield cancelling._chase.left if level is Level.SENT else cancelling._chase.accepted
    for child in list(cancelling._children):
        yield from _lesser_goals(child, level)


def reached(cancelling: Cancelling, level: Level, tell: Callable[[], object]) -> None:
    """Have `tell()` called once, when the cancel has come as far as `level`, or to its end. Never blocks."""
    never = Terms(level, math.inf, math.inf, "return")
    ahead = goals(cancelling, never, (ANY, 0.0, (None, None, None)))

    def go_on() -> None:
        for goal in ahead:
            if not goal.is_set():
                goal.notify(go_on)
                return
        tell()

    go_on()


def first_wait(cancelling: Cancelling, asked: Wish) -> Optional[Call]:
    """The call to wait for at once; None if there is none that may be waited for, or there is more to be done."""
    return _first_pending(cancelling) if asked.level is None or asked.level is Level.CONFIRMED else None


def _first_pending(cancelling: Cancelling) -> Optional[Call]:
    # A call that has not left yet and is worth waiting for. In one piece: the thread that was interrupted waits for it.
    if cancelling.run.remote is not None:
        return None
    here, thread, found = current_call.get(), threading.get_ident(), None
    for call in cancelling.calls.values():
        if not call.left.done:
            if call is here or (call.thread == thread and not call.in_task and call.is_inside()):
                return None
            found = call
    if cancelling._children:
        if cancelling.has_remotes() or stuck(cancelling):
            return None
        found = found or next(filter(None, (_first_pending(child) for child in list(cancelling._children))), None)
    return found


def next_moment(asked: Terms, now: float) -> float:
    """When there is something to do, should nothing come before."""
    return asked.deadline if now >= asked.grace else asked.grace


def overdue(cancelling: Cancelling, asked: Terms, now: float) -> bool:
    """A wait was in vain: interrupt again when the grace is spent, give up at the deadline. Whether it is over."""
    if now >= asked.deadline:
        cancelling.deadline_passed()
    elif now >= asked.grace:
        cancelling.grace_spent()
    return now >= asked.deadline or (now >= asked.grace and asked.on_timeout == "detach")


def stuck(cancelling: Cancelling) -> bool:
    """Whether waiting is in vain, because the canceller stands inside what it waits for.

    So it is for a signal handler on top of a call, or of another canceller at its book-keeping, and for a hook that a
    call runs: when they return, it goes on.
    """
    here, thread = current_call.get(), threading.get_ident()
    if cancelling.follower == thread:
        return True
    for call in cancelling.calls.values():
        if call.left.is_set():
            continue
        if call is here or (not call.in_task and call.thread == thread and call.is_inside()):
            return True
    return any(stuck(child) for child in list(cancelling._children))


def answer(cancelling: Cancelling, asked: Terms) -> CancelReceipt:
    """The receipt for this canceller: the final one, or what is known at the level it asked for.

    Raises CancelRefusedError.
    """
    if cancelling.refusal is not None:
        raise cancelling.refusal
    if cancelling.receipt is not None:
        return cancelling.receipt
    return cancelling.snapshot(asked.level if asked.level is not Level.CONFIRMED else Level.ACCEPTED)


def somebody_elses(cancelling: Cancelling, facts: Facts) -> Optional[BaseRun]:
    """The run to cancel anew, where it was another actor's cancel that was refused, and this one had joined that."""
    if cancelling.refusal is None or cancelling.why[1] == facts[1]:
        return None
    found: BaseRun = cancelling.run.registry.find(cancelling.run.name)
    return found


def away_answer(away: Any, asked: Terms) -> Optional[CancelReceipt]:
    """The receipt of a cancel elsewhere; None if nobody holds that run, and it is known here."""
    if away.nobody:
        return None
    receipt: CancelReceipt = away.receipt()
    if receipt.outcome is Outcome.UNCONFIRMED and asked.on_timeout in ("raise", "reset"):
        raise RunCancellationTimeoutError(receipt=receipt)
    return receipt
