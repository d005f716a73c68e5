"""Build the wheel and run the tests against it, in a clean environment with the sources out of reach.

python scripts/wheel.py [arguments for pytest]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import environment

CLEAN = environment.ROOT / ".venv-wheel"
WHERE = """
import deadstop, pathlib, sysconfig
inside = pathlib.Path(sysconfig.get_path("purelib")).resolve()
found = pathlib.Path(deadstop.__file__).resolve()
assert inside in found.parents, f"deadstop comes from {found}, not from {inside}"
"""


def build(directory: Path, python: str) -> Path:
    """Build the wheel with the pinned backend; return its path."""
    pins = environment.PINS / "build.txt"
    build = ["build", "--quiet", "--wheel", "--out-dir", directory, "--python", python]
    environment.run(environment.uv(), *build, "--build-constraints", pins)
    (wheel,) = directory.glob("*.whl")
    return wheel


def main() -> int:
    python = str(environment.ensure(environment.VENV, [environment.PINS / "test.txt"]))
    with tempfile.TemporaryDirectory(prefix="deadstop-") as name:
        away = Path(name)
        wheel = build(away / "dist", python)
        inside = environment.make(CLEAN, python)
        pins = environment.PINS / "test.txt"
        environment.install(inside, "--requirements", pins, f"{wheel}{environment.EXTRAS}")
        compiled = shutil.ignore_patterns("__pycache__")
        shutil.copytree(environment.ROOT / "tests", away / "tests", ignore=compiled)
        shutil.copy(environment.ROOT / "pyproject.toml", away)  # for pytest's configuration
        environment.run(inside, "-c", WHERE, cwd=away)
        environment.run(CLEAN / "bin" / "deadstop", "--help", cwd=away)
        print(f"== {wheel.name}", flush=True)
        tests = [str(inside), "-m", "pytest", *sys.argv[1:]]
        done = subprocess.run(tests, cwd=away, env=environment.clean_env(), stdin=subprocess.DEVNULL, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
