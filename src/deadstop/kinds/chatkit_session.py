"""A ChatKit session. The API can't read one (OpenAI's API reference, "ChatKit"): its cancel answers with it."""

from __future__ import annotations

from deadstop.kinds.base import Kind

CHATKIT_SESSION = Kind(
    name="chatkit_session",
    path="/chatkit/sessions/{session_id}",
    create=("/chatkit/sessions",),
    active=frozenset({"active"}),
    cancelled=frozenset({"cancelled"}),
    finished=frozenset({"expired"}),
    objects=("chatkit.session",),
    prefixes=("cksess_",),
    headers={"OpenAI-Beta": "chatkit_beta=v1"},
    readable=False,
)
