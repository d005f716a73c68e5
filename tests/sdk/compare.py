"""Run the SDK's own test suite on the plain clients and on ours, and name every test that only passes plain.

    python tests/sdk/compare.py 1.109.1 tests/test_client.py tests/test_streaming.py

It takes the tests from the SDK's source distribution and what they need from the package index (pip's settings
apply); without an index it says so and exits with 0. Nothing it does needs a server: leave `tests/api_resources` out.
The distributions before 1.10 hold no tests. Work is kept in `.sdk-tests/`. Not part of `make test`: it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".sdk-tests"
HOWS = ("plain", "installed", "scoped", "attached")
TESTS = (
    "tests/test_client.py",
    "tests/test_streaming.py",
    "tests/test_response.py",
    "tests/test_legacy_response.py",
    "tests/test_module_client.py",
    "tests/lib/test_azure.py",
    "tests/lib/chat",
)
NEEDS = (
    *("pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "respx", "dirty-equals", "inline-snapshot"),
    *("azure-identity", "griffe", "importlib-metadata", "nest_asyncio", "rich", "time-machine", "trio"),
)


def fetch(version: str) -> Path:
    """The unpacked source distribution. Raises `CalledProcessError` when it can't be had."""
    folder = WORK / f"openai-{version}"
    if not folder.exists():
        WORK.mkdir(exist_ok=True)
        (WORK / ".gitignore").write_text("*\n")
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "openai"]
        subprocess.run([*pip, "-d", str(WORK), f"openai=={version}"], check=True)
        with tarfile.open(WORK / f"openai-{version}.tar.gz") as archive:
            archive.extractall(WORK)
    return folder


def environment(version: str) -> Path:
    """The Python of an environment with that version of the SDK and what its tests need."""
    folder = WORK / f"venv-{version}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "complete"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        wanted = [f"openai[aiohttp,realtime]=={version}", *NEEDS]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
        done.touch()
    return python


def run(python: Path, source: Path, how: str, tests: list[str]) -> dict[str, str]:
    """The outcome of each test. What pytest printed is beside it, in a file."""
    outcomes = WORK / f"{source.name}-{how}.json"
    outcomes.unlink(missing_ok=True)
    log = outcomes.with_suffix(".txt")
    paths = [str(HERE), str(ROOT / "src"), str(source)]
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")},
        "PYTHONPATH": os.pathsep.join(paths),
        "DEADSTOP_SDK_TESTS": how,
        "DEADSTOP_SDK_OUTCOMES": str(outcomes),
    }
    command = [str(python), "-m", "pytest", "-p", "substitute", "-n", "2", "--timeout", "120", "-q", *tests]
    with log.open("w") as file:
        subprocess.run(command, check=False, cwd=source, env=variables, stdout=file, stderr=subprocess.STDOUT)
    if not outcomes.exists():
        raise SystemExit(f"pytest did not get as far as running a test; see {log}.")
    found: dict[str, str] = json.loads(outcomes.read_text())
    passed = sum(outcome == "passed" for outcome in found.values())
    print(f"{source.name} {how}: {passed} of {len(found)} passed ({log.relative_to(ROOT)})", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    parser.add_argument("tests", nargs="*")
    given = parser.parse_args()
    try:
        source, python = fetch(given.version), environment(given.version)
    except subprocess.CalledProcessError as error:
        print(f"SKIPPED: openai {given.version} or what its tests need can't be fetched ({error}).")
        return 0
    if not (source / "tests").exists():
        print(f"SKIPPED: the source distribution of openai {given.version} holds no tests.")
        return 0
    tests = given.tests or [test for test in TESTS if (source / test).exists()]
    outcomes = {how: run(python, source, how, tests) for how in HOWS}
    broken = 0
    for how in HOWS[1:]:
        for test, outcome in sorted(outcomes["plain"].items()):
            if outcome == "passed" and outcomes[how].get(test) != "passed":
                broken += 1
                print(f"  {how}: {test} passes plain and is {outcomes[how].get(test, 'missing')} on ours")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
