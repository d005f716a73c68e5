"""Which runs a run still answers for. What was begun in it stays its own until nothing of it can be cancelled any more,
though the scope that it was begun in was left.

Nothing here takes a lock. Who leaves a run first says so, then looks at what it holds; who begins something in it first
puts it there, then looks whether it was left. One of the two always sees the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Optional

from deadstop.runs.tally import part

if TYPE_CHECKING:
    from deadstop.calls.call import Call
    from deadstop.runs.run import BaseRun

__all__ = ["at_work", "goes_on", "hand_up", "leave_above", "outlast", "stopper", "tops", "within_open"]


def at_work(run: BaseRun) -> bool:
    """Whether something in the run may go on: a call, an open scope, a remote run that is not known to be over."""
    if run.calls or (not run.ended if run.remote is None else not run.remote.over):
        return True
    return bool(run.children) and any(at_work(child) for child in list(run.children.values()))


def goes_on(run: BaseRun) -> bool:
    """Whether a run that was left is to stay open on record: the remote runs of a scope are known there, and what goes
    on in it besides is not."""
    if run.remote is not None:
        return not run.remote.over
    return bool(run.calls) or any(child.remote is None and at_work(child) for child in list(run.children.values()))


def leave_above(run: BaseRun) -> None:
    """Something in `run` came to its end. A scope that was left and holds nothing more is none of its parent's children
    any more, and so on upwards: a parent may be open for long, and have thousands of them."""
    above: Optional[BaseRun] = run
    while above is not None and above.ended and (above.parent is not None or above.kept is not None):
        if at_work(above):
            return
        if above.remote is None:  # what came of a remote run stays on the record of its scope (I14)
            part(above)
            if above is not run and above.registry.keeper is not None:
                above.registry.keeper.ended(above)
        above = above.parent


def outlast(run: BaseRun) -> None:
    """Calls of a scope that was left are under way: it is to be found until they are over."""
    outlasting = run.registry.outlasting
    outlasting[id(run)] = run
    if not run.calls:  # meanwhile
        outlasting.pop(id(run), None)


def hand_up(run: BaseRun, call: Call) -> None:
    """A call was begun in a scope that somebody left in that moment: it belongs to the one around it."""
    above = run.nearest()
    if above is None:
        outlast(run)
    else:
        run.calls.pop(call.id, None)
        call.run = above
        above.add(call)


def stopper(run: BaseRun, call: Call) -> Optional[BaseRun]:
    """Whose cancel has it that nothing more of `call` is delivered, which `run` does not know any more; None: nobody's.

    Be it one that came too late for all else: whoever asks for a cancel is promised that nothing passes from then on.
    """
    above: Optional[BaseRun] = run.alone.get(call.id)
    if above is not None and "asked" in above.once:
        return above
    above = run
    while above is not None and not above.cancelled and "asked" not in above.once:
        above = above.parent
    return above


def within_open(run: BaseRun) -> bool:
    """Whether a scope around the run is open still."""
    above = run.parent
    while above is not None and above.ended:
        above = above.parent
    return above is not None


def tops(runs: Iterable[BaseRun]) -> list[BaseRun]:
    """Those of the runs that are not cancelled with another one of them."""
    runs = list(runs)
    among = {id(run) for run in runs}
    return [run for run in runs if not _below(run, among)]


def _below(run: BaseRun, among: set[int]) -> bool:
    above = run.parent
    while above is not None and (not above.ended or id(run) in above.children):
        if id(above) in among:
            return True
        run, above = above, above.parent
    return False
