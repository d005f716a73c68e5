"""Make a virtual environment with pinned packages and deadstop in it; do nothing where it is up to date.

Everything stays inside the project. `uv` is taken from PATH, or fetched with pip into .tools. A stamp in the
environment holds what it was made from, so a second call costs one file read.

    python scripts/environment.py test   .venv, ready for the tests and the demo
    python scripts/environment.py dev    the same, with the linters and the type checker
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pythons

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements"
TOOLS = ROOT / ".tools"
VENV = ROOT / ".venv"
EXTRAS = "[cli,nats,otel,postgres,testing]"
UV = "0.13.9"
UV_OLDEST = (0, 8)  # the first with `uv venv --clear`
LAYERS = {"test": ["test.txt"], "dev": ["test.txt", "dev.txt"]}
# Five tests at a time, each in a process that runs many. The Makefile has the same.
PYTEST = ["-m", "pytest", "--numprocesses", os.environ.get("JOBS", "5"), "--dist", "worksteal"]
WORKING_TREE = ["--editable", f".{EXTRAS}"]


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command, without input, in the project's root; end this process when it fails."""
    plain = list(map(str, command))
    done = subprocess.run(plain, cwd=cwd, env=clean_env(), stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise SystemExit(f"This command failed with exit code {done.returncode}: {shlex.join(plain)}")


def clean_env() -> dict[str, str]:
    """This process's environment, without what would let another environment's packages in."""
    # The last one makes each of the many processes that the tests start compile the SDK anew: a third of their time.
    unwanted = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"}
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    # uv trusts a list of its own, which lacks the authority of a company's proxy; the system's store has it.
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and os.listdir(paths.capath)):
        env.setdefault("UV_SYSTEM_CERTS", "true")
    return env


def uv() -> str:
    """The path of a `uv` that runs, fetched into .tools if there is none."""
    fetched = TOOLS / "bin" / "uv"
    for path in (shutil.which("uv"), str(fetched)):
        if path and _uv_version(path) >= UV_OLDEST:
            return path
    # Some systems split ensurepip from Python (Debian: python3-venv), so every interpreter gets its turn.
    for python in dict.fromkeys([sys.executable, *(python.path for python in pythons.find())]):
        made = subprocess.run([python, "-m", "venv", "--clear", str(TOOLS)], env=clean_env(), check=False)
        if made.returncode == 0:
            pip = [TOOLS / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
            run(*pip, "install", f"uv=={UV}")
            return str(fetched)
    raise SystemExit("No Python here can make an environment; install its venv module (Debian: python3-venv).")


def make(directory: Path, python: str) -> Path:
    """Make `directory` a new, empty environment of the interpreter `python`; return its own interpreter."""
    run(uv(), "venv", "--quiet", "--clear", "--python", python, directory)
    return directory / "bin" / "python"


def install(inside: Path, *arguments: str | Path) -> None:
    """Install into the environment of the interpreter `inside`; arguments as for `pip install`."""
    build = ["--build-constraints", PINS / "build.txt"]
    run(uv(), "pip", "install", "--quiet", "--python", inside, *build, *arguments)


def ensure(directory: Path, pins: list[Path], python: str | None = None, package: Sequence[str] = WORKING_TREE) -> Path:
    """An environment with `pins` and `package`: the working tree with every extra. Return its interpreter.

    It is made anew when the first of the pins, the package's metadata or the wanted interpreter changed;
    further pins are added on top. Without `python` the newest is taken for a new environment.
    """
    inside = directory / "bin" / "python"
    stamp = directory / ".installed"
    have = stamp.read_text().split() if stamp.is_file() else []
    prints = [_fingerprint(path) for path in pins]
    other = python is not None and os.path.realpath(inside) != os.path.realpath(python)
    if other or not inside.exists() or prints[0] not in have:
        have = []
        if python is None:
            python = newest()
            print(f"Setting up with {python}.", flush=True)
        make(directory, python)
    for path, fingerprint in zip(pins, prints):
        if fingerprint not in have:
            install(inside, "--requirements", path, *package)
            have.append(fingerprint)
            stamp.write_text("\n".join(have))
    return inside


def newest() -> str:
    """The path of the newest interpreter of this machine."""
    python = pythons.newest()
    if python is None:
        raise SystemExit("deadstop needs Python {}.{} or newer; none runs here.".format(*pythons.OLDEST))
    return python.path


def _fingerprint(pins: Path) -> str:
    digest = hashlib.sha256()
    for path in (pins, PINS / "build.txt", ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _uv_version(path: str) -> tuple[int, ...]:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return ()
    return tuple(map(int, re.findall(r"\d+", answer.stdout)[:3])) if answer.returncode == 0 else ()


def main() -> int:
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=verbatim)
    parser.add_argument("layer", choices=LAYERS)
    parser.add_argument("--python", help="the interpreter to use, instead of the newest that is here")
    options = parser.parse_args()
    wanted = None
    if options.python:
        found = pythons.probe(shutil.which(options.python) or options.python)
        if found is None:
            oldest = "{}.{}".format(*pythons.OLDEST)
            parser.error(f"{options.python} is not a released CPython {oldest} or newer.")
        wanted = found.path
    ensure(VENV, [PINS / name for name in LAYERS[options.layer]], wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
