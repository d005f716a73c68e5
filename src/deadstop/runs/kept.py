"""What the ledger has of a run, and of its cancel."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Optional

from deadstop.calls.completion import Completion
from deadstop.ledger.facts import Orphans
from deadstop.runs.keeping import PATIENCE

if TYPE_CHECKING:
    from deadstop.ledger.base import Claim

__all__ = ["Kept", "Recording", "monotonic", "unix"]

log = logging.getLogger("deadstop")


def unix(moment: float) -> float:
    """A moment on the monotonic clock in unix seconds."""
    return time.time() + moment - time.monotonic() if math.isfinite(moment) else moment


def monotonic(moment: float) -> float:
    """The reverse."""
    return time.monotonic() + moment - time.time() if math.isfinite(moment) else moment


class Recording:
    """The durable record of one cancel: `done` when it is kept, or was waited for in vain; `note` says why."""

    __slots__ = ("done", "error", "kept")

    def __init__(self) -> None:
        self.done = Completion()
        self.kept = False
        self.error: Optional[str] = None

    @property
    def note(self) -> Optional[str]:
        return None if self.kept or self.error is None else f"This cancel is not on record: {self.error}"

    def late(self) -> None:
        if not self.done.is_set():
            self.error = f"the ledger did not answer within {PATIENCE:g} s."
            log.warning("A cancel goes on without its record: %s", self.error)
            self.done.set()


class Kept:
    """What the ledger has of one run. `named`: other processes may cancel it by its name."""

    __slots__ = ("born", "claim", "epoch", "name", "named", "numbers", "orphan_grace", "orphans",
                 "over", "recordings", "replies", "settled")  # fmt: skip

    def __init__(self, name: str, *, named: bool = False) -> None:
        self.name = name
        self.named = named
        self.epoch = 0  # until it is recorded
        self.orphans = Orphans.LEAVE
        self.orphan_grace = 0.0
        self.born = False  # its remote run was given to be recorded
        self.over = False  # and its end
        self.numbers: dict[int, int] = {}  # of attempts: ours, and those over all processes
        self.recordings: dict[str, Recording] = {}  # a dict, because its setdefault() is atomic
        self.replies: list[tuple[str, str]] = []  # whom to tell of the outcome
        self.settled = False
        self.claim: Optional[Claim] = None

    @property
    def recording(self) -> Optional[Recording]:
        return self.recordings.get("it")
