"""Processes that hold runs and do what a test tells them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from types import TracebackType
from typing import Any, Callable, Optional

from fleet_homes import BOUND, HOLDER, Child


class Process:
    """A process that holds runs, and does what it is told."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(BOUND + 10.0)
        self._connection = connection
        self._lines = connection.makefile("rw")
        self.pid = int(self._lines.readline())

    def do(self, what: str, **facts: Any) -> Optional[dict[str, Any]]:
        """Its answer; None if it died of it."""
        self.tell(what, **facts)
        return self.answer()

    def tell(self, what: str, **facts: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._lines.write(json.dumps({"do": what, **facts}) + "\n")
            self._lines.flush()

    def answer(self) -> Optional[dict[str, Any]]:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            line = self._lines.readline()
            if line:
                answer: dict[str, Any] = json.loads(line)
                return answer
        self.close()
        return None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ConnectionResetError):
            assert self._lines.readline() == ""
        self.close()

    def end(self) -> None:
        """If it is still there."""
        if not self._lines.closed:
            self.kill()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._lines.close()
        self._connection.close()


class Holders:
    """Where they come from: a process that has everything imported forks them."""

    def __init__(self, child: Callable[..., Child], url: str, base_url: str, **env: str) -> None:
        path = f"{os.environ['XDG_STATE_HOME']}/holders"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._listener.settimeout(BOUND)
        self._zygote = child(url, base_url, path, script=HOLDER, **env)
        self._started: list[Process] = []

    def start(self) -> Process:
        self._zygote.say("one more")
        self._started.append(Process(self._listener.accept()[0]))
        return self._started[-1]

    def __enter__(self) -> Holders:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        for each in self._started:
            each.end()
        self._listener.close()
