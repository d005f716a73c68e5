"""A process that uses a ledger: it has entered itself, it hears signals, and it works on the ledger in threads apart.

There is one member for each URL in a process; the registries of all its clients hold on to it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
import time
import uuid
import weakref
from typing import Any, Callable, Optional, Protocol, TypeVar

from deadstop.errors import LedgerError
from deadstop.fleet.lane import Lane
from deadstop.fleet.post import Post, Sent, directory
from deadstop.ledger import connect
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import IntentRecord, Process

__all__ = ["Holder", "Member", "member_of"]

log = logging.getLogger("deadstop")

TICK = 1.5
"""How often (seconds) a process that holds runs reads the open intents again, should a signal have been lost."""

RESTING = 5.0
"""How often (seconds) a process reads them that holds no runs: what the dead left behind may be its to finish."""

SILENT = 20.0
"""How long (seconds) without a sign of life before a process of another host is taken for dead."""

BEAT = 5.0
"""How often (seconds) a process gives a sign of life, where others can't reach its socket."""

SINCE = 86_400.0
"""How old (seconds) an open intent may be to be worked on."""

PARTING = 2.0
"""How long (seconds) the end of the process waits for what is still to be written."""

T = TypeVar("T")
Message = dict[str, Any]


class Holder(Protocol):
    """Whoever holds runs in this process: the registry of a client."""

    def holding(self) -> bool:
        """Whether there are runs to be cancelled by name."""

    def heard(self, message: Message) -> bool:
        """Another process wants something. Whether it was for this holder, which has answered then. Must not block."""

    def read_again(self, wanted: list[IntentRecord], parked: list[IntentRecord]) -> None:
        """The open intents, and the tombstones, as they stand. May use the ledger."""


