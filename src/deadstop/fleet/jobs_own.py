"""The jobs that a process puts into the stream itself: its own cancels, until they are settled."""

from __future__ import annotations

import asyncio
from typing import Optional

from deadstop.fleet.job import Job
from deadstop.fleet.stream import TROUBLE, Absent, Stream

__all__ = ["OwnJobs"]

AGAIN, RARELY = 2.0, 30.0
"""How long (seconds) until what went wrong is tried again: as a rule, and where there is no JetStream."""


class _Mine:
    """`job` is None once it is to be taken out; `number` is 0 until it is in."""

    def __init__(self) -> None:
        self.job: Optional[Job] = None
        self.subject = ""
        self.number = 0


class OwnJobs:
    """Of the bus's thread alone. What could not be said is said with the next connection."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._mine: dict[str, _Mine] = {}
        self._due: set[str] = set()
        self._wake: Optional[asyncio.Event] = None
        self._said: Optional[asyncio.Event] = None

    def __contains__(self, key: object) -> bool:
        return key in self._mine

    async def said(self) -> None:
        """Until the stream has it all."""
        if self._said is not None:
            await self._said.wait()

    def keep(self, job: Job) -> None:
        """This is to be in the stream."""
        mine = self._mine.setdefault(job.key, _Mine())
        if mine.job != job:
            mine.job = job
            self._mark(job.key)

    def drop(self, key: str) -> None:
        """That is not, any more."""
        mine = self._mine.get(key)
        if mine is not None:
            mine.job = None
            if mine.subject:
                self._mark(key)
            else:  # nothing was said of it
                del self._mine[key]

    def _mark(self, key: str) -> None:
        self._due.add(key)
        if self._wake is not None and self._said is not None:
            self._wake.set()
            self._said.clear()

    async def serve(self, stream: Stream) -> None:
        """Over one connection."""
        wake, said = self._wake, self._said = asyncio.Event(), asyncio.Event()
        self._due = set(self._mine)
        wake.set()
        while True:
            await wake.wait()
            wake.clear()
            due, self._due = self._due, set()
            wrong = await asyncio.gather(*(self._put(key, stream) for key in due))
            troubles = [each for each in wrong if each is not None]
            self._due |= {key for key, each in zip(due, wrong) if each is not None}
            if not self._due:
                said.set()
            if troubles:
                pause = RARELY if all(isinstance(each, Absent) for each in troubles) else AGAIN
                asyncio.get_running_loop().call_later(pause, wake.set)

    async def _put(self, key: str, stream: Stream) -> Optional[BaseException]:
        """See to it that the stream has it, or has it no more. What went wrong."""
        mine = self._mine.get(key)
        if mine is None:
            return None
        try:
            if mine.job is not None:
                await self._write(mine, mine.job, stream)
            elif mine.subject:
                await stream.purge(mine.subject)
        except TROUBLE as error:
            if mine.job is not None or mine.number or not isinstance(error, Absent):
                return error
        if mine.job is None and key not in self._due:
            self._mine.pop(key, None)
        return None

    async def _write(self, mine: _Mine, job: Job, stream: Stream) -> None:
        mine.subject = stream.subject(job.server, job.key)
        number = await stream.write(mine.subject, job.dump(), mine.number)
        if number is None:  # what is there is not what we thought; if it is nobody else's by now, it is replaced
            entry = await stream.last(mine.subject)
            there = None if entry is None else Job.load(entry.data)
            if there is None or (there.with_owner and there.owner.owner == self._owner):
                after = 0 if entry is None else entry.number
                number = await stream.write(mine.subject, job.dump(), after)
        mine.number = number or 0
