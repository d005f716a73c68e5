"""Processes for the tests, without what the start of an interpreter takes: one that has all imported forks them.

`popen` is `subprocess.Popen` for ``python ARGUMENTS...``. What it starts is as good as an interpreter of its own, from
the streams to the exit: nothing but modules is there already. A test that is about the start starts a real one.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

MODULES = (
    *("asyncio", "sqlite3", "anyio._backends._asyncio", "psycopg", "h11", "typer", "rich.table", "nats.aio.client"),
    *("openai.resources.chat.completions.completions", "openai.resources.responses.responses"),
    *("httpcore", "httpcore2", "truststore", "jiter"),
    *(f"deadstop.{name}" for name in ("cli.fleet", "clients.channel", "runs.blocking", "runs.concurrent")),
    *(
        f"deadstop.{name}"
        for name in ("runs.pickup", "runs.keeper", "fleet.member", "ledger.sqlite", "ledger.postgres")
    ),
)
OWN = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONWARNINGS")
"""What a child makes of its own environment. What else an interpreter reads there has to be as it is in the nursery."""


def popen(arguments: list[str], **how: Any) -> subprocess.Popen[Any]:
    """Start ``python ARGUMENTS...``: a script, ``-m`` and a module, or ``-c`` and code, then what it is told."""
    env = how.get("env")
    if hasattr(os, "fork") and nursery().suits(os.environ if env is None else env):
        _be_there()
        return Born(arguments, **how)
    return subprocess.Popen([sys.executable, *arguments], **how)


def _be_there() -> None:
    """What the start of an interpreter leaves time for: others know of this process, and it hears them."""
    members = sys.modules.get("deadstop.fleet.members")
    for member in list(members._members.values()) if members is not None else ():
        member.writes.drain(1.0)  # where the ledger is down, not longer than that start takes
        if member.wire is not None:
            member.wire.listening.wait(1.0)


class Nursery:
    """That of this process. It ends when its socket does."""

    def __init__(self) -> None:
        import deadstop

        path = [str(Path(deadstop.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
        self._env = {name: value for name, value in os.environ.items() if name not in OWN}
        self._asking = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(number), os.pathsep.join(filter(None, path))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[number],
                env=self._env,
            )

    def suits(self, env: Any) -> bool:
        """Whether an interpreter in this environment would begin as the nursery did."""

        def read(env: Any) -> dict[str, str]:
            return {name: env[name] for name in env if name.startswith(("PYTHON", "LC_", "LANG")) and name not in OWN}

        return read(env) == read(self._env)

    def ask(self, request: dict[str, Any], descriptors: list[int]) -> None:
        data = json.dumps(request).encode() + b"\n"
        with self._asking:
            sent = socket.send_fds(self._socket, [data], descriptors)
            self._socket.sendall(data[sent:])

    def close(self) -> None:
        """It kills those that are left, and ends."""
        self._socket.close()
        self.process.wait(20.0)


_starting = threading.Lock()
_started: list[Nursery] = []


def nursery() -> Nursery:
    """Started when it is first asked for."""
    with _starting:
        if not _started:
            _started.append(Nursery())
            atexit.register(_started[0].close)
        return _started[0]


class Born(subprocess.Popen):  # type: ignore[type-arg]
    """A child of the nursery, which says on a pipe how it ended, once it has been waited for."""

    def _execute_child(
        self, args: Any, executable: Any, preexec: Any, close: Any, keep: Any, cwd: Any, env: Any, *more: Any
    ) -> None:
        # More are: what is for Windows, the shell, the six ends of three pipes, and what nobody here asks for.
        pipes = more[3:9]
        streams = [own if given == -1 else given for own, given in enumerate((pipes[0], pipes[3], pipes[5]))]
        self._ended, theirs = os.pipe()
        try:
            request = {
                "arguments": list(map(os.fspath, args)),
                "directory": os.path.join(os.getcwd(), cwd or ""),
                "env": dict(os.environ if env is None else env),
            }
            nursery().ask(request, [*streams, theirs])
        finally:
            os.close(theirs)
            self._close_pipe_fds(*pipes)
        self.pid = self._hear()
        self._child_created = True

    def _hear(self) -> int:
        said = b""
        while not said.endswith(b"\n"):
            more = os.read(self._ended, 1)
            assert more, "the nursery is gone"
            said += more
        return int(said)

    def _internal_poll(self, _deadstate: Optional[int] = None) -> Optional[int]:
        with self._waitpid_lock:
            if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
                try:
                    self._handle_exitstatus(self._hear())
                finally:
                    os.close(self._ended)
        return self.returncode

    def _wait(self, timeout: Optional[float]) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self._internal_poll() is None:
            left = None if end is None else max(end - time.monotonic(), 0.0)
            if not select.select([self._ended], [], [], left)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode


# In the nursery


def serve(requests: socket.socket, ends: dict[int, int]) -> Optional[dict[str, Any]]:
    """Fork a child for each request, and say at its end how it ended. In the child, return the request; in the nursery,
    once nobody asks any more, nothing."""
    woken, wake = socket.socketpair()
    for each in (woken, wake):
        each.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        while True:
            readable = select.select([requests, woken], [], [])[0]
            if woken in readable:
                woken.recv(4096)
                reap(ends)
            if requests not in readable:
                continue
            data, streams, *_ = socket.recv_fds(requests, 65536, 4)
            while not data.endswith(b"\n"):
                more = requests.recv(65536)
                if not more:
                    return None
                data += more
            end = streams.pop()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for stream in (requests, woken, wake):
                    stream.close()
                for number, each in enumerate(streams):
                    os.dup2(each, number)
                for each in (*streams, *ends.values(), end):
                    os.close(each)
                request: dict[str, Any] = json.loads(data)
                return request
            for each in streams:
                os.close(each)
            ends[pid] = end
            tell(end, pid)
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def reap(ends: dict[int, int]) -> None:
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        tell(ends[pid], status)
        os.close(ends.pop(pid))


def tell(end: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # if nobody waits for it
        os.write(end, b"%d\n" % number)


def become(request: dict[str, Any]) -> None:
    """What an interpreter does before it comes to the code."""
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["env"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = stream(sys.stdin, 0, "r", unbuffered)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = stream(sys.stdout, 1, "w", unbuffered)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = stream(sys.stderr, 2, "w", unbuffered)  # type: ignore[misc]
    sys.warnoptions[:] = filter(None, os.environ.get("PYTHONWARNINGS", "").split(","))
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]
    path = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = dict.fromkeys([*map(os.path.abspath, path), *BASE])


def stream(old: Any, number: int, mode: str, unbuffered: bool) -> Any:
    buffer: Any = open(number, f"{mode}b", 0 if unbuffered and mode == "w" else -1, closefd=False)  # noqa: SIM115
    getattr(buffer, "raw", buffer).name = old.name
    lines = mode == "w" and not unbuffered and (number == 2 or buffer.isatty())
    made: Any = io.TextIOWrapper(buffer, old.encoding, old.errors, "\n", lines, unbuffered)
    made.mode = mode
    return made


def run(arguments: list[str]) -> None:
    """As the main module, which is a new one."""
    what, more = arguments[0], arguments[1:]
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={})
    if what == "-m":
        sys.argv[:] = [what, *more[1:]]
        sys.path.insert(0, os.getcwd())
        runpy._run_module_as_main(more[0])  # type: ignore[attr-defined]
    elif what == "-c":
        sys.argv[:] = [what, *more[1:]]
        sys.path.insert(0, "")
        exec(more[0], main.__dict__)
    else:
        sys.argv[:] = arguments
        sys.path.insert(0, os.path.dirname(os.path.realpath(what)))
        main.__dict__.update(__file__=what, __cached__=None)
        exec(compile(Path(what).read_bytes(), what, "exec"), main.__dict__)


if __name__ == "__main__":
    BASE = sys.path[1:]
    sys.path[:0] = sys.argv[2].split(os.pathsep)
    for each in MODULES:
        with contextlib.suppress(ImportError):  # who needs it finds out
            import_module(each)
    gc.freeze()  # of an exit it was 0.3 s to look through all that the imports made; what a child makes is looked at
    ends: dict[int, int] = {}
    itself, request = os.getpid(), None
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        try:
            request = serve(requests, ends)
        except KeyboardInterrupt:  # is for all in front of this terminal, and the tests end, too
            if os.getpid() != itself:
                raise
    if request is None:
        for pid in ends:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    else:
        # A child, down to an exit like any other's: with its threads, its hooks, its traceback.
        become(request)
        run(request["arguments"])
