"""The built wheel, and a copy of the tests from which the sources are out of reach."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import environment

WHERE = """
import deadstop, pathlib, sysconfig
inside = pathlib.Path(sysconfig.get_path("purelib")).resolve()
found = pathlib.Path(deadstop.__file__).resolve()
assert inside in found.parents, f"deadstop comes from {found}, not from {inside}"
"""


@dataclass(frozen=True)
class Wheel:
    """A wheel, and the directory that the tests run in."""

    path: Path
    away: Path

    def install(self, inside: Path, pins: Path) -> None:
        """Put the wheel, with every extra, into an environment of these pins; check that it is what is found."""
        what = f"{self.path}{environment.EXTRAS}"
        environment.install(inside, "--requirements", pins, "--reinstall-package", "deadstop", what)
        environment.run(inside, "-c", WHERE, cwd=self.away)
        environment.run(inside.parent / "deadstop", "--version", cwd=self.away)


@contextmanager
def built() -> Iterator[Wheel]:
    """Build the wheel from the working tree, with the pinned backend, and copy the tests; both go at the end."""
    with tempfile.TemporaryDirectory(prefix="deadstop-") as name:
        away = Path(name)
        build = ["build", "--quiet", "--wheel", "--out-dir", away / "dist", "--python", environment.newest()]
        environment.run(environment.uv(), *build, "--build-constraints", environment.PINS / "build.txt")
        (wheel,) = (away / "dist").glob("*.whl")
        shutil.copytree(environment.ROOT / "tests", away / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(environment.ROOT / "pyproject.toml", away)  # for pytest's configuration
        yield Wheel(wheel, away)
