"""A run of an eval. Its word is ``canceled``, with one l, and the SDK does not type it.

OpenAI's OpenAPI file has the cancel at POST on the run itself; the SDK sends it to ``.../cancel``, as we do.
"""

from __future__ import annotations

from deadstop.kinds.base import Kind

EVAL_RUN = Kind(
    name="eval_run",
    path="/evals/{eval_id}/runs/{run_id}",
    create=("/evals/{eval_id}/runs",),
    active=frozenset({"queued", "in_progress"}),
    cancelled=frozenset({"canceled", "cancelled"}),
    finished=frozenset({"completed", "failed"}),
    objects=("eval.run",),
    fields=("eval_id", "id"),
    prefixes=("eval_", "evalrun_"),
    lists="/evals/{eval_id}/runs",
    defaults={"timeout": 60.0, "attempt_timeout": 10.0, "grace": 10.0, "poll": 1.0},
)
