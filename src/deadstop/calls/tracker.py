"""What a call's answer says about remote runs: their ids, and how they stand.

It looks at the bytes that pass, below the SDK. So it does not matter whether the caller wants a model, a raw response
or a stream, or no longer wants anything: a call that was cancelled while it starts a remote run is read on, unseen,
until its answer has told the run's id. Only then can the run be cancelled (I12).
"""

from __future__ import annotations

import json
import time
import zlib
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol, cast

from deadstop.calls.reassemble.sse import Event, EventStream, is_of_events
from deadstop.core.model import Evidence
from deadstop.kinds.base import Ref
from deadstop.kinds.register import Passing

if TYPE_CHECKING:
    from deadstop.calls.call import Call

__all__ = ["Listener", "Tracker"]

LARGEST = 8 << 20
"""Bytes of an answer that are kept to be read; an object of a remote run is never so large."""


Decode = Callable[[bytes], bytes]


class Listener(Protocol):
    """Who wants to know."""

    def learned(self, ref: Ref, word: Optional[str]) -> None:
        """The call has brought a new run, and this is its address."""

    def observed(self, ref: Ref, word: str, evidence: Evidence, asked_at: Optional[float]) -> None:
        """A run's status was seen, in the answer to a request of `asked_at` (monotonic seconds)."""

    def lost(self, never_ran: bool) -> None:
        """The call that was to bring a run is over without one. `never_ran`: and provably none was made."""


