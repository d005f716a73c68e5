"""Which streams of a cancelled run are read on for their usage, and until when."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls.call import Call
from deadstop.calls.drain import Drain
from deadstop.core.model import CallFacts, CancelReceipt, Phase, Streamed
from deadstop.core.policy import CancelPolicy
from deadstop.runs.settings import DRAINS, SETTINGS

if TYPE_CHECKING:
    from deadstop.runs.run import BaseRun

__all__ = ["arrange", "usage_of"]

BEING_READ = (Phase.READING, Phase.BETWEEN_EVENTS)
"""When there can be something to drain."""

MARGIN = 0.25
"""How long (seconds) before a cancel's deadline a drain is over: the stream is still to be closed in time."""


def arrange(run: BaseRun, calls: Collection[Call], asked: Any) -> None:
    """Put a drain on those of `calls` that can be drained, if the policy says so. Before their fence closes.

    `asked` has the canceller's own `policy` and `timeout`, where it gave any.
    """
    if not any(call.phase in BEING_READ for call in calls):
        return
    policy: Optional[CancelPolicy] = None if asked is None else asked.policy
    around: Optional[BaseRun] = run
    while policy is None and around is not None:
        policy, around = around.policy, around.parent
    policy = policy or run.registry.policy
    if policy is None:
        if SETTINGS.isdisjoint(DRAINS):
            return
        policy = run.registry.policy_for(run, None)
    if not policy.drain:
        return
    timeout = policy.timeout if asked is None or asked.timeout is None else asked.timeout
    until = time.monotonic() + min(policy.drain, timeout - min(MARGIN, timeout / 4))
    for call in calls:
        if not call.cancelled and _can_be_drained(call):
            call.drain = Drain(call, until)
            call.drain.watch()


def _can_be_drained(call: Call) -> bool:
    """Whether what is being read is a stream that can be read on without its caller, and interrupted."""
    ours = call.tracker is None and not call.multiplexed and not call.opaque and not call.shown
    apart = call.reader is not None or call.streamed is Streamed.INSIDE
    return call.phase in BEING_READ and ours and apart and call.status is not None and call.status < 400


def usage_of(calls: Iterable[CallFacts], children: Iterable[CancelReceipt]) -> Optional[dict[str, Any]]:
    """The usage of all calls together. None if it is unknown of any that was sent: a part of it would mislead."""
    found: list[dict[str, Any]] = []
    for call in calls:
        if call.usage is not None:
            found.append(call.usage)
        elif call.attempt is not None:
            return None
    for child in children:
        if child.usage is not None:
            found.append(child.usage)
        elif child.calls or child.children or child.kind is not None:
            return None
    if not found:
        return None
    total = found[0]
    for each in found[1:]:
        total = _added(total, each)
    return total


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {**one, **other}
    for name in one.keys() & other.keys():
        left, right = one[name], other[name]
        if isinstance(left, dict) and isinstance(right, dict):
            both[name] = _added(left, right)
        elif _is_number(left) and _is_number(right):
            both[name] = left + right
    return both


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
