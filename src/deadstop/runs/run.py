"""A run: what was started under one name, and is stopped with it. What threads' and tasks' runs have in common."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Callable, Optional

from deadstop.calls import timers
from deadstop.calls.call import Call
from deadstop.calls.closed import CutOffCall, close_early
from deadstop.calls.completion import Completion
from deadstop.calls.loops import who_runs
from deadstop.core.model import CancelReceipt, Cause, Intent, Level
from deadstop.core.policy import CancelPolicy
from deadstop.errors import (
    CancelRefusedError,
    DeadstopError,
    RunCancellationTimeoutError,
    RunCancelledError,
    UsageError,
)
from deadstop.runs.cancelling import Cancelling
from deadstop.runs.checks import checked_facts, cut_off_by
from deadstop.runs.family import hand_up, leave_above, stopper
from deadstop.runs.remote import Remote
from deadstop.runs.strike import strike
from deadstop.runs.tally import count

if TYPE_CHECKING:
    from deadstop.runs.kept import Kept
    from deadstop.runs.registry import Registry

__all__ = ["BaseRun", "current_run"]

log = logging.getLogger("deadstop")

_NOBODY = (None, ())

current_run: ContextVar[Optional[BaseRun]] = ContextVar("deadstop_run", default=None)
"""The innermost scope that is open in the current context."""


class BaseRun:
    """A run and everything inside it: calls, child runs, what to do when it is cancelled.

    Not made by users: `runs.open()` gives one. All of this is safe from any thread and any task; `cancel_soon()`
    also from a signal handler. A call made outside of any scope is an anonymous run of its own.
    """

    __slots__ = (
        "__weakref__",
        "_entered",
        "_left",
        "_outer",
        "_timer",
        "alone",
        "anonymous",
        "callbacks",
        "calls",
        "cancelled",
        "cancellers",
        "characters",
        "children",
        "chunks",
        "ended",
        "kept",
        "metadata",
        "name",
        "once",
        "opened",
        "parent",
        "policy",
        "registry",
        "remote",
        "streamed_inside",
        "struck_by",
        "timeout",
    )

    def __init__(
        self,
        registry: Registry,
        name: str,
        parent: Optional[BaseRun] = None,
        policy: Optional[CancelPolicy] = None,
        timeout: Optional[float] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        streamed_inside: bool = False,
        anonymous: bool = False,
    ) -> None:
        self.registry = registry
        self.name = name
        self.parent = parent
        self.policy = policy
        self.timeout = timeout
        self.metadata = metadata
        self.streamed_inside = streamed_inside
        self.anonymous = anonymous
        self.remote: Optional[Remote] = None  # of a run that is one remote run
        self.cancellers: Optional[frozenset[Optional[str]]] = None  # who may cancel it; None: anybody
        self.kept: Optional[Kept] = None  # what the ledger has of it
        self.opened = time.monotonic()
        self.cancelled = False
        self.struck_by: Optional[BaseRun] = None  # the run that this one was cancelled with
        self.ended = False
        self.calls: dict[int, Call] = {}
        self.children: dict[int, BaseRun] = {}
        self.chunks = 0  # delivered by calls, and in child scopes, that are over
        self.characters = 0
        self.callbacks: dict[int, Callable[[BaseRun], Any]] = {}
        self.once: dict[str, Any] = {}  # "asked": who asked for its cancel first, and whom that hit; "it": that cancel
        self._timer: Any = None
        self._entered: Optional[tuple[int, int]] = None  # by whom
        self._left: Optional[tuple[int, int]] = None
        self._outer: Optional[BaseRun] = None
        self.alone: dict[int, BaseRun] = {}  # runs made of one call each, to be cancelled by itself

    # What users ask of a run

    @property
    def receipt(self) -> Optional[CancelReceipt]:
        """The receipt of the run's cancel; None while there is no outcome. An unconfirmed one may be refined, once."""
        cancelling = self.cancelling
        return cancelling.receipt if cancelling is not None else None

    def check(self) -> None:
        """Raise `RunCancelledError` if the run is cancelled: the gate before a tool call or the next turn."""
        if self.cancelled:
            raise self.error()

    def cancel_soon(
        self, *, reason: Optional[str] = None, actor: Optional[str] = None, cause: Cause = Cause.USER
    ) -> None:
        """Cancel and return at once. Never blocks, from any thread, callback or signal handler.

        The fence is closed when it returns; what came of it is in `receipt` later. Raises `CancelRefusedError` if the
        actor may not cancel it.
        """
        checked_facts(reason, actor)
        if self.cancellers is not None and cause is Cause.USER:
            self.refuse(actor, reason)
        self.request_cancel(self.intent(reason=reason, actor=actor, cause=cause))

    def on_cancel(self, callback: Callable[[Any], Any]) -> Callable[[], None]:
        """Have `callback(run)` called when the run is cancelled; at once if it is. Returns a function that undoes it.

        It is called once, in the thread of whoever cancels, after the fence has closed; it must not block. What it
        raises is logged: it can't stop the cancel. A coroutine function, which nobody would await, is a `UsageError`.
        """
        if not callable(callback):
            raise UsageError(f"on_cancel() takes a function of the run, and got {callback!r}.")
        if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(type(callback).__call__):
            raise UsageError(
                f"on_cancel() calls a plain function, in the thread of whoever cancels, and got {callback!r}, which "
                "nobody would await. Give one that hands the work to your event loop, such as "
                "`lambda run: asyncio.run_coroutine_threadsafe(clean_up(run), loop)`."
            )
        key = id(callback)
        while key in self.callbacks:
            key += 1
        self.callbacks[key] = callback
        if self.cancelled:
            self.call_back()
        return lambda: (self.callbacks.pop(key, None), None)[1]

    # What the shells and the calls ask of it

    def intent(
        self,
        *,
        reason: Optional[str] = None,
        actor: Optional[str] = None,
        cause: Cause = Cause.USER,
        deadline: float = float("inf"),
        level: Level = Level.CONFIRMED,
        request_id: Optional[str] = None,
        at: Optional[float] = None,
    ) -> Intent:
        """An intent to cancel this run, of now or of the moment `at` (monotonic seconds)."""
        return Intent(
            run=self.name,
            cause=cause,
            reason=reason,
            actor=actor,
            deadline=deadline,
            level=level,
            request_id=request_id,
            at=time.monotonic() if at is None else at,
        )

    def refuse(self, actor: Optional[str], reason: Optional[str] = None) -> None:
        """Raise `CancelRefusedError` if that actor may not cancel the run (I19). The try is put on record."""
        if self.cancellers is None or actor in self.cancellers:
            return
        if self.registry.keeper is not None:
            self.registry.keeper.refused(self, self.intent(actor=actor, reason=reason))
        who = actor or "An actor without a name"
        raise CancelRefusedError(f"{who} may not cancel run {self.name!r}.", run=self.name, actor=actor)

    def request_cancel(self, intent: Intent) -> Cancelling:
        """Close the fence of the run and of all below it, and start to abort their calls. Never blocks.

        The first one in makes the cancellation, everybody else joins it. `dict.setdefault` decides who that is: it
        is atomic, and unlike a lock it can't be held by the thread that a signal handler runs on top of.
        """
        cancelling = strike(self, intent)
        cancelling.follow()
        return cancelling

    @property
    def cancelling(self) -> Optional[Cancelling]:
        """The run's cancellation; None while nobody wants it cancelled.

        Made by whoever asks for it first, be it a call that was interrupted: the canceller sees to the sockets first.
        """
        once = self.once
        if "it" not in once and "asked" in once:
            once.setdefault("it", Cancelling(self, *once["asked"]))
        return once.get("it")

    def intent_of(self, above: Intent) -> Intent:
        """The intent that follows for this run from that of the run around it."""
        return self.intent(
            reason=above.reason, actor=above.actor, cause=Cause.PARENT, deadline=above.deadline, level=above.level
        )

    def call_back(self) -> None:
        """Call those of `on_cancel`, each once."""
        while self.callbacks:
            try:
                _, callback = self.callbacks.popitem()
            except KeyError:
                return
            try:
                callback(self)
            except Exception:
                log.exception("An on_cancel callback of run %r failed; the cancel goes on.", self.name)

    def recorded(self) -> list[Completion]:
        """What is set once the cancel is on record, where a ledger is used."""
        return [] if self.kept is None or self.kept.recording is None else [self.kept.recording.done]

    def settled(self, receipt: CancelReceipt) -> None:
        """The cancel has an outcome."""
        self.registry.settled(self, receipt)

    def error(self, call: Optional[Call] = None) -> DeadstopError:
        """What a call of this cancelled run raises."""
        struck = self if call is None or call.canceller is None else call.canceller
        asked, _ = struck.once.get("asked", _NOBODY)
        if type(asked) is tuple and "it" not in struck.once:  # a user, just now, who lets the caller go first
            reason, actor, _ = asked[2]
            return RunCancelledError(run=struck.name, reason=reason, actor=actor, cause=Cause.USER)
        if call is not None and struck.cancelling is None:
            struck = stopper(self, call) or self
        cancelling = struck.cancelling
        if cancelling is None and isinstance(call, CutOffCall):
            return cut_off_by((self if self.remote is None or self.parent is None else self.parent).name, call)
        if cancelling is None:
            return RunCancelledError(run=self.name)
        late = cancelling.timed_out(call) if call is not None else None
        if late is not None:
            return RunCancellationTimeoutError(receipt=late)
        run, (reason, actor, cause) = cancelling.run, cancelling.why
        while run.remote is not None and cause is Cause.PARENT and run.struck_by is not None:
            # The user knows the scope that was cancelled, and not the address of what was started in it.
            run = run.struck_by
            above: Any = run.cancelling
            reason, actor, cause = above.why
        return RunCancelledError(run=run.name, reason=reason, actor=actor, cause=cause, receipt=cancelling.receipt)

    def add(self, call: Call) -> None:
        """A call begins. In a cancelled run it is born cancelled (I15)."""
        self.calls[call.id] = call
        if self.cancelled:
            call.canceller = self
            call.cancelled = True
        elif self.ended:  # just now, in another thread
            hand_up(self, call)

    def remove(self, call: Call) -> None:
        """A call is over."""
        if call.handed_over and not call.completed:
            close_early(call)
        if self.calls.pop(call.id, None) is not None and call.chunks and not self.cancelled:
            count(self, call.chunks, call.characters)
        if self.anonymous and (self.remote is None or self.remote.over or self.remote.lost):
            self.end()
        elif self.ended:
            self.rest()

    def stops(self, call: Call) -> bool:
        """Whether nothing more is to be delivered of a call that was closed early."""
        return stopper(self, call) is not None

    def remote_changed(self, remote: Remote) -> None:
        """Something was learned of the remote run that this run is."""
        if self.registry.keeper is not None:
            self.registry.keeper.changed(self, remote)
        if (remote.over or remote.lost) and not self.calls:
            self.end()

    def enter(self) -> None:
        """The scope is open from here on, in this context; its deadline runs."""
        self._entered = who_runs(self.registry.in_task)
        if self.parent is not None:
            self.join_parent()
        if self.timeout is not None:
            self._timer = timers.at(self.opened + self.timeout, self._expire)
        self._outer = current_run.get()
        current_run.set(self)

    def join_parent(self) -> None:
        """From now on what happens to the run around it happens to this one, too (I15)."""
        parent = self.parent
        while parent is not None:
            parent.children[id(self)] = self
            if parent.cancelled:
                self.struck_by = parent
                above = parent.cancelling
                self.request_cancel(self.intent(reason=above.intent.reason if above else None, cause=Cause.PARENT))
            elif parent.ended:  # it was left before, or just now: nobody looks there any more
                parent.children.pop(id(self), None)
                parent = self.parent = parent.parent
                continue
            return

    def _expire(self) -> None:
        self.cancel_soon(reason=f"its {self.timeout:g} s are over", cause=Cause.DEADLINE)

    def leave(self) -> list[Call]:
        """The scope ends. Returns the calls that are still open in it: streams that were left early."""
        inside = current_run.get() is self
        if inside:  # scopes of suspended generators may end in another order than they began
            outer, self._outer = self._outer, None
            while outer is not None and outer.ended:
                outer = outer._outer or outer.parent
            current_run.set(outer)
        self._left = who_runs(self.registry.in_task or not inside)  # after that: Ctrl-C leaves nobody in it for good
        if self._timer is not None:
            self._timer.stop()
        left = list(self.calls.values())
        if self.children:
            left += [each for child in list(self.children.values()) if child.remote for each in child.calls.values()]
        return left

    def nearest(self) -> Optional[BaseRun]:
        """The scope that what is started in this one's context belongs to: this one, or around it, if it has ended.

        One that was cancelled counts though it has ended: nothing is started under it any more (I15).
        """
        run: Optional[BaseRun] = self
        while run is not None and run.ended and not (run.cancelled and run._binds()):
            run = run.parent
        if run is not self:
            current_run.set(run)
        return run

    def _binds(self) -> bool:
        """Whether a scope that was left still concerns who is here.

        A generator may be ended by another thread or task than the one that it was begun by. That one is out of the
        scope as well, and only its context does not know.
        """
        return self._left == self._entered or who_runs(self.registry.in_task) != self._entered

    def end(self) -> None:
        """Nothing more is begun in the run."""
        if self.ended:
            self.rest()
            return
        try:
            self.ended = True
            if self.parent is not None:
                leave_above(self)
            self.registry.retire(self)
        except BaseException:  # Ctrl-C
            leave_above(self)
            self.registry.retire(self)
            raise

    def rest(self) -> None:
        """Something has come to its end in the run, which has ended before."""
        if not self.calls:
            self.registry.outlasting.pop(id(self), None)
            if self.registry.keeper is not None and self.remote is None:
                self.registry.keeper.ended(self)
        leave_above(self)

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else "ended" if self.ended else "open"
        return f"<{type(self).__name__} {self.name!r}: {state}, {len(self.calls)} calls>"
