"""A chat completion server over HTTP/2, that records what becomes of each stream.

What it does is said by the request's model: `m` answers, `endless` goes on until `finish()`, `silent` reads the
request and says nothing, `stalls` falls silent after three tokens. `greedy=False` never gives back the window that a
body has used up, so that a body larger than 65,535 bytes gets stuck.
"""

from __future__ import annotations

import itertools
import json
import select
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

STALLS_AFTER = 3


@dataclass
class StreamRecord:
    """One request, as the server saw it.

    `state`: `receiving`, `silent`, `generating`, `stalled`, `completed`, `reset` (the client took it back), `lost`
    (the connection ended first).
    """

    connection: int
    stream: int
    model: str = ""
    streamed: bool = False
    state: str = "receiving"
    body: bytearray = field(default_factory=bytearray)
    unpaid: int = 0  # bytes whose window was not given back
    wanted: int = 0
    tokens: int = 0
    code: int | None = None  # of the reset
    due: float = 0.0
    headers_sent: bool = False
    ended: bool = False  # its events are being written, and then it is done


class H2Server:
    """Listens on 127.0.0.1 inside `with`. `rate` is tokens per second (0: at once).

    `max_streams` is how many streams it allows at a time, `end_late` how long (seconds) after its last event a stream
    ends, `mute` how many connections are accepted first and never spoken to.
    """

    def __init__(
        self,
        *,
        rate: float = 200.0,
        tokens: int = 20,
        ssl_context: ssl.SSLContext | None = None,
        greedy: bool = True,
        max_streams: int = 100,
        end_late: float = 0.0,
        mute: int = 0,
    ) -> None:
        self.rate = rate
        self.tokens = tokens
        self.greedy = greedy
        self.max_streams = max_streams
        self.end_late = end_late
        self.mute = mute
        self.streams: list[StreamRecord] = []
        self.connections = 0
        self.goaways: list[int] = []
        self.errors: list[str] = []
        self._ssl_context = ssl_context
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._threads: list[threading.Thread] = []
        self._muted: list[socket.socket] = []
        self._stop_reader, self._stop_writer = socket.socketpair()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def base_url(self) -> str:
        if self._ssl_context:
            return f"https://localhost:{self.port}/v1"
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> H2Server:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_writer.close()
        for thread in self._threads:
            thread.join(5)
        for sock in (*self._muted, self._listener, self._stop_reader):
            sock.close()

    def wait_for(self, predicate: Callable[[list[StreamRecord]], Any], timeout: float = 10.0) -> None:
        """Block until `predicate(streams)` holds."""
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self.streams), timeout):
                raise AssertionError(f"It never came true. The streams: {self.streams}. The errors: {self.errors}")

    def finish(self) -> None:
        """The endless answers come to their end."""
        for record in self.of("endless"):
            record.wanted = min(record.wanted, record.tokens + 1)

    def of(self, model: str) -> list[StreamRecord]:
        return [each for each in self.streams if each.model == model]

    def _touch(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _spawn(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._stop_reader], [], [])
            if self._stop_reader in ready:
                return
            sock, _ = self._listener.accept()
            if self.mute:
                self.mute -= 1
                self._muted.append(sock)
                continue
            self.connections += 1
            self._spawn(self._serve, sock, self.connections)

    def _serve(self, sock: socket.socket, number: int) -> None:
        sock.settimeout(5)
        try:
            if self._ssl_context is not None:
                sock = self._ssl_context.wrap_socket(sock, server_side=True)
            _Connection(self, sock, number).run(self._stop_reader)
        except OSError as error:
            if any(record.connection == number for record in self.streams):  # it was not given up while it was made
                self.errors.append(f"connection {number}: {error!r}")
        finally:
            for record in self.streams:
                if record.connection == number and record.state not in ("completed", "reset"):
                    record.state = "lost"
            sock.close()
            self._touch()


