"""Run the tests on every supported pair of Python and openai, each in an environment of its own.

    python scripts/matrix.py                                  every cell
    python scripts/matrix.py openai-1.0.0 -- tests/core -x    one cell, with arguments for pytest

A Python that is not on this machine is skipped, in a line of its own; with CI=true it is an error.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import environment
import pythons

ENVIRONMENTS = environment.ROOT / ".venv-matrix"
VERSIONS = """
import importlib.metadata as metadata, openai
transport = "httpx2" if openai.__version__ >= "3" else "httpx"
print(", ".join(f"{name} {metadata.version(name)}" for name in ("openai", transport, "anyio")))
"""


@dataclass(frozen=True)
class Cell:
    """One pair. `python` None is the newest on this machine."""

    name: str
    python: str | None
    pins: str

    def interpreter(self) -> pythons.Python | None:
        found = pythons.newest(self.python)
        # openai 3 ends with Python 3.9, and `test.txt` then holds an older one.
        return None if found is None or (self.python is None and found.version < (3, 10)) else found


CELLS = [
    Cell("openai-1.0.0", "3.9", "matrix/openai-1.0.0.txt"),
    Cell("openai-1.5.0", "3.9", "matrix/openai-1.5.0.txt"),
    Cell("openai-1.109.1", "3.11", "matrix/openai-1.109.1.txt"),
    Cell("openai-2.54.0", "3.11", "matrix/openai-2.54.0.txt"),
    Cell("newest", None, "test.txt"),
]


@dataclass(frozen=True)
class Row:
    cell: str
    python: str
    packages: str
    result: str
    seconds: float


def test(cell: Cell, arguments: list[str]) -> Row:
    """Run pytest in the cell's environment, and say how it went."""
    began = time.monotonic()
    interpreter = cell.interpreter()
    if interpreter is None:
        wanted = cell.python or "3.10 or newer"
        print(f"SKIPPED {cell.name}: no Python {wanted} runs on this machine.", flush=True)
        return Row(cell.name, cell.python or "newest", "", "missing", 0.0)
    inside = environment.ensure(ENVIRONMENTS / cell.name, [environment.PINS / cell.pins], interpreter.path)
    packages = _packages(inside)
    print(f"== {cell.name}: Python {interpreter}, {packages}", flush=True)
    tests = subprocess.run(
        [str(inside), "-m", "pytest", *arguments],
        cwd=environment.ROOT,
        env=environment.clean_env(),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    result = "passed" if tests.returncode == 0 else f"failed ({tests.returncode})"
    return Row(cell.name, str(interpreter), packages, result, time.monotonic() - began)


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    lines = [("cell", "Python", "with", "result", "seconds")]
    lines += [(row.cell, row.python, row.packages, row.result, f"{row.seconds:.0f}") for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _packages(inside: Path) -> str:
    answer = subprocess.run([str(inside), "-c", VERSIONS], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def main() -> int:
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=verbatim)
    parser.add_argument("cells", nargs="*", help=", ".join(cell.name for cell in CELLS))
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    wanted = parser.parse_args(sys.argv[1:split]).cells
    unknown = set(wanted) - {cell.name for cell in CELLS}
    if unknown:
        parser.error(f"there is no cell {', '.join(sorted(unknown))}")
    rows = [test(cell, sys.argv[split + 1 :]) for cell in CELLS if not wanted or cell.name in wanted]
    print(f"\n{table(rows)}\n", flush=True)
    fine = {"passed"} if os.environ.get("CI") == "true" else {"passed", "missing"}
    return 0 if all(row.result in fine for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
