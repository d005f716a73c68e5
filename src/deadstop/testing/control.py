"""The remote control of a server in another process: `/__fake__/...`, JSON in and out."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from deadstop.testing import faults as fault_kinds
from deadstop.testing.record import RecordBook, RequestRecord
from deadstop.testing.runs import RunRecord, RunStore
from deadstop.testing.script import Script
from deadstop.testing.sse import decode_json

PREFIX = "/__fake__/"


class Control:
    """Answers control requests. Paths and parameters:

    `GET records` -> list of records; with `wait=STATE`, `id=N`, `tokens=N` (at least so many sent) and
    `timeout=S` only once a record is so, or after the time, then with status 408. `GET runs` -> list of remote runs
    as they stand; likewise with `wait=TRUTH`, `status=WORD`, `kind=NAME`, `id=ID`, and at least so many `tokens=N`,
    `cancels=N`, `reads=N`. `POST faults` `{"fault", "args", "path", "model", "times"}`, `POST clear`, `POST reset`.
    """

    def __init__(self, script: Script, book: RecordBook, runs: RunStore) -> None:
        self._script, self._book, self._runs = script, book, runs
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends every wait."""
        self._stopped.set()
        self._book.touch()
        self._runs.touch()

    def handle(self, method: str, path: str, query: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON of the answer."""
        name = path[len(PREFIX) :].strip("/")
        try:
            asked = {key: values[-1] for key, values in parse_qs(query).items()}
            if (method, name) == ("GET", "records"):
                status = self._when(asked, self._book.wait_for, _is_so)
                return status, [dataclasses.asdict(record) for record in self._book.snapshot()]
            if (method, name) == ("GET", "runs"):
                status = self._when(asked, self._runs.wait_for, _run_is_so)
                return status, [dataclasses.asdict(run) for run in self._runs.records()]
            if (method, name) == ("POST", "faults"):
                self._add(decode_json(body))
            elif (method, name) == ("POST", "clear"):
                self._script.clear()
            elif (method, name) == ("POST", "reset"):
                self._script.clear()
                self._book.reset()
                self._runs.forget()
            else:
                return 404, {"error": f"The control knows no {method} {path}."}
        except (TypeError, ValueError, KeyError) as error:
            return 400, {"error": str(error)}
        return 200, {}

    def _add(self, asked: Any) -> None:
        if not isinstance(asked, dict) or not isinstance(asked.get("fault"), str):
            raise ValueError('A fault is asked for as {"fault": NAME, "args": {...}}.')
        fault = fault_kinds.build(asked["fault"], asked.get("args") or {})
        self._script.add(fault, path=asked.get("path"), model=asked.get("model"), times=asked.get("times"))

    def _when(self, asked: dict[str, str], wait_for: Callable[..., None], is_so: Callable[..., bool]) -> int:
        """Wait until one is as it is asked for, if anything is; the status of the answer."""
        if not asked:
            return 200
        try:
            wait_for(
                lambda each: self._stopped.is_set() or any(is_so(one, asked) for one in each),
                float(asked.get("timeout", "5")),
            )
        except TimeoutError:
            return 408
        return 200


def _is_so(record: RequestRecord, asked: dict[str, str]) -> bool:
    return (
        asked.get("wait", record.state) == record.state
        and int(asked.get("id", record.id)) == record.id
        and record.tokens_sent >= int(asked.get("tokens", 0))
    )


def _run_is_so(run: RunRecord, asked: dict[str, str]) -> bool:
    return (
        asked.get("wait", run.truth) == run.truth
        and asked.get("status", run.status) == run.status
        and asked.get("kind", run.kind) == run.kind
        and asked.get("id", run.id) == run.id
        and all(getattr(run, name) >= int(asked.get(name, 0)) for name in ("tokens", "cancels", "reads"))
    )
