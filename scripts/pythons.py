"""Find the Python interpreters of this machine that really run, newest first.

Looked at: the running one, `python3` and `python3.X` on PATH, those of pyenv, those of uv. Being listed is
not enough: a pyenv shim stands on PATH for versions that are not switched on, and fails when it is run.

    python scripts/pythons.py            list them
    python scripts/pythons.py 3.9        the path of the newest 3.9, or exit code 1
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST = (3, 9)

# Read by any interpreter, Python 2 included. sys.executable is the interpreter behind a shim.
PROBE = """
import sys, sysconfig
plain = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
if plain and sys.version_info[3] == "final":
    print("%d.%d.%d %s" % (sys.version_info[:3] + (sys.executable,)))
"""


@dataclass(frozen=True, order=True)
class Python:
    """An interpreter that ran: a released CPython with a GIL, no older than the package supports."""

    version: tuple[int, int, int]
    path: str

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def find() -> list[Python]:
    """One interpreter of each version that runs, newest first."""
    found: dict[tuple[int, int, int], Python] = {}
    for path in dict.fromkeys(_candidates()):
        python = probe(path)
        if python is not None:
            found.setdefault(python.version, python)
    return sorted(found.values(), reverse=True)


def newest(minor: str | None = None) -> Python | None:
    """The newest interpreter, or the newest patch of `minor` ("3.9"), or None."""
    for python in find():
        if minor is None or str(python).startswith(f"{minor}."):
            return python
    return None


def _candidates() -> Iterator[str]:
    yield sys.executable
    for directory in os.get_exec_path():
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            if re.fullmatch(r"python3(\.\d+)?", name):
                yield os.path.join(directory, name)
    homes = [
        (os.environ.get("PYENV_ROOT", "~/.pyenv"), "versions/*/bin/python"),
        (os.environ.get("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python"), "*/bin/python3"),
    ]
    for home, pattern in homes:
        yield from map(str, sorted(Path(home).expanduser().glob(pattern)))


def probe(path: str) -> Python | None:
    """The interpreter that `path` leads to, or None if it does not run or is not one for us."""
    try:
        command = [path, "-I", "-c", PROBE]
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version, _, executable = answer.stdout.strip().partition(" ")
    if answer.returncode != 0 or not executable:
        return None
    major, minor, patch = map(int, version.split("."))
    return Python((major, minor, patch), executable) if (major, minor) >= OLDEST else None


def main() -> int:
    if len(sys.argv) == 1:
        print("\n".join(f"{python!s:8} {python.path}" for python in find()))
        return 0
    python = newest(sys.argv[1])
    if python is None:
        print(f"No Python {sys.argv[1]} runs on this machine.", file=sys.stderr)
        return 1
    print(python.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
