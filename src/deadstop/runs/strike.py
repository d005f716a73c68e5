"""What can't wait when a run is cancelled: its fence is closed, and what its calls are blocked on is interrupted.

A process that waits for a stream has run nothing of this for seconds. So each step to the sockets is taken cold, and a
function more is microseconds: there are few, and all that is not on the way to the sockets comes after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls.call import Call
from deadstop.runs import settings
from deadstop.runs.asking import ask_again
from deadstop.runs.draining import arrange
from deadstop.runs.waiting import Wanted, Wish

if TYPE_CHECKING:
    from deadstop.calls.loops import Loop
    from deadstop.runs.cancelling import Asked, Cancelling
    from deadstop.runs.run import BaseRun

__all__ = ["hit", "strike"]


def hit(run: BaseRun, wanted: Wanted, asked: Wish, here: Optional[Loop] = None) -> Sequence[Call]:
    """Close the fence and interrupt the calls, where there is nothing to be seen to before. Those calls, or none.

    `strike()` is next, always: it does the rest, and what could not be done here.
    """
    if asked.policy or run.policy or run.parent or run.registry.policy or run.children or run.remote or run.callbacks:
        return ()
    calls = list(run.calls.values())
    # With no policy and no setting for it nothing is drained.
    if not calls or len(settings.SETTINGS) != settings.others:
        return ()
    if run.once.setdefault("asked", (wanted, calls))[0] is not wanted:
        return ()
    run.cancelled = True
    if run.children:  # one was opened meanwhile
        return ()
    calls += [call for call in list(run.calls.values()) if call not in calls]  # and so may calls have begun
    for call in calls:
        call.canceller = call.canceller or run
        call.cancelled = True
    for call in calls:
        call.interrupt(here)
    return calls


def strike(
    run: BaseRun, intent: Asked, asked: Optional[Wish] = None, here: Optional[Loop] = None, struck: Sequence[Call] = ()
) -> Cancelling:
    """Close the fences of the run and of all below it, and interrupt their calls. `follow()` the result, always.

    What was interrupted needs the interpreter to come free, so a thread that means to wait does nothing else before it
    does. It does not even build the intent: it gives what makes it. `struck`: what was hit already.
    """
    try:
        cancelling = _close_fence(run, intent, asked, struck)
        cancelling.interrupt(here, struck)
        if run.callbacks or run.children:
            _call_back_all(run)
    except BaseException:  # a callback, or a signal handler, means to leave: there is no result to follow
        # From the start, so that no fence is left half closed. Should that be broken off, too, nothing is settled, and
        # whoever cancels next does it.
        cancelling = _close_fence(run, intent, asked, struck, again=True)
        cancelling.interrupt(here)
        try:
            _call_back_all(run)
        finally:
            cancelling.follow(asked and asked.policy)
        raise
    return cancelling


def _close_fence(
    run: BaseRun, intent: Asked, asked: Optional[Wish], struck: Sequence[Call] = (), again: bool = False
) -> Cancelling:
    first, _ = run.once.setdefault("asked", (intent, ()))
    cancelling: Any = run.cancelling
    if first is not intent and not again:
        cancelling.join(intent)
    if not cancelling.finished_before:
        # Whatever may have a policy: without any, and no setting for it, nothing is drained.
        may = (asked and asked.policy) or run.policy or run.parent or run.registry.policy
        if may is not None or len(settings.SETTINGS) != settings.others:
            arrange(run, list(run.calls.values()), asked)
        # Also by whoever comes second: the first may have been held up just here.
        run.cancelled = True
        # Flags first, all the way down: nothing may pass while the interruptions are on their way.
        for call in (*struck, *list(run.calls.values())):
            call.canceller = call.canceller or run
            cancelling.calls.setdefault(call.id, call)
            call.cancelled = True
        for child in list(run.children.values()) if run.children else ():
            missed = child.struck_by is run and child.cancelling not in cancelling._children
            if missed or not child.cancelled:
                child.struck_by, before = run, child.cancelled
                below = child.intent_of(cancelling.intent)
                cancelling.add_child(_close_fence(child, below, asked, again=before))
            elif child.remote is not None:
                theirs: Any = child.cancelling
                if first is intent and not again:
                    ask_again(theirs, child.intent_of(cancelling.intent))
                cancelling.add_child(theirs)
    return cancelling  # type: ignore[no-any-return]


def _call_back_all(run: BaseRun) -> None:
    for child in list(run.children.values()):
        _call_back_all(child)
    if run.cancelled:
        run.call_back()
