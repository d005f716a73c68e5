"""What hooks are told: frozen facts. Each is told after it happened, never between a cancel's request and its strike.

Times named `at` are seconds on the monotonic clock, as in receipts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Protocol, Union

from deadstop.core.model import Attempt, CancelReceipt, Cause

__all__ = ["AttemptMade", "CancelRefined", "CancelRequested", "CancelSettled", "Event", "Hook"]


@dataclass(frozen=True)
class CancelRequested:
    """Somebody has asked for a run to be cancelled, and its calls were interrupted.

    `kind` is that of a remote run, `scope` for a run scope, `call` for a call outside of one.
    """

    run: str
    kind: str
    cause: Cause
    at: float
    reason: Optional[str] = None
    actor: Optional[str] = None


@dataclass(frozen=True)
class AttemptMade:
    """A request of a cancel has ended. `request` is `cancel`, or `read` for one that reads the status back.

    `server` is the host it went to, with the port where that is not the usual one. Told together with the outcome.
    """

    run: str
    kind: str
    request: str
    attempt: Attempt
    server: Optional[str] = None


@dataclass(frozen=True)
class CancelSettled:
    """A cancel has an outcome: `receipt`. `at` is when it was asked for; it took `receipt.elapsed`.

    A cancel of a scope settles the children first, each with an event of its own (`receipt.cause` is `parent`).
    """

    run: str
    kind: str
    receipt: CancelReceipt
    at: float
    server: Optional[str] = None


@dataclass(frozen=True)
class CancelRefined:
    """A cancel that had been unconfirmed, `before`, has come to something after all: `receipt`."""

    run: str
    kind: str
    receipt: CancelReceipt
    before: CancelReceipt
    at: float
    server: Optional[str] = None


Event = Union[CancelRequested, AttemptMade, CancelSettled, CancelRefined]


class Hook(Protocol):
    """What is told of each event: any callable of one argument.

    It is called in a thread of ours, one event at a time, in order, in the context (`contextvars`) of whoever asked
    for the cancel. It may block: only the events that follow wait for it. What it raises is logged, once.
    """

    def __call__(self, event: Event, /) -> Any:
        """Something has happened."""
