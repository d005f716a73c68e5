"""The kinds of remote run that the fake server has, as data: paths, words, refusals. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from deadstop.testing import render_responses, render_runs
from deadstop.testing.reply import Reply

Body = Mapping[str, Any]
_PREFIX = re.compile(r"^(?:/openai/deployments/[^/]+|/openai/v1|/openai|/v1)?(?P<rest>/.*)$")


@dataclass(frozen=True)
class RunKind:
    """How one API has its runs.

    `path` has a group for each id, `create` and `lists` for those that they name. `queued` is its word before it works,
    where it has one. `refusal` answers, with `refusal_status`, a cancel of a run that is over; with `again` one that is
    cancelled already gets its object instead. `completable`: it ends when it is told so (POST .../complete) and, as
    where `works` is false, not by itself.
    """

    name: str
    path: str
    create: tuple[str, ...]
    prefixes: tuple[str, ...]
    render: Callable[..., dict[str, Any]]
    active: str
    queued: str | None = None
    completed: str = "completed"
    cancelled: str = "cancelled"
    failed: str = "failed"
    cancelling: str | None = None
    other_ends: tuple[str, ...] = ()
    cancelling_for: float = 0.0
    cancel: tuple[str, ...] = ("/cancel",)
    readable: bool = True
    works: bool = True
    completable: bool = False
    refusal: str = "Cannot cancel a {name} with status '{status}'."
    refusal_status: int = 400
    again: bool = False
    starts: Callable[[Body], bool] = lambda body: True
    lists: str | None = None
    tokens: Callable[[Reply, Body], int] = lambda reply, body: reply.count()


class RunRequest(NamedTuple):
    """A request about runs: `action` is create, read, cancel, complete or list."""

    kind: RunKind
    action: str
    ids: tuple[str, ...]


KINDS: tuple[RunKind, ...] = (
    RunKind(
        name="response",
        path=r"/responses/([^/]+)",
        create=(r"/responses",),
        prefixes=("resp_",),
        render=render_runs.response,
        active="in_progress",
        queued="queued",
        other_ends=("failed", "incomplete"),
        refusal="Cannot cancel a {status} response.",
        again=True,
        starts=lambda body: body.get("background") is True,
        tokens=render_responses.token_count,
    ),
    RunKind(
        name="thread_run",
        path=r"/threads/([^/]+)/runs/([^/]+)",
        create=(r"/threads/([^/]+)/runs", r"/threads/runs"),
        prefixes=("thread_", "run_"),
        render=render_runs.thread_run,
        active="in_progress",
        queued="queued",
        cancelling="cancelling",
        cancelling_for=0.02,
        other_ends=("failed", "incomplete", "expired"),
        refusal="Cannot cancel run with status '{status}'.",
        lists=r"/threads/([^/]+)/runs",
    ),
    RunKind(
        name="batch",
        path=r"/batches/([^/]+)",
        create=(r"/batches",),
        prefixes=("batch_",),
        render=render_runs.batch,
        active="in_progress",
        queued="validating",
        cancelling="cancelling",
        cancelling_for=0.05,
        other_ends=("failed", "expired"),
        refusal="Cannot cancel a batch with status '{status}'.",
        refusal_status=409,
        lists=r"/batches",
    ),
    RunKind(
        name="fine_tuning_job",
        path=r"/fine_tuning/jobs/([^/]+)",
        create=(r"/fine_tuning/jobs",),
        prefixes=("ftjob-",),
        render=render_runs.fine_tuning_job,
        active="running",
        queued="queued",
        completed="succeeded",
        other_ends=("failed",),
        lists=r"/fine_tuning/jobs",
    ),
    RunKind(
        name="vector_store_file_batch",
        path=r"/vector_stores/([^/]+)/file_batches/([^/]+)",
        create=(r"/vector_stores/([^/]+)/file_batches",),
        prefixes=("vs_", "vsfb_"),
        render=render_runs.vector_store_file_batch,
        active="in_progress",
        other_ends=("failed",),
    ),
    RunKind(
        name="eval_run",
        path=r"/evals/([^/]+)/runs/([^/]+)",
        create=(r"/evals/([^/]+)/runs",),
        prefixes=("eval_", "evalrun_"),
        render=render_runs.eval_run,
        active="in_progress",
        queued="queued",
        cancelled="canceled",
        other_ends=("failed",),
        cancel=("/cancel", ""),
        lists=r"/evals/([^/]+)/runs",
    ),
    RunKind(
        name="upload",
        path=r"/uploads/([^/]+)",
        create=(r"/uploads",),
        prefixes=("upload_",),
        render=render_runs.upload,
        active="pending",
        failed="expired",
        other_ends=("expired",),
        readable=False,
        works=False,
        completable=True,
        again=True,
    ),
    RunKind(
        name="chatkit_session",
        path=r"/chatkit/sessions/([^/]+)",
        create=(r"/chatkit/sessions",),
        prefixes=("cksess_",),
        render=render_runs.chatkit_session,
        active="active",
        completed="expired",
        failed="expired",
        readable=False,
        works=False,
        again=True,
    ),
)


def find(method: str, path: str, body: Any) -> RunRequest | None:
    """What a request asks of which runs; None if it is about none."""
    match = _PREFIX.match(path)
    rest = match["rest"].rstrip("/") if match else ""
    for kind in KINDS:
        found = _find(kind, method, rest, body if isinstance(body, dict) else {})
        if found is not None:
            return found
    return None


def _find(kind: RunKind, method: str, rest: str, body: Body) -> RunRequest | None:
    if method == "POST":
        for create in kind.create:
            match = re.fullmatch(create, rest)
            if match and kind.starts(body):
                return RunRequest(kind, "create", match.groups())
        for suffix in kind.cancel:
            match = re.fullmatch(kind.path + re.escape(suffix), rest)
            if match and not (kind.name == "response" and match.group(1) in ("compact", "input_tokens")):
                return RunRequest(kind, "cancel", match.groups())
        match = re.fullmatch(kind.path + "/complete", rest) if kind.completable else None
        if match:
            return RunRequest(kind, "complete", match.groups())
    if method == "GET":
        match = re.fullmatch(kind.path, rest)
        if match and kind.readable:
            return RunRequest(kind, "read", match.groups())
        match = re.fullmatch(kind.lists, rest) if kind.lists is not None else None
        if match:
            return RunRequest(kind, "list", match.groups())
    return None
