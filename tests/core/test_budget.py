"""Retries are paid for from one bucket, and a first attempt is free."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deadstop.core.budget import Budget, plan
from deadstop.core.machine import PlanRetry, RetryPlanned
from deadstop.core.policy import Backoff

MOMENTS = st.lists(st.floats(0, 1_000), max_size=60)


@given(MOMENTS, st.integers(1, 20), st.floats(0.01, 10))
def test_i20_a_first_attempt_is_always_allowed(moments: list[float], capacity: int, refill: float) -> None:
    """I20: however much has been spent, attempt 1 is allowed and costs nothing."""
    budget = Budget(capacity, refill)
    for now in moments:
        _, budget = budget.spend(now)
        assert budget.spend(now, attempt=1) == (True, budget)


@given(MOMENTS, st.integers(1, 20), st.floats(0.01, 10))
def test_i20_retries_never_exceed_the_bucket(moments: list[float], capacity: int, refill: float) -> None:
    """I20: in any span of time no more retries are allowed than the capacity and what was refilled."""
    budget, allowed = Budget(capacity, refill), []
    for now in sorted(moments):
        yes, budget = budget.spend(now)
        assert 0 <= budget.available(now) <= capacity
        allowed += [now] if yes else []
    for i, first in enumerate(allowed):
        for j, last in enumerate(allowed[i:], start=1):
            assert j <= capacity + (last - first) * refill + 1e-6


def test_a_clock_that_runs_backwards_gives_no_tokens() -> None:
    """Two threads may report their moments out of order; that refills nothing."""
    _, budget = Budget(capacity=1).spend(100.0)
    assert budget.spend(50.0)[0] is False
    assert budget.spend(50.0)[1].spend(100.0)[0] is False
    assert budget.spend(102.0)[0] is True


def test_a_retry_that_would_come_too_late_costs_nothing() -> None:
    """The server's Retry-After is obeyed: if it goes beyond the deadline, there is no retry to pay for."""
    budget = Budget()
    asked = PlanRetry(1, retry_after=30.0)
    planned, left = plan(asked, at=0.0, deadline=10.0, backoff=Backoff(), budget=budget, random=0.5)
    assert planned == RetryPlanned(0.0, 1, 30.0, allowed=False)
    assert left == budget
    assert not plan(asked, at=0.0, deadline=30.04, backoff=Backoff(), budget=budget, random=0.5)[0].allowed
    planned, left = plan(asked, at=0.0, deadline=31.0, backoff=Backoff(), budget=budget, random=0.5)
    assert planned == RetryPlanned(0.0, 1, 30.0, allowed=True)
    assert left.available(0.0) == budget.capacity - 1
