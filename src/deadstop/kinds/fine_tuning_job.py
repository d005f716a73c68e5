"""A fine-tuning job. Its cancel takes effect immediately (OpenAI's API reference, "Fine-tuning")."""

from __future__ import annotations

from deadstop.kinds.base import Kind

FINE_TUNING_JOB = Kind(
    name="fine_tuning_job",
    path="/fine_tuning/jobs/{fine_tuning_job_id}",
    create=("/fine_tuning/jobs",),
    active=frozenset({"validating_files", "queued", "running", "paused"}),
    cancelled=frozenset({"cancelled"}),
    finished=frozenset({"succeeded", "failed"}),
    objects=("fine_tuning.job",),
    prefixes=("ftjob-",),
    lists="/fine_tuning/jobs",
    defaults={"timeout": 60.0, "attempt_timeout": 10.0, "grace": 10.0, "poll": 1.0},
)
