"""From a cancel to its telemetry. Called when the calls were interrupted, and when there is an outcome."""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Optional
from urllib.parse import urlsplit

from deadstop.calls.call import current_call
from deadstop.core.model import CancelReceipt, Intent
from deadstop.telemetry import dispatch
from deadstop.telemetry.events import AttemptMade, CancelRefined, CancelRequested, CancelSettled

if TYPE_CHECKING:
    from deadstop.runs.run import BaseRun

__all__ = ["requested", "settled"]


def requested(run: BaseRun, intent: Intent) -> Optional[Context]:
    """A cancel was asked for, in this context; what to give to `settled()`."""
    if not dispatch.wanted():
        return None
    context = copy_context()
    context.run(_step_out)
    event = CancelRequested(run.name, _kind(run), intent.cause, intent.at, intent.reason, intent.actor)
    dispatch.emit(event, context)
    return context


def settled(
    run: BaseRun, intent: Intent, receipt: CancelReceipt, before: Optional[CancelReceipt], context: Optional[Context]
) -> None:
    """There is an outcome. `before`: the unconfirmed one that it refines."""
    if receipt.ok and context is None and not dispatch.wanted():
        return
    kind, server = _kind(run), _server(run, receipt)
    for request in ("cancel", "read"):
        name = "attempts" if request == "cancel" else "reads"
        known = 0 if before is None else len(getattr(before, name))
        for attempt in getattr(receipt, name)[known:]:
            dispatch.emit(AttemptMade(run.name, kind, request, attempt, server), context)
    if before is None:
        dispatch.emit(CancelSettled(run.name, kind, receipt, intent.at, server), context)
    else:
        dispatch.emit(CancelRefined(run.name, kind, receipt, before, intent.at, server), context)


def _step_out() -> None:
    # A hook may well use a client of ours; what it starts does not belong to the run that was cancelled.
    from deadstop.runs.run import current_run

    current_run.set(None)
    current_call.set(None)


def _kind(run: BaseRun) -> str:
    if run.remote is not None:
        return run.remote.kind.name
    return "call" if run.anonymous else "scope"


def _server(run: BaseRun, receipt: CancelReceipt) -> Optional[str]:
    if run.remote is not None:
        return urlsplit(run.remote.channel.base_url).netloc.rpartition("@")[2] or None
    hosts = {call.host for call in receipt.calls}
    return hosts.pop() if len(hosts) == 1 else None
