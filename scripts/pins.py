"""Compile requirements/**/*.in into the pins beside them: names and versions, nothing about where from.

python scripts/pins.py             keep what is pinned, add what is missing
python scripts/pins.py --upgrade   the newest of everything
"""

from __future__ import annotations

import sys
from pathlib import Path

import environment
import matrix

PLAIN = ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]


def compile(name: str, *how: str) -> None:
    """Compile one .in file, for the Python that `how` names."""
    source = environment.PINS / name
    target = source.with_suffix(".txt")
    environment.run(environment.uv(), "pip", "compile", *PLAIN, *how, *sys.argv[1:], source, "-o", target)
    print(target.relative_to(environment.ROOT), flush=True)


def main() -> int:
    oldest = "{}.{}".format(*matrix.pythons.OLDEST)
    for name in ("test.in", "dev.in", "build.in"):  # dev is constrained by test
        compile(name, "--universal", "--python-version", oldest)
    for cell in matrix.CELLS:
        if cell.python is not None:
            compile(str(Path(cell.pins).with_suffix(".in")), "--python-version", cell.python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
