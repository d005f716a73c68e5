"""A response over a realtime connection: cancelled by an event on it, confirmed by its ``response.done``.

Its events are those of OpenAI's API reference, "Realtime". A cancel that arrives before ``response.created`` is lost
(public threads), so it is parked until then. With nothing active the server answers ``response_cancel_not_active``.
"""

from __future__ import annotations

from deadstop.kinds.base import Kind

REALTIME_RESPONSE = Kind(
    name="realtime_response",
    path="/realtime/responses/{response_id}",
    active=frozenset({"in_progress"}),
    cancelled=frozenset({"cancelled"}),
    finished=frozenset({"completed", "failed", "incomplete"}),
    objects=("realtime.response",),
    prefixes=("resp_",),
    connected=True,
    defaults={"poll": 0.05},
)
