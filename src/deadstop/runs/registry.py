"""The live runs of one client and its copies, and the records of those that ended lately."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Mapping
from typing import Any, Callable, Optional, cast

from deadstop.calls.call import Call
from deadstop.calls.fence import call_of
from deadstop.core.model import CancelReceipt
from deadstop.core.policy import CancelPolicy
from deadstop.errors import RunAlreadyOpenError, UnknownRunError, UsageError
from deadstop.runs.cancelling import Cancelling
from deadstop.runs.run import BaseRun, current_run
from deadstop.runs.settings import policy_in_force

__all__ = ["REGISTRIES", "Registry", "stop_new_runs"]

KEPT = 1000
"""How many ended runs a registry remembers, so that a cancel that comes too late is told so."""

REGISTRIES: weakref.WeakSet[Registry] = weakref.WeakSet()
"""All registries of the process: a signal handler stops them all."""

_numbers = itertools.count(1)


class Registry:
    """Runs by name. Shared by a client and its copies.

    Nothing here takes a lock: a signal handler may come by at any line, and end a run from there. Each change is a
    single operation on a dict, which is atomic.
    """

    def __init__(
        self,
        run_class: type[BaseRun],
        *,
        in_task: bool = False,
    ) -> None:
        self._run_class = run_class
        self.policy: Optional[CancelPolicy] = None
        self.streamed_inside = True
        self._in_task = in_task
        self._live: dict[str, BaseRun] = {}
        self._ended: dict[str, BaseRun] = {}
        self._memory: dict[Any, Any] = {}
        self.http_clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self._watchers: list[Callable[[BaseRun, CancelReceipt], Any]] = []
        REGISTRIES.add(self)

    # Opening

    def open(
        self,
        name: Optional[str],
        *,
        timeout: Optional[float],
        metadata: Optional[Mapping[str, Any]],
        policy: Optional[CancelPolicy],
        streamed_inside: Optional[bool],
    ) -> BaseRun:
        """A run of that name, ready to be entered. Raises `UsageError`, and then nothing was opened."""
        name = f"run-{next(_numbers)}" if name is None else checked_name(name)
        if timeout is not None:
            timeout = checked_seconds("timeout", timeout)
        if policy is not None:
            checked_policy(policy)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise UsageError(f"metadata is {metadata!r}: give a mapping, such as {{'user': 'u-7'}}.")
        if streamed_inside is None:
            streamed_inside = self.streamed_inside
        around = current_run.get()
        run = self._run_class(
            self,
            name,
            parent=None if around is None else around.nearest(),
            timeout=timeout,
            metadata=metadata,
            policy=policy,
            streamed_inside=streamed_inside,
        )
        if self._live.setdefault(name, run) is not run:
            raise RunAlreadyOpenError(
                f"A run named {name!r} is open already. Give each run a name of its own, such as the id of the "
                "request that it answers, or leave the first one before you open the next.",
                run=name,
            )
        if _stopping is not None:
            run.request_cancel(run.intent(**_stopping))
        return run

    def begin(self, method: str, path: str, *, streamed: bool) -> Call:
        """A call begins: in the innermost open scope, or as an anonymous run of its own."""
        around = current_run.get()
        run = None if around is None else around.nearest()
        if run is None:
            run = self._run_class(self, f"call-{next(_numbers)}", anonymous=True)
            while self._live.setdefault(run.name, run) is not run:  # a name that the user has given
                run.name = f"call-{next(_numbers)}"
        call = Call(
            run,
            method.upper(),
            path,
            streamed=streamed,
            streamed_inside=run.streamed_inside and not streamed,
            in_task=self._in_task,
            memory=self._memory,
        )
        if _stopping is not None:
            run.request_cancel(run.intent(**_stopping))
        run.add(call)
        return call

    # Looking up

    def live(self) -> list[BaseRun]:
        """The runs that have not ended, oldest first."""
        return list(self._live.values())

    def get(self, name: str) -> BaseRun:
        """The run of that name, live or ended lately. Raises `UnknownRunError`."""
        run = self._live.get(name) or self._ended.get(name)
        if run is None:
            known = ", ".join(repr(each) for each in list(self._live)[:5]) or "none"
            raise UnknownRunError(
                f"No run named {name!r} is known to this client. A run is known while its scope is open, and for the "
                f"last {KEPT} after that, to the client that opened it and its copies. Open here: {known}.",
                run=name,
            )
        return run

    def find(self, target: Any) -> BaseRun:
        """The run that `target` stands for: a name, a run, or an SDK stream or response of ours."""
        if isinstance(target, BaseRun):
            return target
        if isinstance(target, str):
            return self.get(checked_name(target))
        call = call_of(target)
        if call is None:
            raise UnknownRunError(
                f"There is nothing to cancel in {type(target).__name__!r}: give the name of a run, a run, or a stream "
                "that came from this client."
            )
        run = cast(BaseRun, call.run)
        return run if run.anonymous else self._alone(run, call)

    def _alone(self, run: BaseRun, call: Call) -> BaseRun:
        """A run of one call of a scope, so that it can be cancelled without its siblings."""
        if call.canceller is not None:
            return call.canceller.run  # type: ignore[no-any-return]
        one = self._run_class(self, f"{run.name}/call-{call.id}", policy=run.policy)
        one.ended = call.left.is_set()
        if not one.ended:
            one.calls[call.id] = call
        return run.alone.setdefault(call.id, one)

    def policy_for(self, run: Optional[BaseRun], explicit: Optional[CancelPolicy]) -> CancelPolicy:
        """The nearest policy: of this cancel, the run, the runs around it, the client, the settings."""
        if explicit is not None:
            return checked_policy(explicit)
        while run is not None:
            if run.policy is not None:
                return run.policy
            run = run.parent
        return self.policy or policy_in_force()

    # What becomes of runs

    def retire(self, run: BaseRun) -> None:
        """The run has ended: it is remembered for a while."""
        if self._live.get(run.name) is run:
            del self._live[run.name]
            if not run.anonymous or run.cancelled:
                self._ended.pop(run.name, None)  # so that it goes to the end of the queue
                self._ended[run.name] = run
                with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # somebody else made room
                    while len(self._ended) > KEPT:
                        del self._ended[next(iter(self._ended))]

    def settled(self, run: BaseRun, receipt: CancelReceipt) -> None:
        """A cancel has an outcome: tell whoever watches."""
        for watcher in self._watchers:
            watcher(run, receipt)

    def cancel_all_soon(self, **facts: Any) -> list[Cancelling]:
        """Close every fence and start every abort. Never blocks."""
        live = self.live()
        tops = [run for run in live if run.parent is None or run.parent.ended or run.parent.registry is not self]
        return [run.request_cancel(run.intent(**facts)) for run in tops]


_stopping: Optional[dict[str, Any]] = None


def stop_new_runs(**facts: Any) -> None:
    """From now on every new run of the process is born cancelled, with these facts of an intent. For its end."""
    global _stopping
    _stopping = facts


def checked_name(name: Any) -> str:
    """A run's name, or `UsageError`."""
    if not isinstance(name, str):
        raise UsageError(f"A run's name is a string, and this is {name!r}. Give a name such as 'chat-42'.")
    if not name.strip():
        raise UsageError("A run's name can't be empty. Give a name such as 'chat-42'.")
    return name


def checked_policy(policy: Any) -> CancelPolicy:
    """A policy, or `UsageError`."""
    if not isinstance(policy, CancelPolicy):
        raise UsageError(f"policy is {policy!r}: give a CancelPolicy, such as CancelPolicy(timeout=5).")
    return policy


def checked_seconds(what: str, seconds: Any) -> float:
    """A positive, finite number of seconds, or `UsageError`."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise UsageError(f"{what} is {seconds!r}: give seconds as a number, such as 60 or 0.5.")
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{what} is {seconds!r}: give a finite number of seconds above 0.")
    return float(seconds)
