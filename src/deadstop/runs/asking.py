"""A cancel that could not be confirmed in time, and somebody who asks for it once more."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Optional

from deadstop.calls.completion import Completion
from deadstop.core.model import Intent, Outcome

if TYPE_CHECKING:
    from deadstop.runs.cancelling import Cancelling

__all__ = ["ask_again", "due", "go_on", "is_unconfirmed"]


def due(intent: Intent, timeout: float) -> float:
    """When (monotonic seconds) that intent's time is up; `timeout` is for one that names no time."""
    return intent.deadline if math.isfinite(intent.deadline) else intent.at + timeout


def ask_again(cancelling: Cancelling, intent: Intent) -> None:
    """Somebody asks for what could not be confirmed: try once more. Never blocks; in signal handlers, too."""
    if not is_unconfirmed(cancelling):
        return
    once = cancelling._once
    if "sure" not in once or once["sure"].is_set():
        once["sure"] = Completion()
    for child in list(cancelling._children):
        ask_again(child, child.run.intent_of(intent))
    remote, registry = cancelling.run.remote, cancelling.run.registry
    if remote is not None:
        until = due(intent, registry.policy_for(cancelling.run, cancelling._policy).timeout)
        over = partial(_nothing_more, cancelling)
        ask = partial(registry.reconciler.again, cancelling.run, intent, until, over)
        if not remote.channel.spawn(ask):
            ask()
    if not is_unconfirmed(cancelling):  # meanwhile
        once["sure"].set()
    elif remote is None:
        _nothing_more(cancelling)


def go_on(cancelling: Cancelling, intent: Intent) -> Optional[Completion]:
    """Who asked so has time left, and it is unconfirmed. What to wait for, where it is being tried once more.

    It is where somebody has asked again, and where it was another's nearer deadline that ended it.
    """
    heard = [each.at for each in (cancelling.intent, *cancelling._late) if each.request_id == intent.request_id]
    repeated = intent.request_id is not None and intent.at not in heard  # has the answer of the one before it (I8)
    if repeated:
        return None
    if not _is_pursued(cancelling) and _cut_off(cancelling, intent):
        ask_again(cancelling, intent)
    return cancelling._once["sure"] if _is_pursued(cancelling) else None


def _is_pursued(cancelling: Cancelling) -> bool:
    """Whether it was not confirmed in time, and then asked for again, which has not come to an end."""
    return "sure" in cancelling._once and not cancelling._once["sure"].is_set()


def is_unconfirmed(cancelling: Cancelling) -> bool:
    """Whether that is what it has come to, so far."""
    return cancelling._final is not None and cancelling._final.outcome is Outcome.UNCONFIRMED


def _cut_off(cancelling: Cancelling, intent: Intent) -> bool:
    """Whether a deadline ended it that is before that of `intent`. One that is hopeless ends before any."""
    chase = cancelling._chase
    if chase is not None and chase.machine.outcome is Outcome.UNCONFIRMED:
        early = chase.hopeless or chase.stopped
        if not early and time.monotonic() < due(intent, chase.policy.timeout):
            return True
    calls = any(machine.outcome is Outcome.UNCONFIRMED for machine in list(cancelling._machines.values()))
    return calls or any(_cut_off(child, intent) for child in list(cancelling._children))


def _nothing_more(cancelling: Cancelling) -> None:
    """Nobody here is at work on it any more, so there is nothing to wait for: once it knows what they came to."""
    settled, chase = partial(cancelling.after, partial(_end_wait, cancelling)), cancelling._chase
    if chase is None:
        settled()
    else:
        chase.after(settled)


def _end_wait(cancelling: Cancelling) -> None:
    sure = cancelling._once.get("sure")
    out_there = any(not call.left.is_set() for call in list(cancelling.calls.values()))
    if sure is None or out_there or any(_is_pursued(child) for child in list(cancelling._children)):
        return
    sure.set()
    for above in list(cancelling._above):
        _nothing_more(above)
