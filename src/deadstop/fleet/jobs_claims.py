"""A job of another process as it is seen from here, and the claim on one. Each goes by its own clock."""

from __future__ import annotations

import asyncio
from typing import Callable, Optional

from deadstop.fleet.job import Job
from deadstop.fleet.stream import Entry
from deadstop.ledger.base import Claim
from deadstop.ledger.leases import LEASE, MARGIN, elapsed

__all__ = ["JobClaim", "Seen"]

GONE = 4.0
"""How long (seconds) the owner of a job has to be missing on the bus. Longer than a connection takes to be made again:
a restart of the server takes everybody off it."""

SILENT = 20.0
"""How long (seconds), if the server has not noticed that his connection is gone, and he only says nothing."""

PAUSE, LONGEST = 5.0, 300.0
"""How long (seconds) a job rests that came to nothing: doubled each time, at most."""


class Seen:
    """A job since it was seen first with that number, and since when its owner is missing."""

    def __init__(self, entry: Entry, job: Job) -> None:
        self.number = entry.number
        self.job = job
        self.since = elapsed()
        self._gone: Optional[float] = None
        self._heard = self.since

    def told(self, there: Optional[bool]) -> None:
        """Whether its owner is on the bus. None: it can't be told."""
        now = elapsed()
        if there:
            self._heard = now
        self._gone = None if there is not False else self._gone or now

    @property
    def free(self) -> bool:
        """Whether it may be claimed."""
        now = elapsed()
        if self.job.worker:
            return now >= self.since + LEASE
        if self.job.tries:
            return now >= self.since + min(PAUSE * 2.0 ** (self.job.tries - 1), LONGEST)
        return (self._gone is not None and now >= self._gone + GONE) or now >= self._heard + SILENT

    @property
    def soon(self) -> bool:
        """Whether somebody works on it in its owner's place, or it may be free before long."""
        return self.free or self._gone is not None or bool(self.job.worker)


class JobClaim(Claim):
    """The right to finish a job, on top of the ledger's claim. It stands until `until`, and is put off all the time."""

    def __init__(self, job: Job, number: int, until: float, end: Callable[[JobClaim, bool], None]) -> None:
        self.run = job.intent.run
        self.job = job
        self.number = number
        self.until = until
        self.under: Optional[Claim] = None
        self.turn = asyncio.Lock()  # one replacement at a time
        self._end = end

    @property
    def held(self) -> bool:
        return self.left > 0.0

    @property
    def left(self) -> float:
        mine = max(self.until - MARGIN - elapsed(), 0.0)
        return mine if self.under is None else min(mine, self.under.left)

    def release(self) -> None:
        self._end(self, self.settled)
        if self.under is not None:
            self.under.release()
