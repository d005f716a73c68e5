"""What the tests of more than one process share: a state directory of their own, and children that hold runs."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger_postgres import programs
from ledger_postgres import server as database
from nursery import popen

import deadstop
from deadstop.fleet import members
from deadstop.ledger import connect
from deadstop.ledger.base import Ledger
from deadstop.testing import FakeOpenAI

SOURCES = str(Path(deadstop.__file__).resolve().parents[1])
CHILD = str(Path(__file__).with_name("fleet_child.py"))
SWEEP = str(Path(__file__).with_name("fleet_sweep_child.py"))
HOLDER = str(Path(__file__).with_name("fleet_holder.py"))
LONG = int(os.environ.get("DEADSTOP_LONG", "1"))
"""How many times longer the crash sweep and the random histories are."""

BOUND = 15.0
"""How long (seconds) a test waits for a child; reached only when it fails."""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty ledger, in a state directory of the test's own. A short path: sockets have no long ones."""
    home = getattr(request, "param", "sqlite")
    if home == "postgres" and programs() is None:
        pytest.skip("no Postgres comes as a package for this platform")
    state = tempfile.mkdtemp(prefix="ds-")
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.delenv("DEADSTOP_URL", raising=False)
    try:
        yield database().schema() if home == "postgres" else f"sqlite:///{state}/ledger.db"
    finally:
        for each in list(members._members.values()):
            each.close()
        members._members.clear()
        shutil.rmtree(state)


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """That ledger, to look into."""
    with connect(url) as made:
        yield made


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=100_000) as one:
        yield one


def other_way(url: str) -> str:
    """Another address of the same ledger: who uses it is another member of the fleet, as another process would be."""
    if url.startswith("sqlite:"):
        return url.replace("/ledger.db", "/./ledger.db")
    return f"{url}&application_name=other"


class Child:
    """A process of its own. It says things in lines."""

    def __init__(self, *arguments: str, script: str = CHILD, **env: str) -> None:
        self._said = b""
        path = os.pathsep.join(filter(None, [SOURCES, os.environ.get("PYTHONPATH")]))
        self.process = popen(
            [script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path, **env},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self, within: float = BOUND) -> str:
        """The next line that it says; empty at its end."""
        output: Any = self.process.stdout
        while b"\n" not in self._said:
            assert select.select([output], [], [], within)[0], "the child said nothing"
            more = os.read(output.fileno(), 4096)
            if not more:
                break
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(BOUND)

    def end(self) -> None:
        """Its standard input ends, and so it does, too."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            try:
                self.process.wait(BOUND)
            except subprocess.TimeoutExpired:
                self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@pytest.fixture
def child() -> Iterator[Any]:
    """Starts children, and ends them after the test."""
    started: list[Child] = []

    def start(*arguments: str, **env: str) -> Child:
        started.append(Child(*arguments, **env))
        return started[-1]

    try:
        yield start
    finally:
        for each in started:
            each.end()
