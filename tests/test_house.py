"""The rules of the house that a command can see."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import deadstop
import deadstop.errors

PACKAGE = Path(deadstop.__file__).parent
TESTS = Path(__file__).parent
ROOT = TESTS.parent
LONGEST = 400  # lines in a file

PUBLIC = {
    "AsyncAzureOpenAI",
    "AsyncOpenAI",
    "AsyncRun",
    "AsyncRuns",
    "Attempt",
    "AzureOpenAI",
    "Backoff",
    "CallFacts",
    "CancelPolicy",
    "CancelReceipt",
    "CancelRefusedError",
    "Cause",
    "DeadstopError",
    "Diagnosis",
    "DiagnosisClass",
    "Evidence",
    "Kind",
    "LedgerError",
    "LedgerUnavailable",
    "Level",
    "OpenAI",
    "Orphan",
    "Outcome",
    "Run",
    "RunAlreadyOpenError",
    "RunCancellationTimeoutError",
    "RunCancelledError",
    "Runs",
    "ServerProfile",
    "UnknownRunError",
    "UnsupportedClientError",
    "UsageError",
    "attach",
    "install",
    "register_kind",
    "uninstall",
}

# The SDK's transport needs h11 too: so the SDK is loaded first, whole, and keeps its own.
WITHOUT_EXTRAS = """
import importlib, pkgutil, sys
import openai
openai.OpenAI(api_key="none")
openai.AsyncOpenAI(api_key="none")

EXTRAS = {"h11", "nats", "opentelemetry", "psycopg", "rich", "typer"}

class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in EXTRAS]:
    del sys.modules[name]
sys.meta_path.insert(0, Missing)
"""

HANGS = """
import threading

never = threading.Event()

def other():
    never.wait()  # the other's

def test_hang():
    print("a last word")
    threading.Thread(target=other, daemon=True).start()
    never.wait()  # ours
"""

IMPORT_ALL = """
import deadstop, deadstop.testing.plugin

for name in deadstop.__all__:
    getattr(deadstop, name)
for module in pkgutil.walk_packages(deadstop.__path__, "deadstop.", onerror=lambda name: None):
    if module.name.endswith(".__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        print(module.name, "|", error)
"""


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process where importing any optional dependency fails."""
    command = [sys.executable, "-c", WITHOUT_EXTRAS + code]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False)


def sources() -> Iterator[Path]:
    """Every Python file of the project that is here: the package, its tests, and in a checkout the rest."""
    for directory in (PACKAGE, TESTS, ROOT / "bench", ROOT / "docs", ROOT / "scripts"):
        yield from sorted(directory.rglob("*.py"))


def test_the_public_names_are_these() -> None:
    """A public name comes or goes only together with this list."""
    assert set(deadstop.__all__) == PUBLIC
    assert len(deadstop.__all__) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_resolves_and_says_what_it_is(name: str) -> None:
    """Every public name can be imported and has a docstring of its own."""
    assert getattr(deadstop, name).__doc__


def test_an_error_that_the_docs_name_is_imported_from_the_top() -> None:
    """Who is told by the docs which error is raised can write `from deadstop import` and that name."""
    if not (ROOT / "docs").is_dir():
        pytest.skip("not a checkout")
    docs = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    named = {name for name in deadstop.errors.__all__ if re.search(rf"`{name}`", docs)}
    assert {"CancelRefusedError", "LedgerUnavailable"} <= named <= set(deadstop.__all__)


