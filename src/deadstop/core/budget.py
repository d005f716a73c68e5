"""The retry budget: a token bucket per server, so that cancels don't pile onto one that is down."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deadstop.core.events import PlanRetry, RetryPlanned
from deadstop.core.policy import Backoff


@dataclass(frozen=True)
class Budget:
    """Up to ``capacity`` retries at once, and ``refill`` more per second. A first attempt costs nothing."""

    capacity: float = 10.0
    refill: float = 0.5
    tokens: float | None = None
    at: float | None = None

    def available(self, now: float) -> float:
        """The tokens there are at ``now`` (monotonic seconds)."""
        tokens = self.capacity if self.tokens is None else self.tokens
        passed = 0.0 if self.at is None else max(0.0, now - self.at)
        return min(self.capacity, tokens + passed * self.refill)

    def spend(self, now: float, *, attempt: int = 2) -> tuple[bool, Budget]:
        """Whether the ``attempt``-th attempt may be made at ``now``, and what is left then."""
        if attempt <= 1:
            return True, self
        tokens = self.available(now)
        at = now if self.at is None else max(now, self.at)
        allowed = tokens >= 1
        return allowed, replace(self, tokens=tokens - allowed, at=at)


SPARE = 0.05
"""What a request needs at least, in seconds. An attempt that is to last until the deadline may end a moment before it,
and another one then could do nothing but look like a connection that can't be made in time."""


def plan(
    asked: PlanRetry, *, at: float, deadline: float | None, backoff: Backoff, budget: Budget, random: float
) -> tuple[RetryPlanned, Budget]:
    """Answer PlanRetry. A retry that would have less than `SPARE` seconds is not allowed, and costs nothing.

    ``random`` is a number in [0, 1) that the caller draws.
    """
    delay = backoff.delay(max(1, asked.attempt), random, asked.retry_after)
    if deadline is not None and at + delay + SPARE > deadline:
        return RetryPlanned(at, asked.attempt, delay, allowed=False), budget
    allowed, budget = budget.spend(at, attempt=asked.attempt + 1)
    return RetryPlanned(at, asked.attempt, delay, allowed), budget
