"""Who finishes a cancel whose process is gone, where hosts have a ledger each: a claim on its job on the bus.

Whoever cancels remote runs puts a job into the stream, and takes it out once it is settled. The others look at what is
there. A job is left alone while its owner is on the bus; it is claimed by replacing it with one that bears a token, and
the claim is put off by replacing it again and again. One that has stood unchanged for the length of a claim is free.
Each goes by its own clock: the worker counts from before he asked, so he stops before anybody else may begin, and who
wants to take over counts from after he saw. The server keeps no time; it sees to it that of two replacements one fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import uuid
import weakref
from collections.abc import Awaitable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from deadstop.fleet.job import Job
from deadstop.fleet.jobs_claims import JobClaim, Seen
from deadstop.fleet.jobs_own import RARELY, OwnJobs
from deadstop.fleet.stream import TROUBLE, Absent, Ask, Entry, Stream
from deadstop.ledger.base import Claim
from deadstop.ledger.leases import LEASE, RENEW, elapsed

if TYPE_CHECKING:
    from deadstop.fleet.bus import Bus

__all__ = ["Jobs", "Worker"]

log = logging.getLogger("deadstop")

LOOK, IDLE = 1.0, 2.0
"""How often (seconds) a process looks: while there are jobs, and without any."""

PATIENCE = 2.0
"""How long (seconds) one waits for the bus, or for the stream's answer."""

MOST = 1000
"""How many jobs of one server are looked at, oldest first."""

Work = Callable[[Stream], Coroutine[Any, Any, Any]]


class Worker(Protocol):
    """Who finishes cancels of one server."""

    server: str

    def offered(self, jobs: list[Job]) -> None:
        """These jobs are free. May block, and use the ledger."""


class _Taken(Exception):
    """Somebody else has it, or may have it."""


