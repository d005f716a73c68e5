"""Retries are rationed for each server, over all cancels of this process (I20)."""

from __future__ import annotations

import random
from typing import Optional

from deadstop.core.budget import Budget, plan
from deadstop.core.machine import PlanRetry, RetryPlanned
from deadstop.core.policy import CancelPolicy

__all__ = ["plan_retry"]

_budgets: dict[str, Budget] = {}  # by base URL


def plan_retry(
    server: str, asked: PlanRetry, policy: CancelPolicy, deadline: Optional[float], now: float
) -> RetryPlanned:
    """Whether and when a cancel that failed is sent again. Times are those of the monotonic clock."""
    planned, _budgets[server] = plan(
        asked,
        at=now,
        deadline=deadline if deadline is not None else now,
        backoff=policy.backoff,
        budget=_budgets.get(server) or Budget(),
        random=random.random(),
    )
    return planned
