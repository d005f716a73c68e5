"""The server's own record of what it was asked and what it did: the ground truth."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable


@dataclass
class RequestRecord:
    """One request, as the server saw it. Times are `time.monotonic()` seconds; None means it did not happen.

    The serving thread writes, anybody may read: `state` is always the last attribute to change.

    `state`: `receiving` (and so it stays when the body never arrives in full), `generating`, `completed`
    (answered to the end), `disconnected` (ended because the peer was gone), `failed` (ended by a fault or by
    the server's stop).
    """

    id: int
    connection_id: int
    nth_on_connection: int
    method: str
    path: str
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    body: Any = None
    bytes_in: int = 0
    """Bytes of the body read so far."""
    streamed: bool = False
    """Whether the answer is a stream, whatever the request asked for."""
    status: int | None = None
    """The HTTP status that was answered."""
    state: str = "receiving"
    opened_at: float | None = None
    """When the request's headers had been read."""
    received_at: float | None = None
    """When its body had been read."""
    started_at: float | None = None
    """When the work on it began."""
    first_token_at: float | None = None
    """When the first token was generated."""
    tokens_generated: int = 0
    tokens_sent: int = 0
    """Tokens that the kernel took."""
    tokens_after_disconnect: int = 0
    """Tokens generated after `peer_gone_at`."""
    peer_gone_at: float | None = None
    """When the kernel said that the peer is gone, whatever a fault made of it."""
    disconnect_seen_at: float | None = None
    """When the generation took notice and ended because of it."""
    finished_at: float | None = None

    @property
    def request_id(self) -> str:
        """The `x-request-id` of the answer."""
        return f"req_fake{self.id}"

    def __str__(self) -> str:
        gone = "" if self.peer_gone_at is None else f", peer gone, {self.tokens_after_disconnect} tokens after that"
        return (
            f"#{self.id} {self.method} {self.path} {self.state} "
            f"({self.tokens_generated} tokens generated, {self.tokens_sent} sent{gone})"
        )


LOOKS_APART = 0.002
"""Seconds between two looks of somebody who waits."""


class RecordBook:
    """All records, and a way to wait for what they will say."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: list[RequestRecord] = []
        self._ids = itertools.count(1)
        self._waiters = 0

    def open(self, **facts: Any) -> RequestRecord:
        """A new record, numbered."""
        with self._changed:
            record = RequestRecord(id=next(self._ids), opened_at=time.monotonic(), **facts)
            self._records.append(record)
            self._changed.notify_all()
        return record

    def snapshot(self) -> list[RequestRecord]:
        """The records so far; the list is a copy, the records are live."""
        with self._changed:
            return list(self._records)

    def find(self, number: int) -> RequestRecord | None:
        """The record of that number."""
        return next((record for record in self.snapshot() if record.id == number), None)

    def touch(self) -> None:
        """Tells those who wait that something changed; nearly free when nobody waits."""
        # A waiter counts itself before it looks, so either it sees the change or this sees the waiter.
        if self._waiters:
            with self._changed:
                self._changed.notify_all()

    def reset(self) -> None:
        """Forgets all records."""
        with self._changed:
            self._records.clear()
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[list[RequestRecord]], bool], timeout: float) -> None:
        """Blocks until `predicate(records)` holds. Raises TimeoutError, naming the records."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._waiters += 1
            try:
                while True:
                    looked = time.monotonic()
                    if predicate(list(self._records)):
                        return
                    if looked >= deadline:
                        break
                    self._changed.wait(deadline - looked)
                    # Whoever streams as fast as it can is not stopped for a look at each token.
                    self._changed.release()
                    try:
                        time.sleep(max(looked + LOOKS_APART - time.monotonic(), 0.0))
                    finally:
                        self._changed.acquire()
                known = "; ".join(map(str, self._records)) or "none"
            finally:
                self._waiters -= 1
        raise TimeoutError(f"What was waited for did not come true within {timeout:g} s. The records: {known}.")
