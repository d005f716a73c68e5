"""A process that uses a ledger: it has entered itself, it hears signals, and it works on the ledger in threads apart.

There is one member for each URL in a process; the registries of all its clients hold on to it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, Union

from deadstop.errors import LedgerError
from deadstop.fleet.addresses import split
from deadstop.fleet.exchange import Exchange
from deadstop.fleet.holder import Ears, Holder, Message, question_of
from deadstop.fleet.lane import Lane
from deadstop.fleet.others import Others
from deadstop.fleet.places import place
from deadstop.fleet.post import Post, directory
from deadstop.ledger import connect
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Process

if TYPE_CHECKING:
    from deadstop.fleet.jobs import Jobs
    from deadstop.fleet.wire import Wire

__all__ = ["KEEP", "Holder", "Member", "Message"]

log = logging.getLogger("deadstop")

TICK = 1.5
"""How often (seconds) a process that holds runs reads the open intents again, should a signal have been lost."""

RESTING = 5.0
"""How often (seconds) a process reads them that holds no runs: what the dead left behind may be its to finish."""

ACROSS = 3.5
"""How long (seconds) to wait for processes of other hosts, which read the record on their own, to take up a cancel."""

BEAT = 5.0
"""How often (seconds) a process gives a sign of life, where others can't reach its socket."""

DAY = 86_400.0

SINCE = 86_400.0
"""How old (seconds) an open intent may be to be worked on."""

KEEP = 30 * 86_400.0
"""How long (seconds) what has ended is kept."""

PARTING = 2.0
"""How long (seconds) the end of the process waits for what is still to be written."""

ANSWERS = ("have", "accepted", "none", "nobody", "refused", "settled", "runs")

T = TypeVar("T")


