"""A batch. It may stay ``cancelling`` for up to ten minutes; what was done by then is in its output file, and is
charged (OpenAI's API reference, "Batch").
"""

from __future__ import annotations

from deadstop.kinds.base import Kind

BATCH = Kind(
    name="batch",
    path="/batches/{batch_id}",
    create=("/batches",),
    active=frozenset({"validating", "in_progress", "finalizing"}),
    cancelling=frozenset({"cancelling"}),
    cancelled=frozenset({"cancelled"}),
    finished=frozenset({"completed", "failed", "expired"}),
    objects=("batch",),
    prefixes=("batch_",),
    lists="/batches",
    defaults={"timeout": 660.0, "attempt_timeout": 10.0, "grace": 60.0, "poll": 5.0},
)
