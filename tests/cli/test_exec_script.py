"""`deadstop exec`: a script runs as under `python`, with deadstop's names in the openai module."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_child import command, key_and_url, seed, warm

from deadstop.testing import FakeOpenAI


def write(path: Path, text: str) -> str:
    """Write a file; its path."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_pages_script_runs_unmodified(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """The page's fixed script imports its error from openai, completes its request and says so."""
    with command("exec", *seed(tmp_path), **key_and_url(fake_openai.base_url)) as child:
        assert child.end() == 0
    assert child.output == ["Request completed or cancelled"]
    assert child.errors == ""
    assert [each.state for each in fake_openai.requests] == ["completed"]


def test_a_script_sees_what_it_would_see_under_python(tmp_path: Path) -> None:
    """`__main__`, sys.argv, sys.path[0] and `__file__` are Python's; options after the script are its own."""
    path = write(
        tmp_path / "script.py",
        "import sys\n"
        "print(__name__, __file__, sys.path[0], sys.argv[1:], __spec__, sys.modules['__main__'].__file__)\n",
    )
    with command("exec", "script.py", "--help", "-m", "--", "x", cwd=tmp_path) as child:
        assert child.end() == 0
    assert child.output == [f"__main__ {path} {tmp_path} ['--help', '-m', '--', 'x'] None {path}"]


@pytest.mark.parametrize("name", ["package.tool", "package"])
def test_a_module_runs_as_with_python_m(tmp_path: Path, name: str) -> None:
    """With -m a module or a package runs as `__main__`, found from the current directory."""
    text = "import sys\nfrom package import fact\nprint(__name__, __package__, sys.path[0], sys.argv, fact)\n"
    write(tmp_path / "package" / "__init__.py", "fact = 7\n")
    tool = write(tmp_path / "package" / "tool.py", text)
    main = write(tmp_path / "package" / "__main__.py", text)
    with command("exec", "-m", name, "--flag", cwd=tmp_path) as child:
        assert child.end() == 0
    path = main if name == "package" else tool
    assert child.output == [f"__main__ package {tmp_path} ['{path}', '--flag'] 7"]


@pytest.mark.parametrize(
    ("end", "code", "errors"),
    [("sys.exit(7)", 7, ""), ("sys.exit('bye')", 1, "bye"), ("sys.exit()", 0, ""), ("pass", 0, "")],
)
def test_the_scripts_exit_code_is_passed_on(tmp_path: Path, end: str, code: int, errors: str) -> None:
    """However a script ends, its exit code is the command's, and its atexit handlers run."""
    text = f"import atexit, sys\natexit.register(print, 'atexit')\n{end}\n"
    with warm("exec", write(tmp_path / "script.py", text)) as child:
        assert child.end() == code
    assert child.output == ["atexit"]
    assert child.errors == errors


@pytest.mark.parametrize("text", ["def f():\n    raise ValueError('no')\nf()\n", "def f(:\n"])
def test_an_error_has_a_plain_traceback(tmp_path: Path, text: str) -> None:
    """An uncaught error, or one of syntax, prints Python's traceback without our frames, and the exit code is 1."""
    with warm("exec", write(tmp_path / "script.py", text)) as child:
        assert child.end() == 1
    assert "Error" in child.errors.splitlines()[-1]
    assert "script.py" in child.errors
    assert "cli/" not in child.errors
    assert "runpy" not in child.errors


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("nowhere.py",), 2, "can't be opened"),
        ((".",), 2, "is a directory"),
        (("-m", "nowhere.at_all"), 1, "no module named 'nowhere.at_all'"),
        (("-m", "xml"), 1, "no module named 'xml.__main__'"),
        (("--grace", "-1", "x.py"), 2, "grace"),
        ((), 2, "SCRIPT"),
    ],
)
def test_a_wrong_target_is_told_clearly(tmp_path: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    """What can't be run is named in one sentence, with the exit code that Python has for it."""
    with warm("exec", *arguments, cwd=tmp_path) as child:
        assert child.end() == code
    assert says in child.errors
    assert "Traceback" not in child.errors
