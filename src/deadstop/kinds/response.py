"""A response made in the background. Ids and statuses: OpenAI's API reference, "Responses".

There is no ``cancelling``, and cancelling twice gives the object again. One made in the foreground is no remote run:
its cancel endpoint answers 400, and it is stopped by its connection. ``incomplete`` is an end that no cancel brought.
"""

from __future__ import annotations

from deadstop.kinds.base import Kind

RESPONSE = Kind(
    name="response",
    path="/responses/{response_id}",
    create=("/responses",),
    starts=lambda body: body.get("background") is True,
    active=frozenset({"queued", "in_progress"}),
    cancelled=frozenset({"cancelled"}),
    finished=frozenset({"completed", "failed", "incomplete"}),
    objects=("response",),
    prefixes=("resp_",),
)

BETA_RESPONSE = Kind(
    name="beta_response",
    path="/responses/{response_id}",
    create=("/responses",),
    starts=RESPONSE.starts,
    active=RESPONSE.active,
    cancelled=RESPONSE.cancelled,
    finished=RESPONSE.finished,
    objects=("response",),
    prefixes=("resp_",),
    query={"beta": "true"},
)
