"""A plain HTTP client for remote runs, one connection long, and how a run of each kind is begun."""

from __future__ import annotations

import http.client
import json
from types import TracebackType
from typing import Any, NamedTuple

from kit_client import events_of

from deadstop.testing import FakeOpenAI

CREATES: dict[str, tuple[str, dict[str, Any]]] = {
    "response": ("/responses", {"model": "m", "input": "hi", "background": True}),
    "thread_run": ("/threads/thread_1/runs", {"assistant_id": "asst_1"}),
    "batch": ("/batches", {"input_file_id": "f", "endpoint": "/v1/responses", "completion_window": "24h"}),
    "fine_tuning_job": ("/fine_tuning/jobs", {"model": "m", "training_file": "f"}),
    "vector_store_file_batch": ("/vector_stores/vs_1/file_batches", {"file_ids": ["f"]}),
    "eval_run": ("/evals/eval_1/runs", {"name": "n"}),
    "upload": ("/uploads", {"bytes": 1, "filename": "f", "mime_type": "text/plain", "purpose": "batch"}),
    "chatkit_session": ("/chatkit/sessions", {"user": "u", "workflow": {"id": "wf"}}),
}


class Answer(NamedTuple):
    """What came back."""

    code: int
    body: Any


class Kit:
    """A fake server and one connection to it."""

    def __init__(self, server: FakeOpenAI) -> None:
        self.server = server
        self._http = http.client.HTTPConnection(server.host, server.port, timeout=10)

    def __enter__(self) -> Kit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave; the next request connects anew."""
        self._http.close()

    def ask(self, method: str, path: str, body: Any = None, *, bare: bool = False) -> Answer:
        """One request; `bare` without the `/v1`."""
        self._http.request(method, path if bare else f"/v1{path}", None if body is None else json.dumps(body))
        response = self._http.getresponse()
        return Answer(response.status, json.loads(response.read()))

    def get(self, path: str, *, bare: bool = False) -> Answer:
        """Read."""
        return self.ask("GET", path, bare=bare)

    def post(self, path: str, body: Any = None, *, bare: bool = False) -> Answer:
        """Create, or cancel."""
        return self.ask("POST", path, body, bare=bare)

    def create(self, kind: str) -> Answer:
        """Begin a run of that kind."""
        return self.post(*CREATES[kind])

    def path(self, kind: str, index: int = -1) -> str:
        """Where the run of that index is."""
        where = CREATES[kind][0]
        return f"{where}/{self.server.runs[index].id}"

    def events(self, path: str) -> list[Any]:
        """The events of a stream that is read."""
        self._http.request("GET", f"/v1{path}")
        return events_of(self._http.getresponse().read())


def streamed(kit: Kit, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a run that is made with a stream, to its end."""
    kit._http.request("POST", f"/v1{path}", json.dumps({**body, "stream": True}))
    return events_of(kit._http.getresponse().read())
