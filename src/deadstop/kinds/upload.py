"""An upload in parts. The API can't read one (OpenAI's API reference, "Uploads"): its cancel answers with it."""

from __future__ import annotations

from deadstop.kinds.base import Kind

UPLOAD = Kind(
    name="upload",
    path="/uploads/{upload_id}",
    create=("/uploads",),
    active=frozenset({"pending"}),
    cancelled=frozenset({"cancelled"}),
    finished=frozenset({"completed", "expired"}),
    objects=("upload",),
    prefixes=("upload_",),
    readable=False,
)
