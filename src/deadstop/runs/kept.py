"""What the ledger has of a run, and of its cancel."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls.completion import Completion
from deadstop.core.model import Cause, Intent, Level
from deadstop.errors import CancelRefusedError
from deadstop.ledger.facts import Orphans, RemoteRun
from deadstop.runs.keeping import PATIENCE

if TYPE_CHECKING:
    from deadstop.core.model import CancelReceipt
    from deadstop.ledger.base import Claim
    from deadstop.runs.remote import Remote
    from deadstop.runs.run import BaseRun

__all__ = ["Kept", "Recording", "asked_for", "listed", "monotonic", "recorded", "unix"]

log = logging.getLogger("deadstop")

CLOSE = 0.0001
"""Within what time (seconds) two clocks are read."""


def unix(moment: float) -> float:
    """A moment on the monotonic clock in unix seconds."""
    return moment + _apart() if math.isfinite(moment) else moment


def monotonic(moment: float) -> float:
    """The reverse."""
    return moment - _apart() if math.isfinite(moment) else moment


def _apart() -> float:
    """How far (seconds) the two clocks are apart.

    A thread may be held up between the two: then it looks again, or a run would be taken to have been opened before a
    cancel that came first.
    """
    best, closest = 0.0, math.inf
    for _ in range(5):
        before, now, after = time.monotonic(), time.time(), time.monotonic()
        if after - before < closest:
            best, closest = now - (before + after) / 2, after - before
        if closest < CLOSE:
            break
    return best


def asked_for(run: str, message: dict[str, Any]) -> Intent:
    """The intent that another process signals, for the run of that name here."""
    return Intent(
        run,
        cause=Cause(message.get("cause", Cause.USER)),
        reason=message.get("reason"),
        actor=message.get("actor"),
        level=Level(message.get("level", Level.CONFIRMED)),
        request_id=message.get("request"),
    )


class Recording:
    """The durable record of one cancel: `done` when it is kept, or was waited for in vain; `note` says why.

    Until then nothing is sent. `goes_out()` or `refuse()`, whichever comes first, says what becomes of it.
    """

    __slots__ = ("_fate", "done", "error", "kept")

    def __init__(self) -> None:
        self.done = Completion()
        self.kept = False
        self.error: Optional[str] = None
        self._fate: dict[str, Optional[CancelRefusedError]] = {}  # a dict, because its setdefault() is atomic

    def goes_out(self) -> Optional[CancelRefusedError]:
        """It is to be sent now. The error, if it was refused before."""
        return self._fate.setdefault("it", None)

    def refuse(self, error: CancelRefusedError) -> bool:
        """Whether it is refused; False if it has gone out."""
        return self._fate.setdefault("it", error) is error

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

    __slots__ = ("born", "claim", "epoch", "job", "lent", "listening", "name", "named", "numbers", "orphan_grace",
                 "orphans", "over", "part", "receipt", "recordings", "replies", "told")  # fmt: skip

    def __init__(self, name: str, *, named: bool = False) -> None:
        self.name = name
        self.named = named
        self.listening = False  # to cancels from the bus
        self.lent = False  # it is the parent's of a forked child, which has a copy and answers for nothing of it
        self.epoch = 0  # until it is recorded
        self.told = False  # it is on record though nobody has cancelled it: others have to know of it
        self.orphans = Orphans.LEAVE
        self.orphan_grace = 0.0
        self.born = False  # its remote run was given to be recorded
        self.over = False  # and its end
        self.part = False  # of what its cancel is about: another server's share is another client's
        self.numbers: dict[int, int] = {}  # of attempts: ours, and those over all processes
        self.recordings: dict[str, Recording] = {}  # a dict, because its setdefault() is atomic
        self.replies: list[tuple[str, str]] = []  # whom to tell of the outcome
        self.receipt: Optional[CancelReceipt] = None
        self.claim: Optional[Claim] = None
        self.job: Optional[str] = None  # what other hosts know its cancel by

    def is_life(self, name: str, epoch: int) -> bool:
        """Whether other processes mean this by that name and epoch."""
        return self.named and (self.name, self.epoch) == (name, epoch)

    @property
    def recording(self) -> Optional[Recording]:
        return self.recordings.get("it")


def recorded(remote: Remote, kept: Kept, by: str) -> RemoteRun:
    """A remote run whose id is known, as it is put on record under the run that is `kept`."""
    kind, ids = remote.ref  # type: ignore[misc]
    made = unix(remote.known_at) if remote.known_at is not None else time.time()
    return RemoteRun(
        kind, ids, remote.channel.base_url, kept.name, kept.epoch, by, made, remote.word, remote.status.is_over
    )


def listed(runs: Iterable[BaseRun]) -> list[list[Any]]:
    """What other processes are told of runs: the name, its epoch, the state, the age (seconds), the calls, `named`."""
    now, found = time.monotonic(), []
    for run in runs:
        kept: Optional[Kept] = run.kept
        state = "cancelling" if run.cancelled else "open"
        name = run.name if kept is None else kept.name
        epoch, named = (0, False) if kept is None else (kept.epoch, kept.named)
        found.append([name, epoch, state, round(now - run.opened, 3), len(run.calls), named])
    return found
