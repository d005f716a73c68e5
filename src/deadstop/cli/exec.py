"""`deadstop exec`: what a signal does to a script whose calls can be cancelled.

The handler runs on top of the main thread, which may be blocked in one of the calls. So it only starts things: every
live run is cancelled (that never blocks), one thread sees the cancels through and prints the receipts, another one
ends the process if the script does not.

From the signal on::

    at once            every live run is cancelled, and each that is opened later; without any, the script is left
    settled            the receipts are printed; the script is left, unless its main thread has an error to handle
    grace              cancels still open are unconfirmed; the script is left, whatever it is doing
    grace + LEAVING    the process is ended
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Callable, Optional

from deadstop.calls.call import Call, Interruption
from deadstop.calls.timers import LONGEST
from deadstop.cli.forks import give_back
from deadstop.cli.script import ScriptError, prepare, show
from deadstop.cli.wake import Wake
from deadstop.clients.adopted import fall_back_on
from deadstop.clients.install import install
from deadstop.core.model import CancelReceipt, Cause
from deadstop.errors import RunCancellationTimeoutError, RunCancelledError
from deadstop.runs.cancelling import Cancelling
from deadstop.runs.registry import REGISTRIES, TOLD, Registry, stop_new_runs

__all__ = ["LEAVING", "execute"]

LEAVING = 1.0
"""How long (seconds) a script has, after the grace, to get from `SystemExit` to its end."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_LOOK = 0.02  # seconds between two looks for runs that were opened after the signal


def execute(
    target: str, arguments: list[str], *, module: bool = False, grace: float = 2.0, url: Optional[str] = None
) -> int:
    """Run a script under the protection of deadstop. The exit code; a `SystemExit` of the script's own passes.

    Its runs are kept in the ledger at `url`; without one in this user's own file, if that can be used.
    """
    install()
    if url:
        os.environ["DEADSTOP_URL"] = url
    fall_back_on("sqlite:")
    try:
        body = prepare(target, arguments, module=module)
        return Supervisor(grace).run(body)
    except ScriptError as error:
        print(f"deadstop: {error}", file=sys.stderr)
        return error.exit_code


class Stop(SystemExit, KeyboardInterrupt):
    """Makes the main thread leave. Also a `KeyboardInterrupt`, so that what the script does on Ctrl-C still works."""