class Jobs:
    """Those of one member. Its bus serves them, in the bus's thread, for as long as there is a connection."""

    def __init__(self, offer: Callable[[Callable[[], None], Callable[..., None]], None]) -> None:
        self.workers: weakref.WeakSet[Worker] = weakref.WeakSet()
        self.up = False
        """Whether the bus has JetStream, as far as is known."""
        self.busy = False
        """Whether there was something to take over, now or soon, when it was last looked at."""
        self._offer = offer
        self.bus: Optional[Bus] = None
        self._looked = threading.Event()  # with this connection
        self._said = False
        # Of the bus's thread alone:
        self._held: dict[str, JobClaim] = {}

    def begin(self, owner: str) -> None:
        """The process is there. Perhaps a forked one, which has nothing of what was its parent's."""
        for each in list(self._held.values()):
            each.until = 0.0
        self.bus, self.up, self.busy = None, False, False
        self._looked = threading.Event()
        self._offering = False
        self._own = OwnJobs(owner)
        self._owner = owner
        self._held, self._seen = {}, dict[str, Seen]()
        self._stream: Optional[Stream] = None
        self._again: Optional[asyncio.Event] = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # From any thread.

    def ready(self) -> bool:
        """Whether the bus has JetStream, and what it keeps has been looked at. Waits for the first answers, blocks."""
        if self.bus is None or not self.bus.ready(PATIENCE, patient=False):
            return False
        return self._looked.wait(PATIENCE) and self.up

    def work(self, worker: Worker) -> None:
        """Have that one told what is free. Never blocks."""
        self.workers.add(worker)
        self._looked.clear()
        self._soon(self._look_again)

    def publish(self, job: Job) -> None:
        """Have others finish this, should this process die. Again: with what has become known. Never blocks."""
        self._soon(lambda: self._own.keep(job))

    def withdraw(self, key: str) -> None:
        """It is settled. Never blocks."""
        self._soon(lambda: self._own.drop(key))

    def claim(self, job: Job, under: Claim, *, dead: bool = False) -> Optional[Claim]:
        """The right to finish it, over all hosts, on top of what the ledger gave, which is given back otherwise.

        None: somebody else has it, or may have it. Where there is no JetStream the ledger's claim is all there is.
        `dead`: its owner has ended for sure, so he is not waited for. Blocks.
        """
        if not self.ready():
            return under
        try:
            claim: JobClaim = self._do(partial(self._take, job, dead), PATIENCE)
        except (_Taken, TooLate, *TROUBLE) as error:
            under.release()
            log.debug("Cancel of %r is not claimed here: %r", job.intent.run, error)
            return None
        except BaseException:
            under.release()
            raise
        claim.under = under
        return claim

    def flush(self, timeout: float) -> None:
        """Wait until the stream has what was said so far, for at most `timeout` seconds."""
        if self.up:
            with contextlib.suppress(_Taken, TooLate, *TROUBLE):
                self._do(self._flushed, timeout)

    def _soon(self, function: Callable[..., object], *arguments: object) -> bool:
        return self.bus is not None and self.bus.soon(function, *arguments)

    def _do(self, work: Work, timeout: float) -> Any:
        """Have that done in the loop, and wait for it."""
        found: Future[Any] = Future()
        if not self._soon(self._start, work, found):
            raise Absent("the bus is closed")
        try:
            return found.result(timeout)
        except TooLate:
            if found.cancel():
                raise
            return found.result()

    # In the bus's thread.

    def _start(self, work: Work, found: Optional[Future[Any]] = None) -> None:
        if self._stream is None:
            if found is not None and found.set_running_or_notify_cancel():
                found.set_exception(Absent("the bus is down"))
            return
        task = asyncio.ensure_future(work(self._stream))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, found))

    def _done(self, found: Optional[Future[Any]], task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = Absent("the bus is down") if task.cancelled() else task.exception()
        if found is not None and found.set_running_or_notify_cancel():
            if error is None:
                found.set_result(task.result())
            else:
                found.set_exception(error)
        elif error is None and isinstance(task.result(), JobClaim):
            self._ended(task.result(), False)  # nobody waits for it any more
        elif error is not None and not isinstance(error, (_Taken, *TROUBLE)):
            log.error("A job on the bus failed unexpectedly.", exc_info=error)

    async def serve(self, ask: Ask, there: Callable[[str], Awaitable[Optional[bool]]], space: str) -> None:
        """Over one connection, until it ends. What was seen before does not count: who was missed was perhaps us."""
        stream = self._stream = Stream(ask, space)
        self._seen = {}
        parts = [
            asyncio.ensure_future(each)
            for each in (self._looking(stream, there), self._renewing(stream), self._own.serve(stream))
        ]
        try:
            await asyncio.gather(*parts)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("The jobs on the bus ended unexpectedly.")
        finally:
            self._stream, self.up, self.busy = None, False, False
            self._looked.clear()
            for each in (*parts, *self._tasks):
                each.cancel()

    # What others left

    async def _looking(self, stream: Stream, there: Callable[[str], Awaitable[Optional[bool]]]) -> None:
        again = self._again = asyncio.Event()
        while True:
            again.clear()
            pause = IDLE
            try:
                await self._look(stream, there)
                self.up, self._said = True, False
                pause = LOOK if self._seen else IDLE
            except (RuntimeError, *TROUBLE) as error:  # a worker may be added just while they are gone through
                self.busy = False
                if isinstance(error, Absent):
                    self.up, pause = False, RARELY
                if not self._said:
                    self._said = True
                    log.debug("The bus keeps no jobs for other hosts now: %s", str(error) or type(error).__name__)
            if not again.is_set():
                self._looked.set()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(again.wait(), pause * random.uniform(0.8, 1.0))  # not all in one moment

    def _look_again(self) -> None:
        if self._again is not None:
            self._looked.clear()
            self._again.set()

    async def _look(self, stream: Stream, there: Callable[[str], Awaitable[Optional[bool]]]) -> None:
        found: dict[str, Seen] = {}
        for server in {each.server for each in list(self.workers)} or {"none"}:
            number = 1
            for _ in range(MOST):
                entry = await stream.read(number, stream.subject(server))
                if entry is None:
                    break
                number = entry.number + 1
                seen = self._note(entry)
                if seen is not None:
                    found[seen.job.key] = seen
        self._seen = found
        waiting = list({each.job.owner.owner for each in found.values() if each.job.with_owner} - {self._owner})
        alive = dict(zip(waiting, await asyncio.gather(*map(there, waiting))))
        for each in found.values():
            each.told(alive.get(each.job.owner.owner, True))
        others = [each for key, each in found.items() if key not in self._held and key not in self._own]
        self.busy = any(each.soon for each in others)
        free = [each.job for each in others if each.free]
        random.shuffle(free)
        if (free or self._held) and not self._offering:
            self._offering = True
            self._offer(partial(self._offered, free), self._offered_all)

    def _note(self, entry: Entry) -> Optional[Seen]:
        key = entry.subject.rpartition(".")[2]
        seen = self._seen.get(key)
        if seen is None or seen.number != entry.number:
            try:
                job = Job.load(entry.data)
            except (ValueError, KeyError, TypeError):
                return None
            if job.key != key:
                return None
            seen = self._seen[key] = Seen(entry, job)
        return seen

    def _offered(self, free: list[Job]) -> None:
        """In the thread of the ledger."""
        for each in list(self.workers):
            each.offered([job for job in free if job.server == each.server])

    def _offered_all(self, _: object, error: Optional[Exception]) -> None:
        self._offering = False
        if error is not None:
            log.warning("What other hosts left behind can't be looked after now: %s", error)

    # Claims

    async def _take(self, job: Job, dead: bool, stream: Stream) -> JobClaim:
        if job.key in self._held or job.key in self._own:
            raise _Taken
        seen = self._seen.get(job.key)
        subject = stream.subject(job.server, job.key)
        if seen is None:
            entry = await stream.last(subject)
            seen = None if entry is None else self._note(entry)
            if entry is not None and seen is None:
                raise _Taken  # a job of another version
        if seen is not None and not seen.free and not (dead and seen.job.with_owner):
            raise _Taken
        token = f"{self._owner}#{uuid.uuid4().hex[:12]}"
        taken = replace(job, worker=token, tries=0 if seen is None else seen.job.tries)
        asked_at = elapsed()
        number = await stream.write(subject, taken.dump(), 0 if seen is None else seen.number)
        self._seen.pop(job.key, None)
        if number is None or job.key in self._held:
            raise _Taken
        claim = self._held[job.key] = JobClaim(taken, number, asked_at + LEASE, self._end)
        return claim

    async def _renewing(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(RENEW)
            await asyncio.gather(*(self._renew(each, stream) for each in list(self._held.values())))

    async def _renew(self, claim: JobClaim, stream: Stream) -> None:
        async with claim.turn:
            if self._held.get(claim.job.key) is not claim:
                return
            asked_at = elapsed()
            if not claim.held:  # it was too late once
                self._lost(claim)
                return
            try:
                number = await stream.write(
                    stream.subject(claim.job.server, claim.job.key), claim.job.dump(), claim.number
                )
            except TROUBLE:  # in good time again, or it ends
                return
            if number is None:
                self._lost(claim)
                return
            claim.number = number
            if claim.until:  # it was not given back meanwhile
                claim.until = asked_at + LEASE

    def _lost(self, claim: JobClaim) -> None:
        claim.until = 0.0
        self._held.pop(claim.job.key, None)
        self._offer(partial(self._offered, []), self._offered_all)  # who works on it has to stop

    def _end(self, claim: JobClaim, settled: bool) -> None:
        """It is given back, by any thread, and its job with it, or the job is done."""
        claim.until = 0.0
        self._soon(self._ended, claim, settled)

    def _ended(self, claim: JobClaim, settled: bool) -> None:
        if self._held.get(claim.job.key) is claim:
            del self._held[claim.job.key]
            self._start(partial(self._give_back, claim, settled))

    async def _give_back(self, claim: JobClaim, settled: bool, stream: Stream) -> None:
        async with claim.turn:
            if settled:
                await stream.delete(claim.number)
            else:
                back = claim.job.given_back()
                await stream.write(stream.subject(back.server, back.key), back.dump(), claim.number)

    async def _flushed(self, stream: Stream) -> None:
        others = self._tasks - {asyncio.current_task()}
        await asyncio.gather(self._own.said(), *others, return_exceptions=True)
