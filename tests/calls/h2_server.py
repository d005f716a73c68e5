"""A chat completion server over HTTP/2, that records what becomes of each stream.

What it does is said by the request's model: `m` answers, `endless` goes on until `finish()`, `silent` reads the
request and says nothing, `stalls` falls silent after three tokens, `flood` sends one token and then as much as the
client's windows allow, `background` starts a response that `finish()` lets it tell of. `greedy=False` never gives back
the window that a body has used up, so that a body larger than 65,535 bytes gets stuck.
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
    body: bytearray = field(default_factory=bytearray, repr=False)  # one may have 30 MB
    unpaid: int = 0  # bytes whose window was not given back
    wanted: int = 0
    tokens: int = 0
    code: int | None = None  # of the reset
    due: float = 0.0
    headers_sent: bool = False
    ended: bool = False  # its events are being written, and then it is done
    path: str = ""
    resets: int = 0  # how often the client has reset it


class H2Server:
    """Listens on 127.0.0.1 inside `with`. `rate` is tokens per second (0: at once).

    `max_streams` is how many streams it allows at a time, `end_late` how long (seconds) after its last event a stream
    ends, `mute` how many connections are accepted first and never spoken to. `wide`: its windows hold any body, and
    its socket's buffer is small.
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
        wide: bool = False,
    ) -> None:
        self.rate = rate
        self.tokens = tokens
        self.greedy = greedy
        self.max_streams = max_streams
        self.end_late = end_late
        self.mute = mute
        self.wide = wide
        self._deaf = threading.Event()
        self._reads_nothing = threading.Event()
        self.full = threading.Event()  # a flood has used up the client's windows
        self.farewells: list[str] = []  # "goaway", "drop": what to do next on each connection
        self.streams: list[StreamRecord] = []
        self.connections = 0
        self.goaways: list[int] = []
        self.errors: list[str] = []
        self._ssl_context = ssl_context
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        if wide:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
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
        """The endless answers come to their end, and background responses are told of."""
        for record in self.of("endless"):
            record.wanted = min(record.wanted, record.tokens + 1)
        for record in self.of("background"):
            record.due = 0.0

    def stop_reading(self) -> None:
        """Until `read_on()` it goes on writing, and reads nothing. There is one connection."""
        self._deaf.set()
        assert self._reads_nothing.wait(10)

    def read_on(self) -> None:
        self._deaf.clear()
        self._reads_nothing.clear()

    def is_deaf(self) -> bool:
        if self._deaf.is_set():
            self._reads_nothing.set()
        return self._deaf.is_set()

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
        self._raw = bytearray()

    def run(self, stop: socket.socket) -> None:
        allowed = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self._server.max_streams}
        if self._server.wide:
            allowed[h2.settings.SettingCodes.INITIAL_WINDOW_SIZE] = 2**30
        self._h2.local_settings = h2.settings.Settings(client=False, initial_values=allowed)
        self._h2.initiate_connection()
        if self._server.wide:
            self._h2.increment_flow_control_window(2**30)
        self._flush()
        while True:
            due = [each.due for each in self._records.values() if each.state == "generating"]
            pending = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()
            # What a test asks for meanwhile wakes nobody, so it is looked for often.
            wait = 0 if pending else min(max(min(due, default=float("inf")) - time.monotonic(), 0), 0.01)
            deaf = self._server.is_deaf()
            ready, _, _ = select.select([stop] if deaf else [self._sock, stop], [], [], wait)
            if stop in ready:
                return
            if self._server.farewells and self._records:
                if self._server.farewells.pop() == "drop":
                    return
                self._h2.close_connection()
                self._flush()
            if not deaf and (self._sock in ready or pending) and not self._read():
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
                record.path = next(value.decode() for name, value in event.headers if bytes(name) == b":path")
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
        self._count_resets(data)
        return True

    def _count_resets(self, data: bytes) -> None:
        """h2 tells of a stream's first reset only."""
        self._raw += data
        if self._raw.startswith(b"PRI"):
            if len(self._raw) < 24:
                return
            del self._raw[:24]
        while len(self._raw) >= 9 and len(self._raw) >= 9 + int.from_bytes(self._raw[:3], "big"):
            length, kind, stream = (int.from_bytes(self._raw[a:b], "big") for a, b in ((0, 3), (3, 4), (5, 9)))
            if kind == 3:
                self._records[stream].resets += 1
            del self._raw[: 9 + length]

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
        body = json.loads(record.body or b"{}")
        record.model, record.streamed = body.get("model", ""), bool(body.get("stream"))
        record.wanted = sys.maxsize if record.model == "endless" else body.get("max_tokens", self._server.tokens)
        record.state = "silent" if record.model == "silent" else "generating"
        record.due = time.monotonic()
        if record.path.partition("/responses")[1]:
            record.due = float("inf") if record.model == "background" else 0.0

    def _generate(self) -> None:
        for record in list(self._records.values()):
            while record.state == "generating" and time.monotonic() >= record.due:
                self._token(record)

    def _token(self, record: StreamRecord) -> None:
        if record.path.partition("/responses")[1]:
            self._tell(record)
            return
        if record.model == "flood" and record.tokens:
            self._flood(record)
            return
        if record.tokens >= record.wanted:
            self._finish(record)
            return
        if self._h2.local_flow_control_window(record.stream) < 1024:
            record.due = time.monotonic() + 0.01  # there is no room for an event
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

    def _tell(self, record: StreamRecord) -> None:
        status = "in_progress" if record.model == "background" else "cancelled"
        asked = record.path.partition("/responses/")[2].partition("/")[0]
        response = {"object": "response", "status": status, "background": True, "output": []}
        self._headers(record, "application/json")
        self._h2.send_data(record.stream, json.dumps({**_HEAD, **response, "id": asked or "resp_h2"}).encode())
        self._h2.end_stream(record.stream)
        record.state = "completed"

    def _flood(self, record: StreamRecord) -> None:
        room = min(self._h2.local_flow_control_window(record.stream), self._h2.max_outbound_frame_size)
        if room == 0:
            self._server.full.set()
            record.due = time.monotonic() + 0.01
            return
        self._h2.send_data(record.stream, b":" * room)  # of a comment that never ends
        self._flush()

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
