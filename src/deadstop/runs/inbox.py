"""How what comes in is worked off: one at a time, by whoever brings it, without a lock that anybody would wait for.

Ctrl-C may come between any two steps of whoever is at work, even within what hands over. So the work is done by a token
that says who does it, and is anybody's once that thread is not at it any more. What was being worked off is still
there then: work has to be of a kind that may be begun again.
"""

from __future__ import annotations

import threading
from collections.abc import Sized
from typing import Any, Callable

from deadstop.calls.loops import stands_in

__all__ = ["make_way", "work_off"]

WORKER = "worker"


def work_off(once: dict[str, Any], inbox: Sized, work: Callable[[], None]) -> None:
    """Call `work()`, which empties the inbox, unless somebody is at it: they will see what is there. Never blocks.

    `once` has who is at work, for as long as they are.
    """
    while True:
        mine, whose = [threading.get_ident()], None
        try:
            whose = once.setdefault(WORKER, mine)
            if whose is not mine:
                return
            work()
        finally:
            if whose is mine or (whose is None and once.get(WORKER) is mine):  # Ctrl-C comes where one calls
                del once[WORKER]
        if not inbox:
            return


def make_way(once: dict[str, Any]) -> None:
    """If who was at work was broken off at the very end, forget about that. Others ask first who come later anyway."""
    whose = once.get(WORKER)
    if whose is not None and not stands_in(whose[0], work_off):
        once.pop(WORKER, None)
