"""How the tests start a remote run of each kind: by plain requests, which every version of the SDK can send."""

from __future__ import annotations

from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import openai
import pytest

from deadstop import CancelPolicy
from deadstop.clients.channel import package_of
from deadstop.testing import FakeOpenAI

QUICK = CancelPolicy(timeout=2.0, attempt_timeout=0.5, recheck=0)
JSON = Dict[str, object]  # noqa: UP006

CREATES: dict[str, tuple[str, dict[str, Any]]] = {
    "response": ("/responses", {"model": "m", "input": "hi", "background": True}),
    "beta_response": ("/responses?beta=true", {"model": "m", "input": "hi", "background": True}),
    "thread_run": ("/threads/thread_1/runs", {"assistant_id": "asst_1"}),
    "batch": ("/batches", {"input_file_id": "f", "endpoint": "/v1/responses", "completion_window": "24h"}),
    "fine_tuning_job": ("/fine_tuning/jobs", {"model": "m", "training_file": "f"}),
    "vector_store_file_batch": ("/vector_stores/vs_1/file_batches", {"file_ids": ["f"]}),
    "eval_run": ("/evals/eval_1/runs", {"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": "f"}}}),
    "upload": ("/uploads", {"bytes": 1, "filename": "f", "mime_type": "text/plain", "purpose": "batch"}),
    "chatkit_session": ("/chatkit/sessions", {"user": "u", "workflow": {"id": "wf"}}),
}


def create(client: Any, kind: str = "response", **extra: Any) -> Any:
    """The client's method that starts a run of that kind, its arguments, as (function, args, kwargs)."""
    path, body = CREATES[kind]
    return client.post, (path,), {"body": {**body, **extra}, "cast_to": JSON}


def needs_named_events() -> None:
    """Skip where the SDK passes over every event that has a name, as those of all remote runs do."""
    if tuple(int(part) for part in openai.__version__.split(".")[:2]) < (1, 20):
        pytest.skip("this SDK reads no events that have a name")


def stream(client: Any, kind: str = "response") -> Any:
    """A function that starts such a run and gives its stream."""
    path, body = CREATES[kind]
    cls = openai.AsyncStream if isinstance(client, openai.AsyncOpenAI) else openai.Stream
    return lambda: client.post(path, body={**body, "stream": True}, cast_to=JSON, stream=True, stream_cls=cls[JSON])


def begin(world: Any, client: Any, name: Any = None, kind: str = "response") -> Any:
    """Start a run of that kind, in a scope if it is given a name, and leave the scope. The SDK's object."""
    function, args, kwargs = create(client, kind)
    return world.run(world.call, client, name, function, *args, **kwargs)


def truth(server: FakeOpenAI, index: int = -1) -> Any:
    return server.runs[index]


def http_package(world: Any) -> Any:
    """httpx or httpx2: what the SDK in hand rides on."""
    plain = world.client("http://127.0.0.1:9/v1")
    package = package_of(plain._client, "httpx", "httpx2")
    world.close(plain)
    return package


def http_client(world: Any, **options: Any) -> Any:
    """An HTTP client of the user's own, of the sort that goes with the world."""
    package = http_package(world)
    return (package.AsyncClient if world.is_async else package.Client)(**options)
