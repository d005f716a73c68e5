"""Who is told, and by whom: a thread that is there only while there is something to tell.

A cancel may run in a signal handler, on top of anything, and its caller waits for nobody's metrics. So an event is
put in a queue, which takes no lock that anybody waits for, and a thread tells the hooks.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import os
import sys
import threading
from collections import deque
from contextvars import Context
from functools import partial
from typing import Any, Callable, Optional

from deadstop.errors import UsageError
from deadstop.telemetry import logs
from deadstop.telemetry.events import Event, Hook

__all__ = ["add_hook", "emit", "flush", "turn_off", "wanted"]

log = logging.getLogger("deadstop")

AT_EXIT = 1.0
"""How long (seconds) the end of the process waits for what was not told yet."""

_PROVIDERS = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
_SWITCH = ("DEADSTOP_TELEMETRY",)


def _is_set(*names: str) -> bool:
    """Whether the environment has one of these. Each cancel asks, and decoding a variable takes microseconds."""
    raw = getattr(os.environ, "_data", None) or dict(os.environ)
    return any(name in raw or name.encode() in raw for name in names)


class _Added:
    """A hook that was added, and whether it was complained about."""

    __slots__ = ("complained", "hook")

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self.complained = False

    def tell(self, event: Event, context: Optional[Context]) -> None:
        try:
            if context is None:
                self.hook(event)
            else:
                context.run(self.hook, event)
        except BaseException:  # also one that means to leave: the thread is not its to end
            if not self.complained:
                self.complained = True
                log.exception("The telemetry hook %r failed; cancels go on, and this is said once.", self.hook)


_added: dict[int, _Added] = {}  # each change is one operation, which is atomic
_offs: dict[int, object] = {}
_automatic: dict[str, Optional[_Added]] = {}


def add_hook(hook: Hook) -> Callable[[], None]:
    """Have `hook(event)` called for every event of this process's cancels. Returns a function that undoes it.

    Raises `UsageError` for what can't be called.
    """
    if not callable(hook):
        raise UsageError(f"add_hook() takes a function of one event, and got {hook!r}.")
    added = _Added(hook)
    _added[id(added)] = added
    return lambda: (_added.pop(id(added), None), None)[1]


def turn_off() -> Callable[[], None]:
    """Report nothing by itself any more: no OpenTelemetry, no log records. Returns a function that undoes it.

    Hooks that were added are still told. `DEADSTOP_TELEMETRY=off` in the environment does the same.
    """
    key = object()
    _offs[id(key)] = key
    return lambda: (_offs.pop(id(key), None), None)[1]


def _is_off() -> bool:
    if _offs or not _is_set(*_SWITCH):
        return bool(_offs)
    return os.environ.get(_SWITCH[0], "").strip().lower() in ("off", "0", "false", "no")


def _has_opentelemetry() -> bool:
    # Whoever has set up OpenTelemetry has imported it, or names its providers in the environment. For all others its
    # import would be the most expensive part of a cancel.
    if _automatic.get("otel", True) is None:  # it was tried, and can't be had
        return False
    return "opentelemetry" in sys.modules or _is_set(*_PROVIDERS)


def wanted() -> bool:
    """Whether anybody wants to hear of a cancel that goes well."""
    return bool(_added) or (not _is_off() and (logs.wanted() or _has_opentelemetry()))


def emit(event: Event, context: Optional[Context]) -> None:
    """Have everybody told of `event`, soon, in `context`. Never blocks; any thread, and signal handlers."""
    _submit(partial(_tell, event, context))


def _tell(event: Event, context: Optional[Context]) -> None:
    for added in list(_added.values()):
        added.tell(event, context)
    if not _is_off():
        if _has_opentelemetry():
            if "otel" not in _automatic:
                _automatic["otel"] = _opentelemetry()
            hook = _automatic["otel"]
            if hook is not None:
                hook.tell(event, context)
        _log.tell(event, context)


_log = _Added(logs.record)


def _opentelemetry() -> Optional[_Added]:
    try:
        from deadstop.telemetry.otel import OpenTelemetryHook

        return _Added(OpenTelemetryHook())
    except Exception as error:  # not installed whole, or too old
        log.warning("Cancels are not reported to OpenTelemetry: %s", error)
        return None


def flush(timeout: float = AT_EXIT) -> bool:
    """Wait at most `timeout` seconds until everybody was told of what has happened so far; whether that is so."""
    told = threading.Event()
    _submit(told.set)
    return told.wait(min(timeout, threading.TIMEOUT_MAX))


# The thread. Whoever gets the lock sees to the queue, and looks at it again after letting go.

_queue: deque[Callable[[], Any]] = deque()
_turn = threading.Lock()
_registered: list[None] = []


def _submit(work: Callable[[], Any]) -> None:
    if not _registered:
        _registered.append(None)
        atexit.register(_at_exit)
    _queue.append(work)
    if not _turn.locked():  # taken by the thread itself: Ctrl-C may come by here, and would leave it locked for good
        # `threading.Thread.start` would take locks of its own.
        with contextlib.suppress(RuntimeError):  # the interpreter is shutting down, or there are no more threads
            _thread.start_new_thread(_work, ())


def _work() -> None:
    while _queue and _turn.acquire(blocking=False):
        try:
            while _queue:
                _queue.popleft()()
        except IndexError:
            pass
        finally:
            _turn.release()


def _at_exit() -> None:
    if _queue or _turn.locked():
        flush(AT_EXIT)


def _forked() -> None:
    global _turn
    _turn = threading.Lock()  # the thread is the parent's, and so is what it was to tell
    _queue.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
