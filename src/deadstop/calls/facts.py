"""What a receipt tells of one call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls.drain import usage_in
from deadstop.core.model import Attempt, CallFacts, Interrupted, Phase, ServerWork, Streamed

if TYPE_CHECKING:
    from deadstop.calls.call import Call

__all__ = ["characters_in", "facts_of"]


def _server_work(call: Call) -> ServerWork:
    """What is known of the server's work on this call."""
    if not call.sent or call.completed:
        return ServerWork.STOPPED
    if call.multiplexed and not call.stream_reset:
        return ServerWork.RUNS_ON
    return ServerWork.UNKNOWN if call.left.is_set() else ServerWork.RUNS_ON


def _is_closed(call: Call) -> bool:
    """Whether the connection of the last request is closed, now that the call has left it."""
    if call.multiplexed or call.opaque or call.connection is None:  # not its own; not seen; none
        return False
    stream = call.connection()
    return stream is None or bool(stream.gone)


def facts_of(call: Call) -> CallFacts:
    """The call as it stands now."""
    released = call.left.is_set()
    closed = released and _is_closed(call)
    until = call.left_at or time.monotonic()
    attempt = None
    if call.attempt:
        given = {"status": call.status, "ended": until if released else None}
        attempt = Attempt(**{"number": 1, "started": call.started, **given, **call.attempt})
    how = call.interrupted
    if how is Interrupted.NOTHING and call.cancelled:
        how = Interrupted.FENCE if call.sent else Interrupted.NOT_STARTED
    return CallFacts(
        id=str(call.id),
        method=call.method,
        path=call.path,
        phase=call.phase_at_cancel or call.phase,
        interrupted=how,
        streamed=call.streamed,
        server_work=_server_work(call),
        released=released,
        socket_closed=closed,
        chunks=call.chunks,
        characters=call.characters,
        elapsed=until - call.started,
        note=_note(call, closed),
        attempt=attempt,
        usage=call.usage or usage_in(call.last),
        host=None if call.url is None else f"{call.url.host}:{call.url.port}" if call.url.port else call.url.host,
    )


def _note(call: Call, closed: bool) -> Optional[str]:
    if call.multiplexed:
        told = "its stream was reset" if call.stream_reset or not call.sent else "the server was not told"
        return f"HTTP/2: the connection carries other calls and was left open; the call was taken off it ({told})."
    if call.drain is not None:
        how = "to its end" if call.completed else "until its time was over or its caller closed it"
        return f"The stream was read on, unseen, for its usage: {how}."
    if call.opaque:
        return "The HTTP transport can't be interrupted from outside; the call was fenced."
    by_us = call.cancelled and closed and call.phase_at_cancel is not Phase.BACKING_OFF
    if by_us and call.sent and call.streamed in (Streamed.PLAIN, Streamed.REFUSED):
        return "The answer was not streamed: most servers notice such a disconnect only when they are done."
    return None


def characters_in(event: Any) -> int:
    """How many characters of text an SDK event brings. 0 for one that brings none, or of an unknown shape."""
    try:
        choices = getattr(event, "choices", None)
        if choices is not None:
            return len(choices[0].delta.content) if choices else 0
        delta = event.delta
        return len(delta) if isinstance(delta, str) else len(delta.text)
    except (AttributeError, TypeError, IndexError):
        return 0