class Member(Others):
    """Raises LedgerError if the ledger can't be used."""

    def __init__(self, url: str) -> None:
        ledger, bus = split(url)
        self.exchange = None if bus is None else Exchange(self, bus)
        self.ledger: Ledger = connect(ledger)
        self.ledger.lost = self._lost
        self.private = self.ledger.url == "memory:"  # nobody else can see it
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()
        self.writes, self.reads = Lane(), Lane()
        self.left: set[tuple[str, int]] = set()  # what was given up here, and is not on record as such: name and epoch
        self.waiting: dict[str, Callable[[Message], None]] = {}  # by the id of a question, whom to tell of answers
        self._unborn, self._bearing, self._birth = True, False, threading.RLock()
        self.awake()

    def awake(self) -> None:
        """Be a process of its own, if this one is not yet: a forked child that has work. Other threads wait for that,
        or what they do would be put down to the parent."""
        if self._unborn:
            self._wake_up()

    def _wake_up(self) -> None:
        with self._birth:
            if self._unborn and not self._bearing:  # a signal handler on top of it goes on with what there is
                self._bearing = True
                try:
                    self._born()
                    self._unborn = False
                finally:
                    self._bearing = False

    def _born(self) -> None:
        pid, host = os.getpid(), socket.gethostname()
        owner = f"{host}:{pid}:{uuid.uuid4().hex[:12]}:{place()}"
        self.post: Union[Post, Wire, None] = None
        self.wire = self._make_wire(owner)  # that is the post, where there is one
        if self.wire is not None:
            self.post = self.wire
        elif not self.private:
            try:
                self.post = Post(directory())
            except LedgerError as error:
                log.warning("Cancels by other processes come late here: %s", error)
        address = None if self.post is None else self.post.address
        self.process = Process(owner, host, pid, address)
        self._beaten = 0.0
        self._to_read = False  # that is asked for, and not begun
        self._resting = False
        self._closed = False
        if self.exchange is not None:
            self.exchange.begin()
        if not self.private:
            self.writes.submit(lambda: self._kept(self._enter))
            self.writes.submit(lambda: self._kept(self._sweep))
            self._listener = threading.Thread(
                target=self._listen, args=(self.post,), name="deadstop signals", daemon=True
            )
            self._listener.start()

    def _make_wire(self, owner: str) -> Optional[Wire]:
        if not self.ledger.url.startswith("postgres"):
            return None
        from deadstop.fleet.wire import Wire  # needs an extra

        engine: Any = self.ledger
        return Wire(engine.engine, owner)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def jobs(self) -> Optional[Jobs]:
        """The cancels that other hosts finish should this process die, and this one for them, if it has a bus."""
        return None if self.exchange is None else self.exchange.jobs

    @property
    def across(self) -> float:
        """How long (seconds) a cancel waits for processes that say nothing if the run is not theirs."""
        return ACROSS if self.wire is None else self.wire.across

    def _enter(self) -> None:
        if self.wire is not None:
            self.wire.listening.wait(PARTING)  # one that is on record and does not listen is taken for dead
        now = time.time()
        self._beaten = now
        self.ledger.enter(self.process, now=now)

    def _sweep(self) -> None:
        """One batch for each process that starts, since nobody else may ever keep house."""
        now = time.time()
        self.ledger.sweep(before=now - KEEP, now=now)

    def _kept(self, job: Callable[[], object]) -> None:
        try:
            job()
        except LedgerError as error:
            log.warning("Not on record: %s", error)

    # Work on the ledger, in threads apart.

    def write(
        self, job: Callable[[], T], done: Optional[Callable[[Optional[T], Optional[Exception]], object]] = None
    ) -> None:
        """Have ``job`` run where it may block; ``done(value, error)`` is called there. Never blocks; any thread."""
        self.awake()
        self.writes.do(partial(self._fresh, job), done)

    def read(
        self, job: Callable[[], T], done: Optional[Callable[[Optional[T], Optional[Exception]], object]] = None
    ) -> None:
        """As `write`, without waiting for what is being written."""
        self.awake()
        self.reads.do(partial(self._fresh, job), done)

    def _fresh(self, job: Callable[[], T]) -> T:
        with contextlib.suppress(LedgerError):  # the job finds out by itself
            self.ledger.refresh()  # first: what is known here of the record may be of another one
        return job()

    def _lost(self) -> None:
        log.warning("The ledger %s was taken away; what is held here is put on record anew.", self.ledger.url)
        for each in list(self.holders):
            try:
                each.forgotten()
            except Exception:  # somebody's transaction is under way here
                log.exception("What is held here could not be put on record anew.")

    # Answers

    def hear(self, question: str, tell: Callable[[Message], None]) -> None:
        """Have that one told of answers, beside others with the same question. Never blocks."""
        ears = None
        while ears is None or self.waiting.get(question) is not ears:  # the last one has just left
            ears = self.waiting.setdefault(question, Ears())
            assert isinstance(ears, Ears)
            if tell not in ears:
                ears.append(tell)

    def deaf(self, question: str, tell: Callable[[Message], None]) -> None:
        """That one wants to hear no more. Never blocks."""
        ears = self.waiting.get(question)
        if isinstance(ears, Ears) and tell in ears:
            ears.remove(tell)
            if not ears and self.waiting.pop(question, None) is ears:
                for each in ears:  # who came meanwhile
                    self.hear(question, each)

    # What is given up here

    def give_up(self, run: str, epoch: int) -> None:
        """A cancel of a run that was held here is not gone on with here: it is anybody's. Uses the ledger."""
        self.left.add((run, epoch))
        self._tell_left()

    def _tell_left(self) -> None:
        told = False
        for key in list(self.left):
            told = self.ledger.give_up(*key, by=self.process.owner, now=time.time()) or told
            self.left.discard(key)
        if told:
            self._read_again()  # for the other clients here
            if not self.private:
                self.signal({"do": "again"})

    # What is heard

    def holding(self) -> bool:
        return any(each.holding() for each in list(self.holders))

    def wake(self) -> None:
        """There is a run to be cancelled by name from now on, so look more often. Never blocks."""
        if self._resting and self.post is not None:
            self._resting = False
            self.post.wake()

    def _listen(self, post: Union[Post, Wire, None]) -> None:
        try:
            self._hear(post)
        finally:
            if post is not None and post is self.wire:
                self.wire.end()

    def _hear(self, post: Union[Post, Wire, None]) -> None:
        due = 0.0
        while post is self.post and not (self._closed and post is None):  # the others are closed when all is written
            self._resting = True  # first: whoever begins a run from now on wakes us
            self._resting = not (self.holding() or self.waiting)
            wait = RESTING if self._resting else TICK
            now = time.monotonic()
            due = min(due, now + wait)
            if now >= due:
                due = now + wait
                self._read_again()
            try:
                left = max(min(due, now + wait) - now, 0.001)
                message = None
                if post is not None:
                    message = post.receive(left)
                else:
                    time.sleep(left)
            except (OSError, ValueError):  # it was closed
                return
            if message is not None:
                due = 0.0 if message.get("do") == "again" else min(due, time.monotonic() + TICK)
                self._heard(message)

    def _heard(self, message: Message) -> None:
        try:
            if message.get("do") in ANSWERS:
                tell = self.waiting.get(str(message.get("id")))
                if tell is not None:
                    tell(message)
            elif message.get("do") == "again":
                if self._beaten and "anew" in message:  # who looked meanwhile took us for dead, and settled our cancels
                    self.write(self._enter)
                    for each in list(self.holders):
                        self.read(each.catch_up)
            elif message.get("do") == "wanted":
                self._wanted(message)
            elif message.get("do") in ("cancel", "list"):
                holders = list(self.holders)
                before = [each for each in holders if each.took_up(message)]  # the answer was lost
                found = [each.heard(message) for each in before or holders]
                if message["do"] == "cancel":
                    if not any(found) and (self.wire is None or "via" in message):
                        self.answer(message.get("reply"), {"do": "none", "id": message.get("id")})
                else:
                    self.answer(message.get("reply"), {"do": "runs", "id": message.get("id"), "runs": [], "end": True})
        except LedgerError as error:  # it is found when the record is read again
            log.warning("A cancel by another process can't be read now: %s", error)
        except BaseException:  # a signal of another version, a callback that means to leave: the listening goes on
            log.exception("A signal from another process could not be understood.")

    def _wanted(self, hint: Message) -> None:
        """A cancel was put on record. If the run may be held here, see what the record says, and go by that."""
        run, request = str(hint.get("run")), str(hint.get("request_id"))
        if not any(each.knows(run) for each in list(self.holders)):
            return
        found = self.ledger.intent(run)
        cancels = () if found is None or found.outcome is not None else (found.intent, *found.later)
        for each in cancels:
            if each.request_id == request:
                parked = found is not None and found.parked_until is not None
                facts = {"run": run, "epoch": 0 if parked else each.epoch, "cause": each.cause.value}
                facts.update(at=each.at, reason=each.reason, actor=each.actor, level=each.level.value, request=request)
                facts.update(id=question_of(run, request), left=hint.get("left"), reply=hint["reply"])
                self._heard({**facts, "do": "cancel"})

    def _read_again(self) -> None:
        if not self._to_read and self.holders:
            self._to_read = True
            self.read(self._now_read, self._read_done)

    def _now_read(self) -> None:
        self._to_read = False  # first: who asks from now on may mean what comes too late for this time
        self.read_again()

    def _read_done(self, _: object, error: Optional[Exception]) -> None:
        if error is not None:
            log.warning("The open cancels can't be read again now: %s", error)

    def read_again(self) -> None:
        """Read what is to be cancelled, and tell the holders. Uses the ledger."""
        if self.left:  # the ledger was down
            self.write(self._tell_left)
        now = time.time()
        wanted = self.ledger.open_intents(since=now - SINCE)
        parked = self.ledger.parked(now=now) if self.holding() else []
        for each in list(self.holders):
            each.read_again(wanted, parked)
        if not self.ledger.url.startswith("sqlite:"):
            if self._beaten + 0.9 * BEAT <= now:
                self._enter()
        elif (self._beaten and self._beaten + DAY <= now) or not any(
            each.owner == self.process.owner for each in self.ledger.processes()
        ):
            self._enter()  # it was forgotten

    # The end

    def close(self, timeout: float = PARTING) -> None:
        """Write what is still to be written, for at most ``timeout`` seconds, and leave."""
        if self._closed or self._unborn:
            return
        self._closed = True
        if not self.private:
            self.write(lambda: self.ledger.leave(self.process.owner, now=time.time()))
        written = self.writes.drain(timeout)
        if self.post is not None:
            self.post.close()  # not before: who finds it closed takes up what is still to be written
        if self.wire is not None:
            self._listener.join(timeout)
        if written and self.reads.drain(timeout):  # else its connections are in use, and closing them would wait
            self.ledger.close()
        if self.exchange is not None:
            self.exchange.close()  # last: what was settled just now is told over it

    def forked(self) -> None:
        """This is a child now: another process. It gets a socket and an entry of its own when it has work for them, and
        not here, where the ledger's own hooks may not have run yet."""
        if self._closed:
            return
        if self.post is not None:
            self.post.disown()
        if self.exchange is not None:
            self.exchange.forked()
        for each in list(self.holders):
            each.forked()
        self.waiting, self.left = {}, set()
        self._unborn, self._bearing, self._birth = True, False, threading.RLock()
