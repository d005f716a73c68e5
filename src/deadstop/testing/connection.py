"""One thread per connection: accept faults, TLS, requests in, each answered or given to the control."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deadstop.testing import render_other, routes, run_kinds
from deadstop.testing.control import PREFIX, Control
from deadstop.testing.exchange import Exchange
from deadstop.testing.need_h11 import h11
from deadstop.testing.record import RecordBook, RequestRecord
from deadstop.testing.run_exchange import RunExchange
from deadstop.testing.runs import RunStore
from deadstop.testing.sse import decode_json, encode_json
from deadstop.testing.wire import Ended, PeerGone, Wire

if TYPE_CHECKING:
    from deadstop.testing.script import Script

_MAX_HEADERS = 1 << 18


class Connection:
    """An accepted socket and what is said on it."""

    def __init__(
        self,
        sock: socket.socket,
        number: int,
        *,
        stop_fd: int,
        script: Script,
        book: RecordBook,
        runs: RunStore,
        control: Control,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self.number = number
        self.is_control = False
        """Whether this is the remote control's, which does not count as traffic."""
        self._wire = Wire(sock, stop_fd)
        self._script, self._book, self._control, self._ssl_context = script, book, control, ssl_context
        self._runs = runs
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEADERS)
        self._requests = 0

    def run(self) -> None:
        """Serves until the peer leaves or the server is stopped, then closes the socket."""
        try:
            for fault in self._script.faults_at_accept():
                fault.on_accept(self._wire)
            if self._ssl_context is not None:
                self._wire.start_tls(self._ssl_context)
            while self._serve_one():
                self._http.start_next_cycle()
        except (Ended, ssl.SSLError):
            pass
        except h11.RemoteProtocolError as error:
            self._refuse(error)
        finally:
            self._wire.close()

    def _serve_one(self) -> bool:
        """Reads and answers one request; whether another one may follow."""
        request = self._next_event()
        if not isinstance(request, h11.Request):
            return False
        target = urlsplit(request.target.decode("latin-1"))
        if target.path.startswith(PREFIX):
            self.is_control = True
            body = self._read_body(None)
            status, answer = self._control.handle(request.method.decode(), target.path, target.query, body)
            self._send(status, answer)
        else:
            self._answer(self._open_record(request, target.path, target.query))
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _open_record(self, request: h11.Request, path: str, query: str) -> RequestRecord:
        self._requests += 1
        return self._book.open(
            connection_id=self.number,
            nth_on_connection=self._requests,
            method=request.method.decode(),
            path=path,
            query=query,
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers},
            model=routes.model_of(path, None),
        )

    def _answer(self, record: RequestRecord) -> None:
        try:
            raw = self._read_body(record)
        except (Ended, h11.RemoteProtocolError):
            record.peer_gone_at = self._wire.gone_at
            record.disconnect_seen_at = record.peer_gone_at
            record.finished_at = time.monotonic()
            self._book.touch()
            raise
        record.body = decode_json(raw) if raw else None
        record.model = routes.model_of(record.path, record.body)
        record.received_at = time.monotonic()
        record.state = "generating"
        self._book.touch()
        shared: Any = {"script": self._script, "wire": self._wire, "http": self._http, "book": self._book}
        asked = run_kinds.find(record.method, record.path, record.body)
        shape = routes.find(record.method, record.path)
        if asked is not None:
            RunExchange(asked, self._runs, record, self._script.faults_for(record), **shared).run()
        elif shape is None:
            self._refuse_record(record, 404, f"Unknown request URL: {record.method} {record.path}.")
        elif record.method == "POST" and not isinstance(record.body, dict):
            self._refuse_record(record, 400, "The body of the request is not a JSON object.")
        else:
            Exchange(record, shape, self._script.faults_for(record), **shared).run()

    def _refuse_record(self, record: RequestRecord, status: int, message: str) -> None:
        record.status = status
        self._send(
            status,
            render_other.error(message, code="unknown_url" if status == 404 else None),
            record.request_id,
        )
        record.finished_at = time.monotonic()
        record.state = "completed"
        self._book.touch()

    # -- HTTP

    def _next_event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                self._write(self._http.send(go_on) or b"")
            self._http.receive_data(self._wire.read())

    def _read_body(self, record: RequestRecord | None) -> bytes:
        parts: list[bytes] = []
        while True:
            event = self._next_event()
            if isinstance(event, h11.EndOfMessage):
                return b"".join(parts)
            if not isinstance(event, h11.Data):
                raise PeerGone
            parts.append(bytes(event.data))
            if record is not None:
                record.bytes_in += len(event.data)
                self._book.touch()

    def _send(self, status: int, answer: object, request_id: str = "req_fake_control") -> None:
        data = encode_json(answer)
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(data))),
            ("x-request-id", request_id),
        ]
        head = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        self._http.send(h11.Data(data=data))
        self._http.send(h11.EndOfMessage())
        self._write(head + data)

    def _write(self, data: bytes) -> None:
        left = memoryview(self._wire.encode(data))
        while left:
            left = left[self._wire.send(left) :]
            if left:
                self._wire.watch(None, writable=True)

    def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Tells the peer what was wrong with its HTTP, where it can still be told."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        with contextlib.suppress(Ended, h11.LocalProtocolError):
            self._send(error.error_status_hint, render_other.error(f"This is not HTTP: {error}"))