def test_the_library_needs_no_extra() -> None:
    """With every extra missing all of it imports, but for the parts that name the extra they need."""
    done = without_extras(IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        module, _, reason = line.partition(" | ")
        optional = r"ledger\.(need_psycopg|postgres)|fleet\.(wire|need_nats|bus)"
        assert re.match(rf"deadstop\.(cli|testing|telemetry|{optional})\b", module), line
        assert re.search(r"deadstop\[(cli|testing|otel|postgres|nats)\]", reason), line


def test_a_ledger_without_its_extra_says_what_to_install() -> None:
    """Without psycopg a Postgres address is a usage error that names the extra, and so is a bus without nats-py; the
    other homes need none."""
    code = """
from deadstop.errors import LedgerUrlError
from deadstop.ledger import connect
connect("memory:").close()
try:
    connect("postgresql://user:hunter2@localhost/x")
except LedgerUrlError as error:
    print(error)
try:
    deadstop.OpenAI(api_key="k", runs_url="memory: nats://user:hunter2@localhost")
except LedgerUrlError as error:
    print(error)
"""
    done = without_extras("import deadstop" + code)
    assert done.returncode == 0, done.stderr
    assert "deadstop[postgres]" in done.stdout
    assert "deadstop[nats]" in done.stdout
    assert "hunter2" not in done.stdout


def test_the_command_line_without_its_extra_says_what_to_install() -> None:
    """Without typer the command ends with a sentence that names the extra, not with a traceback."""
    done = without_extras("from deadstop.cli import main; sys.exit(main())")
    assert done.returncode != 0
    assert "deadstop[cli]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_package_is_typed() -> None:
    """Type checkers find the marker that says the package has types."""
    assert (PACKAGE / "py.typed").is_file()


def test_no_file_is_long() -> None:
    """A file that outgrows the limit has a seam along which to split it."""
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST} == {}


def test_no_module_imports_the_package_from_inside() -> None:
    """Modules import submodules, so the public names can be loaded lazily and no circle can form."""
    guilty = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name == "deadstop"]
            elif isinstance(node, ast.ImportFrom) and node.module == "deadstop" and not node.level:
                names = [alias.name for alias in node.names if not is_submodule(alias.name)]
            else:
                continue
            guilty += [f"{path}:{node.lineno} {name}" for name in names]
    assert guilty == []


def is_submodule(name: str) -> bool:
    """Whether `deadstop.name` is a module or a package."""
    return (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir()


def test_every_test_says_its_promise() -> None:
    """Every test has a docstring."""
    silent = []
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                silent += [] if ast.get_docstring(node) else [f"{path}:{node.lineno} {node.name}"]
    assert silent == []


def test_the_tests_of_the_core_are_pure() -> None:
    """What tests/core imports of ours is the core and its errors, so no SDK or transport can change its verdict."""
    impure = re.compile(r"(?!deadstop\.(core|errors)\b)(deadstop|openai|anthropic|httpx|httpcore|anyio|socket|worlds)")
    guilty = []
    for path in sorted((TESTS / "core").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            else:
                continue
            guilty += [f"{path}:{node.lineno} {name}" for name in names if impure.match(name)]
    assert guilty == []


def test_a_hang_shows_the_stack_of_every_thread(tmp_path: Path) -> None:
    """A test that hangs in a process of its run's fails it, and says where each thread stood and what was printed."""
    (tmp_path / "test_hangs.py").write_text(HANGS)
    where = ["--config-file", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path)]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-n",
        "1",
        "--max-worker-restart",
        "0",
        "--timeout",
        "1",
        *where,
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), str(TESTS)])}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert "never.wait()  # ours" in said, said
    assert "never.wait()  # the other's" in said, said
    assert "a last word" in said, said


def test_no_lock_file_is_tracked() -> None:
    """The repository holds no uv.lock, which names the registry it was made with."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [name for name in tracked.splitlines() if Path(name).name == "uv.lock"] == []


def test_pins_say_what_and_not_where_from() -> None:
    """A compiled requirements file holds names, versions and markers: no index, hash, host or path."""
    if not (ROOT / "requirements").is_dir():
        pytest.skip("not a checkout")
    pin = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [^:/@]+)?")
    files = (ROOT / "requirements").rglob("*.txt")
    lines = [line for path in files for line in path.read_text().splitlines()]
    assert lines
    assert [line for line in lines if not pin.fullmatch(line)] == []