class _Connection:
    def __init__(self, server: H2Server, sock: socket.socket, number: int) -> None:
        self._server = server
        self._sock = sock
        self._number = number
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._records: dict[int, StreamRecord] = {}

    def run(self, stop: socket.socket) -> None:
        allowed = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self._server.max_streams}
        self._h2.local_settings = h2.settings.Settings(client=False, initial_values=allowed)
        self._h2.initiate_connection()
        self._flush()
        while True:
            due = [each.due for each in self._records.values() if each.state == "generating"]
            pending = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()
            wait = 0 if pending else max(min(due) - time.monotonic(), 0) if due else None
            ready, _, _ = select.select([self._sock, stop], [], [], wait)
            if stop in ready:
                return
            if (self._sock in ready or pending) and not self._read():
                return
            self._generate()
            self._flush()
            self._server._touch()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._sock.sendall(data)

    def _read(self) -> bool:
        data = self._sock.recv(65536)
        if not data:
            return False
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:  # what a client's lost or halved frame leads to
            self._server.errors.append(f"connection {self._number}: {error!r}")
            self._flush()
            return False
        for event in events:
            if isinstance(event, h2.events.RequestReceived):
                record = self._records[event.stream_id] = StreamRecord(self._number, event.stream_id)
                self._server.streams.append(record)
            elif isinstance(event, h2.events.DataReceived):
                self._take(event)
            elif isinstance(event, h2.events.StreamEnded):
                self._begin(self._records[event.stream_id])
            elif isinstance(event, h2.events.StreamReset):
                record = self._records[event.stream_id]
                self._pay_back(record)
                if record.state != "completed":
                    record.state, record.code = "reset", int(event.error_code)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self._server.goaways.append(int(event.error_code or 0))
        return True

    def _take(self, event: Any) -> None:
        record = self._records[event.stream_id]
        record.body += event.data
        if self._server.greedy:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        else:
            record.unpaid += event.flow_controlled_length

    def _pay_back(self, record: StreamRecord) -> None:
        if record.unpaid:
            self._h2.increment_flow_control_window(record.unpaid)
            record.unpaid = 0

    def _begin(self, record: StreamRecord) -> None:
        body = json.loads(record.body)
        record.model, record.streamed = body["model"], bool(body.get("stream"))
        record.wanted = sys.maxsize if record.model == "endless" else body.get("max_tokens", self._server.tokens)
        record.state = "silent" if record.model == "silent" else "generating"
        record.due = time.monotonic()

    def _generate(self) -> None:
        for record in list(self._records.values()):
            while record.state == "generating" and time.monotonic() >= record.due:
                self._token(record)

    def _token(self, record: StreamRecord) -> None:
        if record.tokens >= record.wanted:
            self._finish(record)
            return
        if record.streamed:
            delta = {"index": 0, "delta": {"content": f"t{record.tokens} "}, "finish_reason": None}
            self._event(record, json.dumps({**_HEAD, "object": "chat.completion.chunk", "choices": [delta]}))
        record.tokens += 1
        record.due += 1 / self._server.rate if self._server.rate else 0.0
        if record.model == "stalls" and record.tokens >= STALLS_AFTER:
            record.state = "stalled"

    def _finish(self, record: StreamRecord) -> None:
        text = "".join(f"t{number} " for number in range(record.wanted))
        usage = {"prompt_tokens": 1, "completion_tokens": record.wanted, "total_tokens": record.wanted + 1}
        if not record.streamed:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._headers(record, "application/json")
            whole = {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}
            self._h2.send_data(record.stream, json.dumps(whole).encode())
        elif not record.ended:
            last = {"index": 0, "delta": {}, "finish_reason": "stop"}
            whole = {**_HEAD, "object": "chat.completion.chunk", "choices": [last], "usage": usage}
            self._event(record, json.dumps(whole))
            self._event(record, "[DONE]")
            record.ended = True
            if self._server.end_late:
                record.due = time.monotonic() + self._server.end_late
                return
        self._h2.end_stream(record.stream)
        record.state = "completed"

    def _headers(self, record: StreamRecord, kind: str) -> None:
        record.headers_sent = True
        headers = [(":status", "200"), ("content-type", kind), ("x-request-id", f"req_{next(_ids)}")]
        self._h2.send_headers(record.stream, headers)

    def _event(self, record: StreamRecord, data: str) -> None:
        if not record.headers_sent:
            self._headers(record, "text/event-stream")
        self._h2.send_data(record.stream, f"data: {data}\n\n".encode())


_ids = itertools.count(1)
_HEAD = {"id": "chatcmpl-h2", "created": 1, "model": "m"}