class Member:
    """Raises LedgerError if the ledger can't be used."""

    def __init__(self, url: str) -> None:
        self.ledger: Ledger = connect(url)
        self.private = self.ledger.url == "memory:"  # nobody else can see it
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()
        self.writes, self.reads = Lane(), Lane()
        self.waiting: dict[str, Callable[[Message], None]] = {}  # by the id of a question, whom to tell of answers
        self._unborn = True
        self._born()

    def _born(self) -> None:
        self._unborn = False
        pid, host = os.getpid(), socket.gethostname()
        self.post: Optional[Post] = None
        if not self.private:
            try:
                self.post = Post(directory())
            except LedgerError as error:
                log.warning("Cancels by other processes come late here: %s", error)
        address = None if self.post is None else self.post.address
        self.process = Process(f"{host}:{pid}:{uuid.uuid4().hex[:12]}", host, pid, address)
        self._beaten = 0.0
        self._reading = False
        self._resting = False
        self._closed = False
        if not self.private:
            self.writes.submit(lambda: self._kept(self._enter))
            threading.Thread(target=self._listen, args=(self.post,), name="deadstop signals", daemon=True).start()

    def _enter(self) -> None:
        now = time.time()
        self._beaten = now
        self.ledger.enter(self.process, now=now)

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
        if self._unborn:
            self._born()
        self.writes.submit(lambda: self._work(job, done))

    def read(
        self, job: Callable[[], T], done: Optional[Callable[[Optional[T], Optional[Exception]], object]] = None
    ) -> None:
        """As `write`, without waiting for what is being written."""
        if self._unborn:
            self._born()
        self.reads.submit(lambda: self._work(job, done))

    @staticmethod
    def _work(job: Callable[[], T], done: Optional[Callable[[Optional[T], Optional[Exception]], object]]) -> None:
        value, failed = None, None
        try:
            value = job()
        except Exception as error:
            failed = error
            if done is None:
                log.warning("Not on record: %s", error)
        if done is not None:
            done(value, failed)

    # Other processes.

    def alive(self, owner: str) -> bool:
        """Whether a process is there. One of this host that is not is put on record as gone. Uses the ledger."""
        if owner == self.process.owner:
            return True
        known = next((each for each in self.ledger.processes() if each.owner == owner), None)
        if known is None:
            return False
        if known.host != self.process.host:
            return known.seen_at + SILENT > time.time()
        if known.address is not None and self.post is not None:
            dead = self.post.send(known.address, {"do": "ping"}) is Sent.DEAD
        else:
            dead = not _exists(known.pid)
        if dead:
            self.ledger.leave(known.owner, now=time.time())
        return not dead

    def signal(self, message: Message) -> tuple[set[str], bool]:
        """Send a message to every other process. Uses the ledger.

        Returns who of this host has taken it, and whether there are others that can't be reached so.
        """
        taken, others = set(), False
        for each in self.ledger.processes():
            if each.owner == self.process.owner:
                continue
            if each.host != self.process.host or each.address is None or self.post is None:
                others = others or self.alive(each.owner)
                continue
            sent = self.post.send(each.address, message)
            if sent is Sent.DEAD:
                self.ledger.leave(each.owner, now=time.time())
            else:
                taken.add(each.owner)
        return taken, others

    def answer(self, address: Optional[str], message: Message) -> None:
        """Answer a question, if its asker still listens. Never blocks."""
        if self.post is not None and address:
            self.post.send(address, {**message, "owner": self.process.owner})

    def holding(self) -> bool:
        return any(each.holding() for each in list(self.holders))

    def wake(self) -> None:
        """There is a run to be cancelled by name from now on, so look more often. Never blocks."""
        if self._resting and self.post is not None:
            self._resting = False
            self.post.send(self.post.address, {"do": "wake"})

    def _listen(self, post: Optional[Post]) -> None:
        due = 0.0
        while not self._closed and post is self.post:
            self._resting = not (self.holding() or self.waiting)
            wait = RESTING if self._resting else TICK
            now = time.monotonic()
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
                due = min(due, time.monotonic() + TICK)
                self._heard(message)

    def _heard(self, message: Message) -> None:
        try:
            if message.get("do") in ("have", "none", "refused", "settled", "runs"):
                tell = self.waiting.get(str(message.get("id")))
                if tell is not None:
                    tell(message)
            elif message.get("do") in ("cancel", "list"):
                found = [each.heard(message) for each in list(self.holders)]
                if message["do"] == "cancel":
                    if not any(found):
                        self.answer(message.get("reply"), {"do": "none", "id": message.get("id")})
                else:
                    self.answer(message.get("reply"), {"do": "runs", "id": message.get("id"), "runs": [], "end": True})
        except Exception:  # a signal of another version must not end the listening
            log.exception("A signal from another process could not be understood.")

    def _read_again(self) -> None:
        if self._reading or not self.holders:
            return
        self._reading = True
        self.read(self.read_again, self._read_done)

    def _read_done(self, _: object, error: Optional[Exception]) -> None:
        self._reading = False
        if error is not None:
            log.warning("The open cancels can't be read again now: %s", error)

    def read_again(self) -> None:
        """Read what is to be cancelled, and tell the holders. Uses the ledger."""
        now = time.time()
        wanted = self.ledger.open_intents(since=now - SINCE)
        parked = self.ledger.parked(now=now) if self.holding() else []
        for each in list(self.holders):
            each.read_again(wanted, parked)
        if not self.ledger.url.startswith("sqlite:") and self._beaten + BEAT <= now:
            self._enter()

    # The end

    def close(self, timeout: float = PARTING) -> None:
        """Write what is still to be written, for at most ``timeout`` seconds, and leave."""
        if self._closed or self._unborn:
            return
        self._closed = True
        if self.post is not None:
            self.post.close()
        if not self.private:
            self.write(lambda: self.ledger.leave(self.process.owner, now=time.time()))
        if self.writes.drain(timeout):
            self.reads.drain(timeout)
            self.ledger.close()

    def forked(self) -> None:
        """This is a child now: another process. It gets a socket and an entry of its own when it has work for them, and
        not here, where the ledger's own hooks may not have run yet."""
        if self._closed:
            return
        if self.post is not None:
            self.post.disown()
        self.waiting = {}
        self._unborn = True


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


_members: dict[str, Member] = {}
_guard = threading.Lock()


def member_of(url: str) -> Member:
    """This process's member for that URL. Raises LedgerError, and then there is none."""
    with _guard:
        found = _members.get(url)
        if found is None or found._closed:
            found = Member(url)
            if not _members:
                # Now, so that it runs before the clean-up of what the ledger is made of.
                atexit.register(_close_all)
            _members[url] = found
        return found


def _close_all() -> None:
    for each in list(_members.values()):
        with contextlib.suppress(LedgerError):
            each.close()


def _forked() -> None:
    global _guard
    _guard = threading.Lock()
    for each in list(_members.values()):
        each.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
