"""Remote runs as their APIs write them: an object for each kind, and the events of those that stream. Pure.

The fields are those that the SDK's models ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deadstop.testing import render_responses
from deadstop.testing.reply import Event, Stamp

if TYPE_CHECKING:
    from deadstop.testing.runs import RemoteRun

JSON = dict[str, Any]
CREATED = 1_700_000_000


def response(run: RemoteRun, status: str) -> JSON:
    """A background response: its output is there once it is completed."""
    render = render_responses.response if status == "completed" else render_responses.begun
    whole = render(run.reply, run.body, Stamp(run.serial, CREATED))
    return {**whole, "id": run.id, "background": True, "status": status}


def thread_run(run: RemoteRun, status: str) -> JSON:
    """A run of an assistant on a thread."""
    body = run.body
    return {
        "id": run.id,
        "object": "thread.run",
        "created_at": CREATED,
        "thread_id": run.ids[0],
        "assistant_id": body.get("assistant_id") or "asst_fake",
        "status": status,
        "required_action": None,
        "last_error": None,
        "expires_at": CREATED + 600,
        "started_at": CREATED,
        "cancelled_at": CREATED if status == "cancelled" else None,
        "failed_at": None,
        "completed_at": CREATED if status == "completed" else None,
        "incomplete_details": None,
        "model": body.get("model") or "fake-model",
        "instructions": body.get("instructions") or "",
        "tools": [],
        "file_ids": [],
        "metadata": body.get("metadata") or {},
        "usage": None,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_prompt_tokens": None,
        "max_completion_tokens": None,
        "truncation_strategy": {"type": "auto", "last_messages": None},
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": "auto",
    }


def batch(run: RemoteRun, status: str) -> JSON:
    """A batch."""
    body = run.body
    return {
        "id": run.id,
        "object": "batch",
        "endpoint": body.get("endpoint") or "/v1/chat/completions",
        "input_file_id": body.get("input_file_id") or "file-fake",
        "completion_window": body.get("completion_window") or "24h",
        "status": status,
        "created_at": CREATED,
        "cancelling_at": CREATED if status in ("cancelling", "cancelled") else None,
        "cancelled_at": CREATED if status == "cancelled" else None,
        "request_counts": {"total": 1, "completed": int(status == "completed"), "failed": int(status == "failed")},
        "metadata": body.get("metadata") or {},
    }


def fine_tuning_job(run: RemoteRun, status: str) -> JSON:
    """A fine-tuning job."""
    body = run.body
    return {
        "id": run.id,
        "object": "fine_tuning.job",
        "created_at": CREATED,
        "error": {"code": "", "message": "", "param": None},
        "fine_tuned_model": "ft:fake" if status == "succeeded" else None,
        "finished_at": None,
        "hyperparameters": {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0},
        "model": body.get("model") or "fake-model",
        "organization_id": "org-fake",
        "result_files": [],
        "seed": 1,
        "status": status,
        "trained_tokens": None,
        "training_file": body.get("training_file") or "file-fake",
        "validation_file": None,
    }


def vector_store_file_batch(run: RemoteRun, status: str) -> JSON:
    """Files on their way into a vector store."""
    counts = {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 1}
    counts[status] = 1
    return {
        "id": run.id,
        "object": "vector_store.files_batch",
        "created_at": CREATED,
        "vector_store_id": run.ids[0],
        "status": status,
        "file_counts": counts,
    }


def eval_run(run: RemoteRun, status: str) -> JSON:
    """A run of an eval."""
    return {
        "id": run.id,
        "object": "eval.run",
        "created_at": CREATED,
        "eval_id": run.ids[0],
        "status": status,
        "name": run.body.get("name") or "fake",
        "model": "fake-model",
        "report_url": "https://example.invalid/report",
        "data_source": run.body.get("data_source")
        or {"type": "jsonl", "source": {"type": "file_id", "id": "file-fake"}},
        "error": {"code": "", "message": ""},
        "metadata": {},
        "per_model_usage": [],
        "per_testing_criteria_results": [],
        "result_counts": {"total": 1, "errored": 0, "failed": 0, "passed": 0},
    }


def upload(run: RemoteRun, status: str) -> JSON:
    """An upload in parts."""
    body = run.body
    return {
        "id": run.id,
        "object": "upload",
        "bytes": body.get("bytes") or 1,
        "created_at": CREATED,
        "filename": body.get("filename") or "fake.jsonl",
        "purpose": body.get("purpose") or "batch",
        "status": status,
        "expires_at": CREATED + 3600,
        "file": None,
    }


def chatkit_session(run: RemoteRun, status: str) -> JSON:
    """A ChatKit session."""
    return {
        "id": run.id,
        "object": "chatkit.session",
        "status": status,
        "user": run.body.get("user") or "fake-user",
        "client_secret": "fake-secret",
        "expires_at": CREATED + 600,
        "max_requests_per_1_minute": 10,
        "rate_limits": {"max_requests_per_1_minute": 10},
        "chatkit_configuration": {
            "automatic_thread_titling": {"enabled": True},
            "file_upload": {"enabled": False, "max_file_size": None, "max_files": None},
            "history": {"enabled": True, "recent_threads": None},
        },
        "workflow": {
            "id": "wf_fake",
            "state_variables": None,
            "tracing": {"enabled": False},
            "version": None,
        },
    }


def thread(thread_id: str) -> JSON:
    """A thread."""
    return {"id": thread_id, "object": "thread", "created_at": CREATED, "metadata": {}, "tool_resources": None}


def response_events(run: RemoteRun) -> Iterator[Event]:
    """The events of a background response to which nothing happens."""
    for event in render_responses.events(run.reply, run.body, Stamp(run.serial, CREATED)):
        inner = event.data.get("response")
        if isinstance(inner, dict):
            inner.update(id=run.id, background=True)
        yield event


def response_end(run: RemoteRun, status: str, number: int) -> Event:
    """The last event of a background response that ended early.

    The API has no event of its own for a cancel (the SDK's ResponseStreamEvent).
    """
    kind = f"response.{status if status in ('completed', 'failed') else 'incomplete'}"
    return Event({"type": kind, "sequence_number": number, "response": response(run, status)}, 0, kind)


def thread_events(run: RemoteRun, *, alone: bool = True) -> Iterator[Event]:
    """The events of a thread run to which nothing happens; with its thread's, unless it is made `alone`."""
    if not alone:
        yield Event(thread(run.ids[0]), 0, "thread.created")
    waiting = run.kind.queued or run.kind.active
    yield thread_status(run, waiting, "created")
    yield thread_status(run, waiting)
    yield thread_status(run, run.kind.active)
    pieces = run.reply.pieces()
    for step in ("created", "in_progress"):
        yield _message(run, step, [])
    for piece in pieces:
        delta = {"content": [{"index": 0, "type": "text", "text": {"value": piece.value, "annotations": []}}]}
        data = {"id": f"msg_fake{run.serial}", "object": "thread.message.delta", "delta": delta}
        yield Event(data, 1, "thread.message.delta")
    text = {"value": "".join(piece.value for piece in pieces), "annotations": []}
    yield _message(run, "completed", [{"type": "text", "text": text}])
    yield thread_status(run, "completed")


def thread_status(run: RemoteRun, status: str, name: str | None = None) -> Event:
    """The event that a thread run has this status."""
    return Event(thread_run(run, status), 0, f"thread.run.{name or status}")


def _message(run: RemoteRun, step: str, content: list[JSON]) -> Event:
    message: JSON = {
        "id": f"msg_fake{run.serial}",
        "object": "thread.message",
        "created_at": CREATED,
        "thread_id": run.ids[0],
        "run_id": run.id,
        "assistant_id": run.body.get("assistant_id") or "asst_fake",
        "role": "assistant",
        "status": "completed" if step == "completed" else "in_progress",
        "content": content,
        "attachments": [],
        "file_ids": [],
        "metadata": {},
    }
    return Event(message, 0, f"thread.message.{step}")
