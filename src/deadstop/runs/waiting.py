"""On what terms a canceller waits, and what it does while it waits. Without the waiting itself."""

from __future__ import annotations

import time
from typing import NamedTuple, Optional, Union

from deadstop.calls.call import Call
from deadstop.core.model import CancelReceipt, Level
from deadstop.core.policy import CancelPolicy
from deadstop.errors import UsageError
from deadstop.runs.cancelling import Cancelling
from deadstop.runs.registry import Registry, checked_seconds
from deadstop.runs.run import BaseRun

__all__ = ["Terms", "answer", "first_wait", "next_wait", "overdue", "stuck", "terms"]


class Terms(NamedTuple):
    """What a canceller asked for. `deadline` and `grace` are moments on the monotonic clock."""

    level: Level
    deadline: float
    grace: float
    on_timeout: str


def terms(
    registry: Registry,
    run: Optional[BaseRun],
    wait: Union[Level, str, None],
    timeout: Optional[float],
    policy: Optional[CancelPolicy],
) -> Terms:
    """The terms of a cancel that is asked for now. Raises `UsageError`, and then nothing was cancelled."""
    now = time.monotonic()
    chosen = registry.policy_for(run, policy)
    seconds = chosen.timeout if timeout is None else checked_seconds("timeout", timeout)
    level = chosen.wait
    if wait is not None:
        try:
            level = Level(wait)
        except ValueError:
            raise UsageError(f"wait is {wait!r}: give one of 'sent', 'accepted' and 'confirmed'.") from None
    return Terms(level, now + seconds, now + min(chosen.grace, seconds), chosen.on_timeout)


def first_wait(cancelling: Cancelling, asked: Terms) -> Optional[Call]:
    """The call to wait for before anything else is done; None if there is none that may be waited for."""
    if asked.level is not Level.CONFIRMED:
        return None
    pending = cancelling.pending()
    return pending[-1] if pending and not stuck(cancelling) else None


def next_wait(cancelling: Cancelling, asked: Terms) -> float:
    """How long (seconds) to wait before there is something to do."""
    now = time.monotonic()
    until = asked.deadline if now >= asked.grace else asked.grace
    return max(until - now, 0.0)


def overdue(cancelling: Cancelling, asked: Terms) -> None:
    """A wait was in vain: interrupt again when the grace is spent, give up at the deadline."""
    now = time.monotonic()
    if now >= asked.deadline:
        cancelling.deadline_passed()
    elif now >= asked.grace:
        cancelling.grace_spent()


def stuck(cancelling: Cancelling) -> bool:
    """Whether waiting is in vain, because the canceller stands inside what it waits for."""
    return cancelling.stuck_here()


def answer(cancelling: Cancelling, asked: Terms) -> CancelReceipt:
    """The receipt for this canceller: the final one, or what is known at the level it asked for."""
    if cancelling.receipt is not None:
        return cancelling.receipt
    return cancelling.snapshot(asked.level if asked.level is not Level.CONFIRMED else Level.ACCEPTED)
