"""Running somebody's script as Python itself would: as `__main__`, with its `sys.argv` and `sys.path`."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any, Callable

__all__ = ["ScriptError", "prepare", "show"]


class ScriptError(Exception):
    """There is nothing to run. `exit_code` is what `python` exits with then."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def prepare(target: str, arguments: Sequence[str], *, module: bool) -> Callable[[], None]:
    """What runs the script `target`, or with `module` the module of that name. `sys` is set up at once.

    Raises `ScriptError` where there is no such script or module.
    """
    return (_module if module else _script)(target, arguments)


def _script(path: str, arguments: Sequence[str]) -> Callable[[], None]:
    if os.path.isdir(path):
        raise ScriptError(f"{path!r} is a directory: give a script, or -m and the name of a package.", 2)
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        raise ScriptError(f"{path!r} can't be opened: {error.strerror}.", 2) from error
    file_name = os.path.abspath(path)
    _set_up(path, arguments, os.path.dirname(os.path.realpath(path)))

    def run() -> None:
        code = compile(source, file_name, "exec", dont_inherit=True)
        _execute(code, {"__file__": file_name, "__loader__": SourceFileLoader("__main__", file_name)})

    return run


def _module(name: str, arguments: Sequence[str]) -> Callable[[], None]:
    _set_up("-m", arguments, os.getcwd())

    def run() -> None:
        spec = _find(name)
        loader: Any = spec.loader
        code = loader.get_code(spec.name)
        if code is None:
            raise ScriptError(f"The module {name!r} has no Python code to run.", 1)
        sys.argv[0] = str(spec.origin)
        package = spec.name.rpartition(".")[0]
        facts = {"__file__": spec.origin, "__loader__": loader, "__package__": package, "__spec__": spec}
        _execute(code, facts)

    return run


def _find(name: str) -> ModuleSpec:
    for one in (name, f"{name}.__main__"):
        try:
            spec = importlib.util.find_spec(one)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{one}.".startswith(f"{error.name}."):
                raise  # the package is there; what it imports is not
            spec = None
        if spec is None:
            raise ScriptError(f"There is no module named {one!r}.", 1)
        if spec.submodule_search_locations is None:
            return spec
    raise ScriptError(f"{name!r} is a package without a module `__main__`.", 1)


def _set_up(name: str, arguments: Sequence[str], directory: str) -> None:
    sys.argv = [name, *arguments]
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[0] = directory  # in place of the directory of this command


def _execute(code: types.CodeType, facts: dict[str, Any]) -> None:
    # A module of its own that stays, as Python's own __main__ does: atexit handlers and pickle look there.
    main = types.ModuleType("__main__")
    main.__dict__.update({"__builtins__": __builtins__, "__package__": None, "__spec__": None, **facts})
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def show(error: BaseException) -> None:
    """Print the traceback of an error that ended the script, as Python would: without the frames above the script."""
    trace = error.__traceback__
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("deadstop.cli."):
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
