"""Files on their way into a vector store. The cancel stops them "as soon as possible" (OpenAI's API reference)."""

from __future__ import annotations

from deadstop.kinds.base import Kind

VECTOR_STORE_FILE_BATCH = Kind(
    name="vector_store_file_batch",
    path="/vector_stores/{vector_store_id}/file_batches/{batch_id}",
    create=("/vector_stores/{vector_store_id}/file_batches",),
    active=frozenset({"in_progress"}),
    cancelled=frozenset({"cancelled"}),
    finished=frozenset({"completed", "failed"}),
    objects=("vector_store.files_batch", "vector_store.file_batch"),
    fields=("vector_store_id", "id"),
    prefixes=("vs_", "vsfb_"),
    headers={"OpenAI-Beta": "assistants=v2"},
    defaults={"timeout": 120.0, "attempt_timeout": 10.0, "grace": 10.0, "poll": 1.0},
)
