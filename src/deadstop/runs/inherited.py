"""What a forked child has of its parent's runs: nothing but the scopes that it stands in, and those as runs of its own.

What was begun before the fork is the parent's, whose threads are at work on it: the child has copies, by which it could
cancel nothing, and would take that for a cancel (I2), or cancel on the server what its parent waits for. So the copies
are let go of, and their names are for others to know. Only the code that the fork returns to goes on in the child, and
what it begins in a scope around it belongs to the child's own share of that scope, which has a name of its own.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls.forks import in_each_child
from deadstop.core.model import Cause
from deadstop.errors import UnknownRunError
from deadstop.runs.reconciler import Reconciler
from deadstop.runs.run import BaseRun, current_run

if TYPE_CHECKING:
    from deadstop.runs.registry import Registry

__all__ = ["let_go_at_fork"]

SHOWN = 200
"""How much of a scope's name is in that of the child's share: the ledger has no room for ever longer ones."""


class _Parents:
    """A copy of a run that is the parent's. Nothing that is done to it has any effect."""

    __slots__ = ()
    name: str

    def refuse(self, actor: Optional[str], reason: Optional[str] = None) -> None:
        raise UnknownRunError(
            f"Run {self.name!r} was begun by the process that this one was forked from, and is held there. Cancel it "
            "there; or, with a ledger that both use, by its name, or with `deadstop cancel`.",
            run=self.name,
        )

    def cancel_soon(
        self, *, reason: Optional[str] = None, actor: Optional[str] = None, cause: Cause = Cause.USER
    ) -> None:
        """Nothing, and nothing raised: it is called by signal handlers, which a child has from its parent."""


@functools.cache
def _parents(kind: type[BaseRun]) -> Any:
    return type(f"Parents{kind.__name__}", (_Parents, kind), {"__slots__": ()})


def let_go_at_fork(registries: Iterable[Registry]) -> None:
    """From now on a forked child knows no run of its parent's.

    No signal's handler runs in it before: a worker may be terminated while it is being made. None is lost by that.
    """
    in_each_child(signal.valid_signals(), lambda: _let_go(list(registries)))


def _let_go(registries: list[Registry]) -> None:
    around = _around()
    for registry in registries:
        homes: list[dict[Any, BaseRun]] = [registry._live, registry._ended, registry._remotes]
        homes.append(registry.outlasting)
        known = [run for home in homes for run in home.values()]
        for run in [*known, *(each.parent for each in known if each.parent is not None)]:
            if run not in around:
                run.ended = True  # who finds it in another context begins nothing in it
                _leave(run, run)
        for home in homes:
            home.clear()
        registry.reconciler = Reconciler()  # its deadlines are gone as well
    for run in reversed(around):  # the outermost first, as they are listed
        if run.ended or run.cancelled:
            _leave(run, _copy(run))  # not ended here, if it was not: what is begun under a cancel is born cancelled
        else:
            _share(run, around)


def _around() -> list[BaseRun]:
    """The scopes that the code which forked stands in, the innermost first."""
    found: list[BaseRun] = []
    ahead = [current_run.get()]
    while ahead:
        run = ahead.pop(0)
        if run is not None and run not in found:
            found.append(run)
            ahead += [run.parent, run._outer]
    return found


def _copy(run: BaseRun) -> BaseRun:
    """One that stands for the parent's run where the child has use for its own copy."""
    copy = type(run)(run.registry, run.name)
    copy.ended = True
    _leave(copy, copy)
    return copy


def _leave(run: BaseRun, copy: BaseRun) -> None:
    """`run` is the parent's, and its calls are those of `copy`."""
    kind: Any = type(run)
    if not issubclass(kind, _Parents):
        run.__class__ = _parents(kind)
    run.cancellers = frozenset()  # nobody may: whoever cancels it asks `refuse`
    if run is copy:
        run.anonymous = True  # whoever cancels one call of it means it
    if run.kept is not None:
        run.kept.lent = True
    _empty(run, copy)


def _empty(run: BaseRun, copy: BaseRun) -> None:
    for call in run.calls.values():
        call.run = copy
    run.calls, run.children, run.alone, run.callbacks = {}, {}, {}, {}


def _share(run: BaseRun, around: list[BaseRun]) -> None:
    """The child's share of a scope is a run of its own, in which nothing has begun. It has no deadline."""
    children = {key: each for key, each in run.children.items() if each in around}
    _empty(run, _copy(run))
    registry, kept, of = run.registry, run.kept, run.name
    run.name = f"{of[:SHOWN]}/fork-{os.getpid()}"
    while run.name in registry._live:
        run.name += "+"
    run.children, run.once, run.chunks, run.characters, run.opened = children, {}, 0, 0, time.monotonic()
    run.kept = None
    registry._live[run.name] = run
    if registry.keeper is not None:
        registry.keeper.share(run, of, kept)
