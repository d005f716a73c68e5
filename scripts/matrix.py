"""Run the tests against the built wheel, on every supported pair of Python and openai, each in its own environment.

    python scripts/matrix.py                                  every cell but `newest`
    python scripts/matrix.py openai-1.0.0 -- tests/core -x    one cell, with arguments for pytest

What runs where:

    openai-1.0.0                      everything but SERVICES, on the oldest Python
    openai-1.5.0, -1.109.1, -2.54.0   everything but PURE and MANY
    newest                            everything; only on request (`make wheel`), because `make test` runs the same
                                      pair, from the working tree

So PURE runs on the oldest Python and on the newest, and what depends on the SDK or a transport runs in every pair.
The rules of the house that need a checkout run in `make test`.

A Python that is not on this machine is skipped, in a line of its own; with CI=true it is an error. With CI=true
the first cell that fails is the last that runs.
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
from wheel import Wheel, built

ENVIRONMENTS = environment.ROOT / ".venv-matrix"
# The core knows no SDK and no transport (the contract in pyproject.toml, and tests/test_house.py for its tests).
PURE = ["tests/core"]
# Many processes, databases, kills: minutes, and what they ask of the SDK other tests ask in every pair.
MANY = ["tests/fleet", "tests/ledger", "tests/proof/test_schedules.py", "tests/cli/test_fleet_commands.py"]
# What of that needs a database, a bus, or many kills.
SERVICES = [
    f"tests/fleet/test_fleet_{name}.py"
    for name in ("bus", "bus_processes", "chaos", "crash", "jetstream", "postgres", "stale", "stateful")
]
BOUND = 1200
"""Seconds for a cell. The longest takes a third of that."""
VERSIONS = """
import importlib.metadata as metadata, openai
transport = "httpx2" if openai.__version__ >= "3" else "httpx"
print(", ".join(f"{name} {metadata.version(name)}" for name in ("openai", transport, "anyio")))
"""


@dataclass(frozen=True)
class Cell:
    """One pair. `python` None is the newest on this machine; `pure`: it runs PURE too."""

    name: str
    python: str | None
    pins: str
    pure: bool = False

    def interpreter(self) -> pythons.Python | None:
        found = pythons.newest(self.python)
        # openai 3 ends with Python 3.9, and `test.txt` then holds an older one.
        return None if found is None or (self.python is None and found.version < (3, 10)) else found


CELLS = [
    Cell("openai-1.0.0", "3.9", "matrix/openai-1.0.0.txt", pure=True),
    Cell("openai-1.5.0", "3.9", "matrix/openai-1.5.0.txt"),
    Cell("openai-1.109.1", "3.11", "matrix/openai-1.109.1.txt"),
    Cell("openai-2.54.0", "3.11", "matrix/openai-2.54.0.txt"),
    Cell("newest", None, "test.txt", pure=True),
]


@dataclass(frozen=True)
class Row:
    cell: str
    python: str
    packages: str
    result: str
    seconds: float


def test(cell: Cell, wheel: Wheel, arguments: list[str]) -> Row:
    """Run pytest in the cell's environment, and say how it went."""
    began = time.monotonic()
    interpreter = cell.interpreter()
    if interpreter is None:
        wanted = cell.python or "3.10 or newer"
        print(f"SKIPPED {cell.name}: no Python {wanted} runs on this machine.", flush=True)
        return Row(cell.name, cell.python or "newest", "", "missing", 0.0)
    pins = environment.PINS / cell.pins
    inside = environment.ensure(ENVIRONMENTS / cell.name, [pins], interpreter.path, package=[])
    wheel.install(inside, pins)
    packages = _packages(inside)
    print(f"== {cell.name}: Python {interpreter}, {packages}, {wheel.path.name}", flush=True)
    # Who names tests gets just those.
    skipped = [] if cell.python is None else SERVICES if cell.pure else [*PURE, *MANY]
    left_out = [] if arguments else [f"--ignore={path}" for path in skipped]
    command = [str(inside), *environment.PYTEST, *left_out, *arguments]
    env = environment.clean_env()
    try:
        tests = subprocess.run(
            command, cwd=wheel.away, env=env, stdin=subprocess.DEVNULL, timeout=BOUND, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        result = f"hung for {BOUND} s"
    else:
        result = "passed" if tests == 0 else f"failed ({tests})"
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
    strict = os.environ.get("CI") == "true"
    fine = {"passed"} if strict else {"passed", "missing"}
    rows: list[Row] = []
    with built() as wheel:
        for cell in CELLS:
            if cell.name in wanted or (not wanted and cell.python is not None):
                rows.append(test(cell, wheel, sys.argv[split + 1 :]))
                if strict and rows[-1].result not in fine:
                    break
    print(f"\n{table(rows)}\n", flush=True)
    return 0 if all(row.result in fine for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
