"""One request being answered: the work on it, its pace, its faults, and its record."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from deadstop.testing.faults.base import Fault, overrides
from deadstop.testing.need_h11 import h11
from deadstop.testing.record import RecordBook, RequestRecord
from deadstop.testing.reply import Reply, Stamp
from deadstop.testing.routes import Shape, streams
from deadstop.testing.sse import encode_event, encode_json
from deadstop.testing.wire import Ended, HungUp, PeerGone, Wire

if TYPE_CHECKING:
    from deadstop.testing.script import Script

_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"


class _Answered(Ended):
    """The answer is complete, though not as planned; the connection lives on."""


class Exchange:
    """What a fault may look at and do.

    `record`, `body` (a mapping, empty where the request had no JSON object), `reply`, `streamed` and `burst`
    may be changed before the headers.
    """

    def __init__(
        self,
        record: RequestRecord,
        shape: Shape,
        faults: Iterable[Fault],
        *,
        script: Script,
        wire: Wire,
        http: h11.Connection,
        book: RecordBook,
    ) -> None:
        self.record = record
        self.body: Mapping[str, Any] = record.body if isinstance(record.body, dict) else {}
        self.reply = Reply()
        self.streamed = streams(shape) and self.body.get("stream") is True
        self.burst = script.burst
        self._shape, self._script, self._wire, self._http, self._book = shape, script, wire, http, book
        self._faults = list(faults)
        self._token_faults = [fault for fault in self._faults if overrides(fault, "before_token")]
        self._write_faults = [fault for fault in self._faults if overrides(fault, "before_write")]
        self._due = 0.0
        self._outcome = "completed"
        self._chunked = False
        self._head = b""  # goes out with the first bytes of the body
        self._held: list[bytes] = []
        self._held_tokens = 0

    # -- for faults

    def wait(self, seconds: float | None) -> None:
        """Waits so long (None: for ever), and notices the peer's leaving like any other work.

        What was generated before is sent first.
        """
        self._flush()
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            self._look(deadline)
        self._due = time.monotonic()

    def answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> NoReturn:
        """Answers with this JSON and nothing else. Only before the headers."""
        self._send_whole(status, encode_json(body), dict(headers or {}))
        raise _Answered

    def fail(self, error: Mapping[str, Any], status: int = 500) -> NoReturn:
        """Ends the answer with an error: as the stream's last event, or as the JSON of a `status` answer."""
        self._outcome = "failed"
        if not self.streamed:
            self.answer(status, error)
        self._flush()
        self._write(self._frame(b"data: " + encode_json(error) + b"\n\n") + self._end())
        raise _Answered

    def hang_up(self, *, reset: bool = False) -> NoReturn:
        """Closes the connection where it stands; with `reset` by a RST."""
        self._wire.close(reset=reset)
        raise HungUp

    def send_raw(self, data: bytes) -> None:
        """Writes these bytes as they are, after whatever of the headers was not sent yet."""
        head, self._head = self._head, b""
        self._write(head + data)

    # -- the work

    def run(self) -> None:
        """Answers the request. Raises an Ended when the connection can't be used after it."""
        record = self.record
        state = "failed"  # until shown otherwise
        try:
            self.reply = self._find_reply()
            with contextlib.suppress(_Answered):
                for fault in self._faults:
                    fault.before_headers(self)
                record.streamed = self.streamed
                record.started_at = self._due = time.monotonic()
                self._run_streamed() if self.streamed else self._run_whole()
            state = self._outcome
        except PeerGone:
            state = "disconnected"
            raise
        finally:
            record.peer_gone_at = self._wire.gone_at
            record.finished_at = time.monotonic()
            record.state = state
            self._book.touch()

    def _find_reply(self) -> Reply:
        return self._script.reply_to(self.body)

    def _open_stream(self) -> None:
        self._chunked = self._http.their_http_version != b"1.0"
        self._head = self._headers(200, [("content-type", _SSE), ("cache-control", "no-cache")])
        self.send_raw(b"")

    def _run_streamed(self) -> None:
        self._open_stream()
        total = self._shape.tokens(self.reply, self.body)
        ending = False
        for event in self._shape.events(self.reply, self.body, self._stamp()):
            if event.tokens:
                self._token()
            elif self.record.tokens_generated == total and not ending:
                ending = True
                self._reach(total)
            self._hold(self._frame(encode_event(event)), event.tokens)
        self._hold(self._frame(self._shape.done) + self._end(), 0)
        self._flush()

    def _run_whole(self) -> None:
        total = self._shape.tokens(self.reply, self.body)
        for _ in range(total):
            self._token()
        self._reach(total)
        whole = encode_json(self._shape.whole(self.reply, self.body, self._stamp()))
        self._send_whole(200, whole, {}, total)

    def _stamp(self) -> Stamp:
        return Stamp(self.record.id, int(time.time()))

    def _token(self) -> None:
        """The work of one token: its faults, its pace, a look at the peer, the count."""
        record = self.record
        self._reach(record.tokens_generated)
        rate = self._script.rate
        if 0 < rate < math.inf:
            self._due += 1 / rate
        while True:
            self._look(self._due)
            now = time.monotonic()
            if now >= self._due:
                break
        if not record.tokens_generated:
            record.first_token_at = now
        record.tokens_generated += 1
        if self._wire.gone_at is not None:
            record.tokens_after_disconnect += 1
        self._book.touch()

    def _reach(self, index: int) -> None:
        for fault in self._token_faults:
            fault.before_token(self, index)

    def _look(self, deadline: float | None) -> None:
        self._wire.watch(deadline)
        if self._wire.gone_at is not None:
            self._notice(writing=False)

    def _notice(self, *, writing: bool) -> None:
        """The peer is gone: puts it on record, and ends the work unless a fault goes on regardless."""
        if self.record.peer_gone_at is None:
            self.record.peer_gone_at = self._wire.gone_at
            self._book.touch()
        if all(fault.on_disconnect(self, writing) for fault in self._faults):
            self.record.disconnect_seen_at = time.monotonic()
            raise PeerGone

    # -- the answer's bytes

    def _headers(self, status: int, headers: list[tuple[str, str]]) -> bytes:
        self.record.status = status
        headers.append(("x-request-id", self.record.request_id))
        return self._http.send(h11.Response(status_code=status, headers=headers)) or b""

    def _frame(self, data: bytes) -> bytes:
        # h11 would frame it just so, ten times slower; it still keeps the state, by the response and its end.
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data

    def _end(self) -> bytes:
        return self._http.send(h11.EndOfMessage()) or b""

    def _send_whole(self, status: int, data: bytes, headers: dict[str, str], tokens: int = 0) -> None:
        length = ("content-length", str(len(data)))
        self._head = self._headers(status, [("content-type", _JSON), length, *headers.items()])
        self._http.send(h11.Data(data=data))
        self._hold(data + self._end(), tokens)
        self._flush()

    def _hold(self, data: bytes, tokens: int) -> None:
        self._held.append(data)
        self._held_tokens += tokens
        if len(self._held) >= self.burst:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        data, tokens = b"".join(self._held), self._held_tokens
        self._held, self._held_tokens = [], 0
        for fault in self._write_faults:
            fault.before_write(self, data)
        head, self._head = self._head, b""
        if self._write(head + data):
            self.record.tokens_sent += tokens
            self._book.touch()

    def _write(self, data: bytes) -> bool:
        """Whether the kernel took it all. It does not, where the peer is gone and a fault does not care."""
        left = memoryview(self._wire.encode(data))
        while left:
            try:
                left = left[self._wire.send(left) :]
                if left:
                    self._wire.watch(None, writable=True)
                    if self._wire.gone_at is not None:
                        raise PeerGone
            except PeerGone:
                self._notice(writing=True)
                return False
        return True
