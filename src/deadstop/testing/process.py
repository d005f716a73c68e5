"""The fake server as a process of its own: what runs in it, and the handle on it."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import select
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode, urlsplit

from deadstop.testing.faults.base import Fault
from deadstop.testing.record import RequestRecord
from deadstop.testing.runs import RunRecord
from deadstop.testing.server import FakeOpenAI

_SOURCES = str(Path(__file__).resolve().parents[2])


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    rate: float = 200.0,
    tokens: int = 50,
    burst: int = 1,
    ssl_context: ssl.SSLContext | None = None,
    until_stdin_ends: bool = False,
) -> None:
    """Runs a FakeOpenAI until SIGTERM or SIGINT, from the main thread; prints one line, its base URL.

    `until_stdin_ends` also ends it when its standard input does, so that it can't outlive the process that
    started it.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    # Blocked before any thread exists, and then waited for: no handler runs in the middle of anything.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        server = FakeOpenAI(rate, tokens, port, ssl_context, host=host, burst=burst)
        with server:
            sys.stdout.write(f"{server.base_url}\n")
            sys.stdout.flush()
            if until_stdin_ends:
                threading.Thread(target=_end_with_stdin, daemon=True).start()
            signal.sigwait(ends)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class FakeProcess:
    """A fake server in a child process, running inside `with`; commanded over its `/__fake__/` endpoints.

    `certfile` and `keyfile` (PEM) make it speak HTTPS. The command connection is opened before any fault is
    set and kept, so a Blackhole can't lock its owner out.
    """

    def __init__(
        self,
        rate: float = 200.0,
        tokens: int = 50,
        *,
        port: int = 0,
        burst: int = 1,
        certfile: str | None = None,
        keyfile: str | None = None,
        start_timeout: float = 15.0,
    ) -> None:
        options: dict[str, Any] = {"rate": rate, "tokens": tokens, "port": port, "burst": burst}
        if certfile is not None:
            options.update(cert=certfile, key=keyfile or certfile)
        self._command = [sys.executable, "-m", "deadstop.testing", "--until-stdin-ends"]
        for name, value in options.items():
            self._command += [f"--{name}", str(value)]
        self._start_timeout = start_timeout
        self._lock = threading.Lock()
        self.base_url = ""
        """What goes into `OpenAI(base_url=...)`, once it runs."""

    def __enter__(self) -> FakeProcess:
        path = os.pathsep.join(filter(None, [_SOURCES, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            self.base_url = self._read_line()
            self._control = self._connect()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.close()
        self._end()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def origin(self) -> str:
        """The URL without a path."""
        return self.base_url[: -len("/v1")]

    @property
    def requests(self) -> list[RequestRecord]:
        """The server's records as they are now; copies."""
        return self.records()

    def records(self) -> list[RequestRecord]:
        """The server's records as they are now; copies. Their times are this machine's monotonic clock."""
        return self._parse(self._ask("GET", "records")[1])

    def runs(self) -> list[RunRecord]:
        """The server's remote runs as they stand now. Their times are this machine's monotonic clock."""
        return self._parse_runs(self._ask("GET", "runs")[1])

    def wait_runs(
        self,
        truth: str | None = None,
        *,
        status: str | None = None,
        kind: str | None = None,
        id: str | None = None,
        tokens: int = 0,
        cancels: int = 0,
        reads: int = 0,
        timeout: float = 5.0,
    ) -> list[RunRecord]:
        """Waits until a remote run is so, with at least so many tokens, cancels and reads; returns all runs.

        The server waits: nothing is polled. Raises TimeoutError in the end.
        """
        numbers = {"timeout": timeout, "tokens": tokens, "cancels": cancels, "reads": reads}
        words = {"wait": truth, "status": status, "kind": kind, "id": id}
        asked = urlencode({**numbers, **{name: word for name, word in words.items() if word is not None}})
        code, answer = self._ask("GET", f"runs?{asked}", timeout)
        runs = self._parse_runs(answer)
        if code == 408:
            known = "; ".join(map(str, runs)) or "none"
            raise TimeoutError(f"What was waited for did not come true within {timeout:g} s. The runs: {known}.")
        return runs

    def wait(
        self, state: str | None = None, *, id: int | None = None, tokens: int = 0, timeout: float = 5.0
    ) -> list[RequestRecord]:
        """Waits until a record has this state and has sent so many tokens; returns all records.

        With `id` it must be that one. The server waits: nothing is polled. Raises TimeoutError in the end.
        """
        asked: dict[str, Any] = {"timeout": timeout, "tokens": tokens}
        asked.update({} if state is None else {"wait": state}, **({} if id is None else {"id": id}))
        status, answer = self._ask("GET", f"records?{urlencode(asked)}", timeout)
        records = self._parse(answer)
        if status == 408:
            known = "; ".join(map(str, records)) or "none"
            raise TimeoutError(f"What was waited for did not come true within {timeout:g} s. The records: {known}.")
        return records

    def add(self, fault: Fault, *, path: str | None = None, model: str | None = None, times: int | None = None) -> None:
        """Plays a fault from the next request on; see `FakeOpenAI.add`."""
        asked = {"fault": type(fault).__name__, "args": dataclasses.asdict(fault)}  # type: ignore[call-overload]
        self._ask("POST", "faults", body={**asked, "path": path, "model": model, "times": times})

    def clear(self) -> None:
        """Removes all faults."""
        self._ask("POST", "clear")

    def reset(self) -> None:
        """Removes all faults and forgets all records and runs."""
        self._ask("POST", "reset")

    # -- inside

    def _read_line(self) -> str:
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], self._start_timeout)[0]:
            raise TimeoutError(f"The fake server did not start within {self._start_timeout:g} s.")
        line = output.readline().decode().strip()
        if not line:
            raise RuntimeError("The fake server ended before it was ready; its standard error says why.")
        return line

    def _connect(self) -> http.client.HTTPConnection:
        url = urlsplit(self.base_url)
        host = str(url.hostname)
        if url.scheme == "http":
            control = http.client.HTTPConnection(host, url.port)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # our own child, on loopback
            control = http.client.HTTPSConnection(host, url.port, context=context)
        control.connect()
        return control

    def _ask(self, method: str, name: str, timeout: float = 0.0, *, body: Any = None) -> tuple[int, Any]:
        with self._lock:
            assert self._control.sock is not None
            self._control.sock.settimeout(timeout + 10.0)
            self._control.request(method, f"/__fake__/{name}", None if body is None else json.dumps(body))
            response = self._control.getresponse()
            answer = json.loads(response.read())
        if response.status not in (200, 408):
            raise ValueError(f"The fake server refused: {answer['error']}")
        return response.status, answer

    @staticmethod
    def _parse(answer: Any) -> list[RequestRecord]:
        return [RequestRecord(**facts) for facts in answer]

    @staticmethod
    def _parse_runs(answer: Any) -> list[RunRecord]:
        return [
            RunRecord(**{**facts, "ids": tuple(facts["ids"]), "history": tuple(map(tuple, facts["history"]))})
            for facts in answer
        ]

    def _end(self) -> None:
        with self._process as process:  # closes the pipes and waits
            process.terminate()
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