class Supervisor:
    """One run of a script, and the signals that may come meanwhile."""

    def __init__(self, grace: float) -> None:
        self._grace = min(grace, LONGEST)
        self._signal: Optional[int] = None
        self._deadline = 0.0
        self._calls: list[Call] = []  # those in flight when the signal came
        self._nudged = False
        self._finishing = False  # the script's main thread is done, and waits for the others
        self._over = False
        self._settled = threading.Event()
        self._before: dict[int, Any] = {}  # what signals did before they were ours

    def run(self, body: Callable[[], None]) -> int:
        """Run `body` to its end, its threads included, in the main thread."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup
                self._before[number] = signal.signal(number, self._handle)
        give_back(self._handle, self._before)
        # With the first client: a thread more is not for a script that has nothing to cancel, and may fork.
        if hasattr(signal, "SIGURG"):  # not on Windows
            TOLD.append(Wake(SIGNALS).start)
        ended: Optional[BaseException] = None
        try:
            body()
        except ScriptError:
            raise
        except BaseException as error:
            ended = error
            if not isinstance(error, SystemExit) and not self._is_ours(error):
                show(error)
        try:
            self._finishing = True
            _wait_for_threads()
        except BaseException as error:
            ended = ended or error
        self._over = True
        if self._signal is not None:
            self._settled.wait(max(self._deadline + LEAVING - time.monotonic(), 0.0))
            return 128 + self._signal
        if isinstance(ended, SystemExit):
            raise ended
        return 0 if ended is None else 128 + signal.SIGINT if isinstance(ended, KeyboardInterrupt) else 1

    # In the main thread, on top of whatever it does. Takes no lock, and never waits.

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        if self._nudged:
            self._nudged = False
            self._leave()
            return
        if self._signal is not None or self._over:
            os._exit(128 + number)
        self._signal, self._deadline = number, time.monotonic() + self._grace
        threading.excepthook = self._quietly(threading.excepthook)
        # `_thread`, because starting a `threading.Thread` takes locks that the main thread may hold just now.
        _thread.start_new_thread(self._enforce, ())
        stop_new_runs(**self._facts())
        self._calls = [call for registry in _registries() for run in registry.live() for call in run.calls.values()]
        started = [each for registry in _registries() for each in registry.cancel_all_soon(**self._facts())]
        here = threading.get_ident()
        told = any(call.thread == here for call in self._calls)
        handling = told or self._finishing or not self._calls
        _thread.start_new_thread(self._see_through, (started, handling))
        if not started:
            self._stop()

    def _leave(self) -> None:
        if self._over:
            return
        here = threading.get_ident()
        for call in self._calls:
            if not (call.in_task or call.left.is_set()) and call.thread == here and call.is_inside():
                # On a transport that can't be interrupted. Its caller gets a RunCancellationTimeoutError.
                raise Interruption(call)
        self._stop()

    def _stop(self) -> None:
        if not _stop_trio():
            raise Stop(128 + (self._signal or 0))

    def _facts(self) -> dict[str, Any]:
        name = signal.Signals(self._signal or 0).name
        return {"cause": Cause.SIGNAL, "reason": f"the process received {name}", "deadline": self._deadline}

    # In threads of their own

    def _see_through(self, started: list[Cancelling], handling: bool) -> None:
        try:
            self._settle(started)
        finally:
            self._settled.set()
        if not handling:
            self._nudge()
        while not self._over and self._left() > 0:
            for registry in _registries():
                for run in registry.live():
                    if not run.cancelled:
                        run.request_cancel(run.intent(**self._facts()))
            time.sleep(min(_LOOK, max(self._left(), 0.0)))
        # Twice: the first may be spent on a call that the main thread is stuck in.
        for _ in range(2):
            self._nudge()
            time.sleep(LEAVING / 3)

    def _settle(self, started: list[Cancelling]) -> None:
        for moment, late in (
            (self._deadline - self._grace / 2, Cancelling.grace_spent),
            (self._deadline, Cancelling.deadline_passed),
        ):
            for each in started:
                each.done.wait(max(moment - time.monotonic(), 0.0))
            for each in started:
                if not each.done.is_set():
                    late(each)
        for each in started:
            _say(each.receipt or each.snapshot())

    def _nudge(self) -> None:
        number = self._signal or 0
        if not self._over and signal.getsignal(number) == self._handle:
            self._nudged = True
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    def _enforce(self) -> None:
        time.sleep(self._left() + LEAVING)
        _thread.start_new_thread(self._last_words, ())  # they may block, and the end must not
        time.sleep(0.1)
        os._exit(128 + (self._signal or 0))

    def _last_words(self) -> None:
        print(
            f"deadstop: the script was still there {self._grace + LEAVING:g} s after the signal, and was ended.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    # Which errors are the signal's doing

    def _is_ours(self, error: Optional[BaseException]) -> bool:
        if self._signal is None or error is None:
            return False
        if isinstance(error, (Stop, Interruption, RunCancelledError, RunCancellationTimeoutError)):
            return True
        group = getattr(error, "exceptions", None)
        if isinstance(group, tuple) and group:
            return all(self._is_ours(each) for each in group)
        return isinstance(error, KeyboardInterrupt)

    def _quietly(self, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def quiet(facts: Any) -> None:
            if not self._is_ours(facts.exc_value):
                hook(facts)

        return quiet


def _registries() -> list[Registry]:
    while True:
        try:
            return list(REGISTRIES)
        except RuntimeError:  # another thread made a client just now
            continue


def _stop_trio() -> bool:
    # What is raised on top of trio's own code breaks it. Its way for a KeyboardInterrupt is safe from a handler.
    trio = sys.modules.get("trio")
    context = getattr(getattr(getattr(trio, "_core", None), "_run", None), "GLOBAL_RUN_CONTEXT", None)
    deliver = getattr(getattr(context, "runner", None), "deliver_ki", None)
    if deliver is None:
        return False
    deliver()
    return True


def _wait_for_threads() -> None:
    # What Python does next anyway. Done here, a signal meanwhile is handled like any other.
    shutdown = getattr(threading, "_shutdown", None)
    if shutdown is not None:
        shutdown()


def _say(receipt: CancelReceipt) -> None:
    with contextlib.suppress(OSError, ValueError):  # standard error is closed
        print(receipt, file=sys.stderr, flush=True)
