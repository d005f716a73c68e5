"""A run of an assistant on a thread.

OpenAI shut the Assistants API down on 2026-08-26; Azure and self-hosted servers keep it. A run passes through
``cancelling`` while its current step ends, and expires ten minutes after it was made (API reference, "Runs").
"""

from __future__ import annotations

from deadstop.kinds.base import Kind

THREAD_RUN = Kind(
    name="thread_run",
    path="/threads/{thread_id}/runs/{run_id}",
    create=("/threads/{thread_id}/runs", "/threads/runs"),
    active=frozenset({"queued", "in_progress", "requires_action"}),
    cancelling=frozenset({"cancelling"}),
    cancelled=frozenset({"cancelled"}),
    finished=frozenset({"completed", "failed", "incomplete", "expired"}),
    objects=("thread.run",),
    fields=("thread_id", "id"),
    prefixes=("thread_", "run_"),
    headers={"OpenAI-Beta": "assistants=v2"},
    lists="/threads/{thread_id}/runs",
    defaults={"timeout": 30.0, "poll": 0.5},
)