class Tracker:
    """Follows one call that concerns remote runs of a kind."""

    __slots__ = (
        "_asked_at",
        "_chunks",
        "_decode",
        "_events",
        "_listener",
        "_outstanding",
        "_piecemeal",
        "_refused",
        "_size",
        "_told",
        "answer",
        "heard",
        "learned",
        "over",
        "passing",
        "released",
        "sent_at",
        "streamed",
        "suspects",
        "terminal",
    )

    def __init__(self, passing: Passing, listener: Listener) -> None:
        self.passing = passing
        self.streamed = False
        self.learned: Optional[Ref] = None
        self.terminal = False
        self.released = False  # nobody waits for what is still to come
        self.over = False
        self.heard = False  # a transport of ours shows us the answer
        self.sent_at: Optional[float] = None  # when the request first left: unix seconds
        self.answer: Optional[int] = None  # the HTTP status that the last attempt was answered with
        self.suspects = 0  # earlier attempts whose answer was lost: each may have made a run that nobody knows of
        self._asked_at: Optional[float] = None
        self._outstanding = False  # a request has left, and its answer is still to come
        self._refused = False  # the one that left last was turned down, and has made nothing
        self._listener = listener
        self._begin()

    def _begin(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._events: Optional[EventStream] = None
        self._decode: Optional[Decode] = None
        self._piecemeal = True  # it can be decoded as it comes
        self._told = False  # whether it is of events

    def holds(self, call: Call) -> bool:
        """Whether a cancel must leave `call` at its work for now: its answer is still needed."""
        if self.released or self.over or not self._outstanding:
            return False
        if self.passing.creates and self.learned is None:
            return True
        return self.streamed and self.learned is not None and not self.terminal

    # What the transport tells

    def begin(self, sent: bool) -> None:
        """Another attempt begins. `sent`: it counts as sent from here on, for nobody will tell when it leaves."""
        if self._outstanding:  # the answer to the one before broke off
            self.failed()
        if sent:
            self._refused = False

    def sending(self) -> None:
        """An attempt is about to leave."""
        if self.sent_at is None:
            self.sent_at = time.time()
        self._asked_at = time.monotonic()
        self._outstanding = True
        self.answer = None
        self._refused = False

    def failed(self) -> None:
        """An attempt ended without an answer."""
        if self.passing.creates and self._outstanding and self.learned is None:
            self.suspects += 1
        self._outstanding = False

    def headers(self, response: Any) -> None:
        """An answer begins."""
        self._begin()
        self.answer = response.status_code
        self._refused = 400 <= response.status_code < 500 and response.status_code != 408
        if response.status_code >= 400:
            if self.passing.creates and not self._refused:
                self.suspects += 1  # whoever answered gave up, and whoever is behind it may not have
            self._outstanding = False
            self._size = LARGEST + 1  # an error is no run
            return
        self._decode, self._piecemeal = _decoder(response)
        self.streamed = False
        if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            self._is_of_events(True)

    def _is_of_events(self, told: bool) -> None:
        self._told, self.streamed = True, told
        self._events = EventStream() if told else None

    def feed(self, chunk: Optional[bytes]) -> None:
        """Bytes of the answer have come; None: that was all."""
        self.heard = True
        if chunk is None:
            self._outstanding = False
        if self._size > LARGEST:
            self._chunks = []
            return
        try:
            if self._piecemeal:
                self._feed(chunk if chunk is None else self._decoded(chunk))
            elif chunk is not None:
                self._keep(chunk)
            else:
                whole, self._chunks = self._decoded(b"".join(self._chunks)), []
                self._feed(whole)
                self._feed(None)
        except Exception:  # not what it said it was; that is the SDK's to report
            self._size = LARGEST + 1

    def _feed(self, data: Optional[bytes]) -> None:
        if data is not None:
            self._keep(data)
        if not self._told:
            told = is_of_events(b"".join(self._chunks), whole=data is None)
            if told is not None:
                self._is_of_events(told)
        if self._events is not None:
            chunks, self._chunks, self._size = self._chunks, [], 0
            for each in chunks:
                self._see_events(self._events.feed(each))
            if data is None:
                self._see_events(self._events.end())
        elif data is None:
            whole = b"".join(self._chunks)
            self._begin()  # a run that lives on is not to hold it
            self._see(json.loads(whole), Evidence.STATUS)

    def _decoded(self, data: bytes) -> bytes:
        return data if self._decode is None else self._decode(data)

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        self._chunks.append(data)

    def see(self, result: Any) -> None:
        """The SDK's object for the answer: where no transport told us anything."""
        if not self.heard:
            dump = (
                getattr(result, "to_dict", None) or getattr(result, "model_dump", None) or getattr(result, "dict", None)
            )
            if isinstance(result, dict):
                self._see(result, Evidence.STATUS)
            elif callable(dump):
                self._see(dump(), Evidence.STATUS)

    def _see_events(self, events: list[Event]) -> None:
        for _, data in events:
            # Only events that carry a whole object: a delta has no status, and there are thousands of them.
            if b'"object"' in data:
                self._see(json.loads(data), Evidence.EVENTS)

    def _see(self, data: Any, evidence: Evidence) -> None:
        kind, within = self.passing.kind, self.passing.within
        found = kind.find(data, within=within)
        if found is None and evidence is Evidence.STATUS and isinstance(data, dict):
            found = kind.take(data, within=within)
        if found is None:
            return
        ref, word = found
        if self.passing.creates and self.learned is None:
            self.learned = ref
            try:
                self._listener.learned(ref, word)
            except BaseException:  # Ctrl-C: nobody else will tell it
                self._listener.learned(ref, word)
                raise
        if word is not None:
            if kind.read(word).is_over:
                self.terminal = True
            self._listener.observed(ref, word, evidence, self._asked_at)

    def end(self, call: Call) -> None:
        """The call is over."""
        if self.over:
            return
        self.over = True
        if self.passing.creates and self.learned is None:
            # 408: the server gave up, and whoever is behind it may not have. 5xx: anything may have happened.
            self._listener.lost(not call.sent or (self._refused and not self.suspects))


def _decoder(response: Any) -> tuple[Optional[Decode], bool]:
    """What decodes the answer's bytes, if anything must; and whether it can do so piece by piece."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return None, True
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress, True  # 32: whichever of the two headers it finds
    # The client asked for it, so its own response class can read it (Brotli, Zstandard), once it is whole.
    headers = {"content-encoding": encoding}
    return lambda data: cast(bytes, type(response)(200, headers=headers, content=data).content), False
