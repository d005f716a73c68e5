"""The live runs of one client and its copies, and the records of those that ended lately."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Callable, Optional, cast

from deadstop.calls.call import Call
from deadstop.calls.fence import call_of
from deadstop.calls.loops import Loop
from deadstop.calls.tracker import Tracker
from deadstop.core.model import CancelReceipt, Cause, Evidence
from deadstop.core.policy import CancelPolicy
from deadstop.errors import UnknownRunError, UsageError
from deadstop.kinds import register as kinds
from deadstop.kinds.base import Kind, Ref
from deadstop.kinds.register import Passing
from deadstop.kinds.servers import ServerProfile
from deadstop.runs.births import Birth, Watch, expect
from deadstop.runs.cancelling import Cancelling
from deadstop.runs.checks import (
    already_open,
    checked_actors,
    checked_name,
    checked_new_name,
    checked_policy,
    checked_seconds,
    no_target,
    unknown,
)
from deadstop.runs.family import leave_above, outlast, tops, within_open
from deadstop.runs.inherited import let_go_at_fork
from deadstop.runs.keeping import UNKEPT, Keeping
from deadstop.runs.reconciler import Reconciler
from deadstop.runs.remote import Remote
from deadstop.runs.run import BaseRun, current_run
from deadstop.runs.settings import check_settings, policy_at_hand
from deadstop.runs.tally import part

if TYPE_CHECKING:
    from deadstop.runs.keeper import Keeper

__all__ = ["REGISTRIES", "TOLD", "Registry", "stop_new_runs"]

HELD = 10_000
"""How many remote runs a registry knows before it forgets the oldest of those that nobody cancels and whose scopes were
left. One that it has forgotten can be cancelled by its address still."""

KEPT = 1000
"""How many ended runs a registry remembers, so that a cancel that comes too late is told so."""

REGISTRIES: weakref.WeakSet[Registry] = weakref.WeakSet()
"""All registries of the process: a signal handler stops them all."""

TOLD: list[Callable[[], Any]] = []
"""Called when a registry is made."""

let_go_at_fork(REGISTRIES)

_numbers = itertools.count(1)


class Registry:
    """Runs by name. Shared by a client and its copies.

    Nothing here takes a lock: a signal handler may come by at any line, and end a run from there. Each change is a
    single operation on a dict, which is atomic.
    """

    def __init__(self, run_class: type[BaseRun], *, in_task: bool = False) -> None:
        self._run_class = run_class
        self.policy: Optional[CancelPolicy] = None
        self.server: Optional[ServerProfile] = None  # where the user has said which it is
        self.streamed_inside = True
        self.in_task = in_task
        self.loop: Optional[Loop] = None  # of the tasks that use it, where a ledger is used
        self.last: Optional[Loop] = None  # of the task that called last
        self._live: dict[str, BaseRun] = {}
        self._ended: dict[str, BaseRun] = {}
        self.outlasting: dict[int, BaseRun] = {}  # scopes that were left, with calls under way elsewhere
        self._memory: dict[Any, Any] = {}
        self._remotes: dict[Ref, BaseRun] = {}  # the remote runs among them, live or ended lately
        self.reset: Callable[[], Any] = lambda: 0
        self.channel_to: Callable[[], Any] = _no_channel  # the way to the server, for runs named by their id
        self.reconciler = Reconciler()
        self.keeper: Optional[Keeper] = None  # where the client uses a ledger
        self.http_clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self.channels: weakref.WeakSet[Any] = weakref.WeakSet()  # of the client and its copies
        self.home: Callable[[], Any] = lambda: None  # the client that had the runs first; None: it is gone
        REGISTRIES.add(self)
        for tell in TOLD:
            tell()

    # Opening

    def open(
        self,
        name: Optional[str],
        *,
        timeout: Optional[float],
        metadata: Optional[Mapping[str, Any]],
        policy: Optional[CancelPolicy],
        streamed_inside: Optional[bool],
        cancellers: Optional[Iterable[str]] = None,
        orphans: str = "leave",
        orphan_grace: float = 0.0,
    ) -> BaseRun:
        """A run of that name, ready to be entered. Raises `UsageError`, and then nothing was opened."""
        named = name is not None
        name = f"run-{next(_numbers)}" if name is None else checked_new_name(name)
        while not named and name in self._live:  # a name that the user has given
            name = f"run-{next(_numbers)}"
        timeout = None if timeout is None else checked_seconds("timeout", timeout)
        if policy is not None:
            checked_policy(policy)
        elif self.policy is None:
            check_settings(opening=True)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise UsageError(f"metadata is {metadata!r}: give a mapping, such as {{'user': 'u-7'}}.")
        if orphans not in ("leave", "cancel") or (orphan_grace != 0 and not 0 < orphan_grace < float("inf")):
            raise UsageError(f"orphans is {orphans!r} after {orphan_grace!r} s: give 'leave', or 'cancel' and seconds.")
        around = current_run.get()
        run = self._run_class(
            self,  # by position, here and in `begin`: by name each takes twice as long
            name,
            around if around is None or not around.ended else around.nearest(),
            policy,
            timeout,
            metadata,
            self.streamed_inside if streamed_inside is None else streamed_inside,
            False,
        )
        run.cancellers = None if cancellers is None else checked_actors(cancellers)
        if self.keeper is not None:
            self.keeper.open(run, named, orphans, orphan_grace)
        try:
            if self._live.setdefault(name, run) is not run:
                raise already_open(name)
            if _stopping is not None:
                run.request_cancel(run.intent(**_stopping))
            return run
        except BaseException:  # Ctrl-C: nobody has got it
            run.end()
            raise

    def begin(
        self,
        method: str,
        path: str,
        *,
        streamed: bool,
        passing: Optional[Passing] = None,
        channel: Optional[Callable[[], Any]] = None,
    ) -> Call:
        """A call begins: in the innermost open scope, or as an anonymous run of its own.

        `passing`: what it has to do with remote runs. One that starts such a run belongs to that run, which belongs
        to the scope. `channel()` gives the way to the server.
        """
        around = current_run.get()
        run = around if around is None or not around.ended else around.nearest()
        tracker = call = None
        try:
            if passing is not None and passing.creates and channel is not None:
                run = expect(self, f"{passing.kind.name} {next(_numbers)}", self._remote(passing.kind, channel()), run)
                tracker = Tracker(passing, Birth(self, run))
                cast(Remote, run.remote).tracker = tracker
            elif passing is not None and self._remotes:
                tracker = Tracker(passing, Watch(self))
            if run is None:
                run = self._run_class(self, f"call-{next(_numbers)}", None, None, None, None, False, True)
            inside = run.streamed_inside and not streamed
            call = Call(run, method.upper(), path, streamed, inside, self.in_task, self._memory, tracker)
            if self.in_task:
                call.loop = self.last = Loop.current(self.last)
            while run.anonymous and self._live.setdefault(run.name, run) is not run:  # a name that the user has given
                run.name = f"call-{next(_numbers)}"
            if _stopping is not None:
                run.request_cancel(run.intent(**_stopping))
            run.add(call)
            return call
        except BaseException:  # Ctrl-C: nobody runs it
            if call is not None:
                call.leave()
            elif run is not None and run.remote is not None:
                run.remote.unborn(True, None)
            raise

    # Remote runs

    def unborn(self, kind: Kind, channel: Any) -> BaseRun:
        """The run of a remote run that is about to be started here, in the innermost open scope if there is one."""
        around = current_run.get()
        remote = self._remote(kind, channel)
        return expect(self, f"{kind.name} {next(_numbers)}", remote, None if around is None else around.nearest())

    def word_of(self, ref: Ref) -> Optional[str]:
        """The last status that was seen of a remote run."""
        run = self._remotes.get(ref)
        return None if run is None or run.remote is None else run.remote.word

    def _remote(self, kind: Kind, channel: Any, ref: Optional[Ref] = None) -> Remote:
        remote = Remote(kind, channel, ref)
        remote.server = self.server or remote.server
        return remote

    def christen(self, run: BaseRun, ref: Ref, before: Optional[str] = None) -> None:
        """The id of a remote run is known: from now on that is its name, and no more what it was `before`."""
        before, after = before or run.name, str(ref)
        self._live[after] = self._remotes[ref] = run  # first: it is to be found all the time
        run.name = after
        if before != after and self._live.get(before) is run:
            del self._live[before]
        self._make_room()

    def _make_room(self) -> None:
        """The ends of many runs are never heard of here: of those that nobody cancels the oldest are forgotten."""
        with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # somebody else made room
            for _ in range(2):
                if len(self._remotes) <= HELD:
                    return
                ref = next(iter(self._remotes))
                run = self._remotes.pop(ref)
                if within_open(run) or run.calls or (run.cancelled and not run.ended):
                    self._remotes[ref] = run  # to the end of the queue
                    continue
                if self._live.get(run.name) is run:
                    del self._live[run.name]
                part(run)
                if run.parent is not None:
                    leave_above(run.parent)

    def remote_run(self, ref: Ref, word: Optional[str] = None) -> BaseRun:
        """The run of a remote run that was named by its id, or by an object of the SDK that said `word`."""
        run = self._remotes.get(ref)
        if run is None:
            if kinds.kind(ref.kind).connected:
                raise UnknownRunError(
                    f"{str(ref)!r} lives on a connection that somebody else holds, and can be cancelled over that one "
                    "only: cancel it by the client that opened it.",
                    run=str(ref),
                )
            run = self._run_class(self, str(ref), anonymous=True)
            run.remote = self._remote(kinds.kind(ref.kind), self.channel_to(), ref)
            run.remote.listen(run.remote_changed)
            run = self._remotes.setdefault(ref, run)
            self._live.setdefault(run.name, run)
        if word is not None:
            self.observe(ref, word, Evidence.STATUS)
        return run

    def anew(self, run: BaseRun) -> BaseRun:
        """The same remote run, not cancelled yet: its cancel here came to nothing, and is to be asked for once more."""
        again, remote = self._run_class(self, run.name, anonymous=True), cast(Remote, run.remote)
        again.remote = remote
        if run.cancelling is not None:
            run.cancelling.abandon()
        remote.leave(run.remote_changed)
        remote.listen(again.remote_changed)
        self._remotes[cast(Ref, remote.ref)] = self._live[run.name] = again
        return again

    def observe(self, ref: Ref, word: str, evidence: Evidence, asked_at: Optional[float] = None) -> None:
        """A remote run's status was seen passing by, in the answer to a request of `asked_at`."""
        run = self._remotes.get(ref)
        if run is not None and run.remote is not None and run.remote.observe(word, evidence, asked_at):
            self.reconciler.revived(run)
            if self.keeper is not None:
                self.keeper.revived(run)

    # Looking up

    def live(self) -> list[BaseRun]:
        """The runs that have not ended, oldest first; and the scopes that were left, with calls under way."""
        # Each once: one may just be being renamed, or left.
        return list(dict.fromkeys([*self.outlasting.values(), *self._live.values()]))

    def get(self, name: str) -> BaseRun:
        """The run of that name, live or ended lately. Raises `UnknownRunError`."""
        run = self._live.get(name) or self._ended.get(name)
        if run is None:
            raise unknown(name, list(self._live), KEPT)
        return run

    def find(self, target: Any) -> BaseRun:
        """The run that `target` stands for: a name, a run, or an SDK stream or response of ours."""
        if isinstance(target, BaseRun):
            return target
        if isinstance(target, str):
            name = checked_name(target)
            if name not in self._live and name not in self._ended:
                ref = kinds.parse(name)
                if ref is not None:
                    return self.remote_run(ref)
            return self.get(name)
        call = call_of(target)
        if call is None:
            found = kinds.of_object(target)
            if found is not None:
                return self.remote_run(*found)
            raise no_target(target)
        owner = cast(BaseRun, call.run)
        return owner if owner.anonymous else self._alone(owner, call)

    def _alone(self, run: BaseRun, call: Call) -> BaseRun:
        """A run of one call of a scope, so that it can be cancelled without its siblings."""
        if call.canceller is not None:
            return call.canceller  # type: ignore[no-any-return]
        one = self._run_class(self, f"{run.name}/call-{call.id}", policy=run.policy)
        one.ended, one.cancellers = call.left.is_set(), run.cancellers
        if not one.ended:
            one.calls[call.id] = call
        return run.alone.setdefault(call.id, one)

    def policy_for(self, run: Optional[BaseRun], explicit: Optional[CancelPolicy]) -> CancelPolicy:
        """The nearest policy: of this cancel, the run, the runs around it, the client, the settings."""
        if explicit is not None:
            return checked_policy(explicit)
        kind = "call" if run is None or run.remote is None else run.remote.kind.name
        around = run
        while around is not None:
            if around.policy is not None:
                return around.policy
            around = around.parent
        if self.policy is not None:
            return self.policy
        policy = policy_at_hand(kind)
        if run is not None and run.remote is None and run.children:
            # A scope's cancel takes as long as that of the slowest kind in it.
            slowest = max((self.policy_for(each, None).timeout for each in list(run.children.values())), default=0.0)
            if slowest > policy.timeout:
                policy = policy.replace(timeout=slowest)
        return policy

    # What becomes of runs

    def retire(self, run: BaseRun) -> None:
        """The run has ended: it is remembered for a while."""
        if self._live.get(run.name) is not run:
            return
        if run.calls:
            outlast(run)
        try:
            if self.keeper is not None:
                self.keeper.ended(run)
            if not run.anonymous or run.cancelled or run.remote is not None:
                self._ended.pop(run.name, None)  # so that it goes to the end of the queue
                self._ended[run.name] = run
                if len(self._ended) > KEPT:
                    self._forget()
        finally:  # the name comes free last: who opens or cancels the next run of it comes after all of this one
            self._live.pop(run.name, None)

    def _forget(self) -> None:
        with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # somebody else made room
            while len(self._ended) > KEPT:
                gone = self._ended.pop(next(iter(self._ended)))
                if gone.remote is not None and self._remotes.get(cast(Ref, gone.remote.ref)) is gone:
                    del self._remotes[cast(Ref, gone.remote.ref)]

    def keeping(self, run: BaseRun) -> Keeping:
        """How the chase after a remote run is put on record."""
        return UNKEPT if self.keeper is None else self.keeper.keeping(run)

    def settled(self, run: BaseRun, receipt: CancelReceipt) -> None:
        """A cancel has an outcome."""
        if self.keeper is not None:
            self.keeper.settled(run, receipt)

    def cancel_all_soon(self, **facts: Any) -> list[Cancelling]:
        """Close every fence and start every abort. Never blocks."""
        runs = tops(self.live())
        if facts.get("cause", Cause.USER) is Cause.USER:
            actor = facts.get("actor")
            runs = [run for run in runs if run.cancellers is None or actor in run.cancellers]
        return [run.request_cancel(run.intent(**facts)) for run in runs]


def _no_channel() -> Any:
    raise UsageError("The client is gone, so there is no way to the server. Keep the client, and cancel through it.")


_stopping: Optional[dict[str, Any]] = None


def stop_new_runs(**facts: Any) -> None:
    """From now on every new run of the process is born cancelled, with these facts of an intent. For its end."""
    global _stopping
    _stopping = facts
