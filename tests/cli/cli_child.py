"""The command in a process of its own: its lines as they come, its end, always within bounds."""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import openai
from nursery import popen

import deadstop

BOUND = 30.0  # seconds; on a busy machine an interpreter alone may take several to start
# trio 0.21, which openai 1.0.0 comes down to, on the hook that exceptiongroup's backport has put there first.
QUIET = "ignore:You seem to already have a custom sys.excepthook:RuntimeWarning"
SOURCES = str(Path(deadstop.__file__).resolve().parents[1])


@functools.cache
def state() -> str:
    """A directory for the ledgers of these tests: not this user's own."""
    made = tempfile.mkdtemp(prefix="ds-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def surroundings() -> dict[str, str]:
    """The environment of the tests, without proxies."""
    path = os.pathsep.join(filter(None, [SOURCES, os.environ.get("PYTHONPATH")]))
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**clean, "PYTHONPATH": path}


class Child:
    """A running `python -m deadstop ...`."""

    def __init__(self, start: Any, arguments: tuple[str, ...], env: dict[str, str], cwd: Path | None) -> None:
        self.process = start(
            ["-m", "deadstop", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={
                **surroundings(),
                "XDG_STATE_HOME": state(),
                "PYTHONUNBUFFERED": "1",
                "PYTHONWARNINGS": QUIET,
                **env,
            },
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._read: list[str] = []
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._pump, args=(self.process.stdout, self._lines.put)),
            threading.Thread(target=self._pump, args=(self.process.stderr, self._errors.append)),
        ]
        for reader in self._readers:
            reader.start()

    def _pump(self, source: IO[str] | None, take: Any) -> None:
        assert source is not None
        with source:
            for line in source:
                take(line.rstrip("\n"))
        if take == self._lines.put:
            self._lines.put(None)

    def line(self) -> str:
        """The next line of standard output."""
        line = self._lines.get(timeout=BOUND)
        if line is None:
            raise EOFError(f"The command has no more to say. On standard error: {self.errors}")
        self._read.append(line)
        return line

    def until(self, start: str) -> str:
        """The next line of standard output that starts so."""
        while not (line := self.line()).startswith(start):
            pass
        return line

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def say(self, line: str) -> None:
        """A line for its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self, within: float = BOUND) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(within)
        if self.process.stdin is not None:
            self.process.stdin.close()
        for reader in self._readers:
            reader.join(BOUND)
        return code

    @property
    def output(self) -> list[str]:
        """All lines of standard output; after the end."""
        while not self._lines.empty():
            line = self._lines.get()
            self._read += [] if line is None else [line]
        return self._read

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return "\n".join(self._errors)


def interpreter(arguments: list[str], **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *arguments], **how)


@contextmanager
def command(*arguments: str, cwd: Path | None = None, start: Any = interpreter, **env: str) -> Iterator[Child]:
    """`deadstop` with these arguments; killed at the end if it is still there."""
    child = Child(start, arguments, env, cwd)
    try:
        yield child
    except BaseException:
        print("On standard error so far:", child.errors)
        raise
    finally:
        child.process.kill()
        child.end()


warm = functools.partial(command, start=popen)
"""The same from the nursery, for a command that another test starts as its user does."""


def key_and_url(base_url: str) -> dict[str, str]:
    """The environment that points an unmodified script at a server."""
    return {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": base_url}


POINTED = """
import functools, os, runpy, sys
import openai

OpenAI = openai.OpenAI
openai.OpenAI = functools.partial(OpenAI, base_url=os.environ["OPENAI_BASE_URL"])
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def seed(directory: Path) -> tuple[str, ...]:
    """The page's own script, as arguments. The first releases of openai don't know OPENAI_BASE_URL: they get help."""
    path = directory / "seed.py"
    path.write_text(Path(__file__).with_name("seed_page.txt").read_text(encoding="utf-8"), encoding="utf-8")
    if "OPENAI_BASE_URL" in inspect.getsource(openai.OpenAI.__init__):
        return (str(path),)
    pointed = directory / "pointed.py"
    pointed.write_text(POINTED, encoding="utf-8")
    return (str(pointed), str(path))
