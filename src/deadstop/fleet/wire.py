"""Signals between processes that share a Postgres: LISTEN and NOTIFY, on a connection of the process's own.

A cancel is announced with the commit that puts it on record. What is heard is a hint: whoever holds the run reads the
record, since anybody who may connect to the database may send any hint. That connection is also how others know that
the process is there: it holds a lock of the session, which the server frees when the process or its host dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import selectors
import socket
import threading
import time
from collections import deque
from typing import Any, Callable, Optional

from deadstop.errors import LedgerError
from deadstop.fleet.post import Sent
from deadstop.ledger.facts import Process
from deadstop.ledger.need_psycopg import psycopg
from deadstop.ledger.postgres import Postgres

__all__ = ["Wire"]

log = logging.getLogger("deadstop")

CANCELS = "deadstop"
"""The channel of every cancel that is put on record."""

EVERYBODY = "deadstop_all"

LARGEST = 7900  # bytes of a message: a payload holds less than 8000

AGAIN = 0.25
"""How long (seconds) until a lost connection is tried again."""

TWICE = 0.25
"""How long (seconds) a process has to be found missing: one whose connection was cut is back sooner."""

RETURN = 5.0
"""How long (seconds) after a start of the server nobody is found missing: all have to come back."""


def channel_of(owner: str) -> str:
    """Where that process listens."""
    return "deadstop_" + hashlib.sha256(owner.encode()).hexdigest()[:24]


class Wire:
    """The signals of this process, whose token is ``owner``."""

    across = 1.0
    """How long (seconds) to wait for somebody to say that it holds a run: whoever does not says nothing."""

    def __init__(self, engine: Postgres, owner: str) -> None:
        self.address = channel_of(owner)
        self.listening = threading.Event()
        self._engine = engine
        self._owner = owner
        self._connection: Any = None
        self._heard: deque[Any] = deque()
        self._closed = False
        self._waking, self._waker = socket.socketpair()
        for each in (self._waking, self._waker):
            each.setblocking(False)

    def address_of(self, owner: str) -> str:
        """Where another process listens."""
        return channel_of(owner)

    # Speaking. May block on the database.

    def send(self, address: str, message: dict[str, Any], then: Callable[[], None] = lambda: None) -> Sent:
        """Tell one process, or ``EVERYBODY``, and do ``then`` as soon as that is on its way, or can't be. Whether
        anybody is there nobody knows."""
        told = json.dumps(message)
        if len(told.encode()) > LARGEST:
            runs = message.get("runs", [])
            for part in (runs[: len(runs) // 2], runs[len(runs) // 2 :]) if len(runs) > 1 else ():
                self.send(address, {**message, "runs": part})
            then()
            return Sent.UNSURE
        try:
            self._engine.hint(address, told, then)
        except LedgerError as error:
            log.warning("Another process could not be told: %s", error)
            then()
        return Sent.UNSURE

    def ask(self, message: dict[str, Any]) -> None:
        """Tell every process. A cancel was announced with its record, so there is nothing more to say."""
        self.listening.wait(self.across)  # or the answers would be missed
        if message.get("do") != "cancel":
            self.send(EVERYBODY, {**message, "from": self._owner})

    def missing(self, known: list[Process]) -> set[str]:
        """Those of these processes that are gone, by their tokens. Raises LedgerError."""
        gone = {each.owner for each in known if each.owner != self._owner}
        for pause in (0.0, TWICE):
            if gone:
                time.sleep(pause)
                asked = sorted(gone)
                rows = self._engine.read(lambda tx: tx.all("present", owners=asked, grace=RETURN))  # noqa: B023
                gone = {each["owner"] for each in rows if not each["listens"] and not each["restarted"]}
        return gone

    # Hearing. In one thread.

    def receive(self, timeout: float) -> Optional[dict[str, Any]]:
        """The next message, within ``timeout`` seconds. ``{"do": "again"}``: the record has to be read, something may
        have been missed; ``anew``: since the connection is a new one. Raises OSError once it is closed."""
        if self._closed:
            raise OSError("closed")
        if self._connection is None and not self._connect():
            self._wait(None, min(timeout, AGAIN))
            return None
        if self._connection is not None and not self.listening.is_set():
            self.listening.set()
            return {"do": "again", "anew": True}
        try:
            if not self._take():
                self._wait(self._connection.fileno(), timeout)
                self._take()
        except (psycopg.Error, OSError, ValueError) as error:
            if self._closed:
                raise OSError("closed") from error
            log.warning("Cancels by other processes come late until Postgres is there again: %s", error)
            self._hang_up()
            return None
        return self._understood(self._heard.popleft()) if self._heard else None

    def _connect(self) -> bool:
        try:
            self._connection = self._engine.session(self._owner, [CANCELS, EVERYBODY, self.address])
        except LedgerError as error:
            log.debug("No signals now: %s", error)
            return False
        return True

    def _take(self) -> bool:
        """Read what has come. Whether there is anything."""
        wire = self._connection.pgconn
        wire.consume_input()
        while True:
            told = wire.notifies()
            if told is None:
                break
            self._heard.append(told)
        if wire.status != psycopg.pq.ConnStatus.OK:
            raise OSError("the connection was lost")
        return bool(self._heard)

    def _wait(self, connection: Optional[int], timeout: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._waking, selectors.EVENT_READ)
            if connection is not None:
                selector.register(connection, selectors.EVENT_READ)
            selector.select(timeout)
        with contextlib.suppress(BlockingIOError):
            self._waking.recv(1000)

    def _understood(self, told: Any) -> Optional[dict[str, Any]]:
        if not told.extra:
            return {"do": "again"}
        try:
            message = json.loads(told.extra)
        except (ValueError, RecursionError):
            return None
        if not isinstance(message, dict) or message.get("from") == self._owner or message.get("do") == "cancel":
            return None  # a cancel is read in the record, whoever says what
        if told.relname.decode() != CANCELS:
            return message
        by = str(message.get("by"))
        return None if by == self._owner else {**message, "do": "wanted", "reply": channel_of(by)}

    def wake(self) -> None:
        """Have ``receive`` return. Never blocks; any thread."""
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def _hang_up(self) -> None:
        self.listening.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    # The end

    def close(self) -> None:
        """Nobody can be heard any more. The connection is closed by the thread that hears, or with the process."""
        self._closed = True
        self.wake()

    def end(self) -> None:
        """By the thread that heard, at last."""
        self._hang_up()
        self._waking.close()
        self._waker.close()

    def disown(self) -> None:
        """In a forked child: the connection is the parent's, which the server would take for ended."""
        self._closed = True
        if self._connection is not None:
            self._engine.abandon(self._connection)
            self._connection = None
        self._waking.close()
        self._waker.close()
