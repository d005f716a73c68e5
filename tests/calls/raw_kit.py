"""A server over plain sockets, for what the fake server does not do."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any, Callable

import deadstop

CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
WHOLE = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
}  # fmt: skip


def event(delta: Any, finish: Any = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    event = {**WHOLE, "object": "chat.completion.chunk", "choices": choices, "usage": None, **more}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


EVENTS = [
    event({"role": "assistant", "content": "Hel"}),
    event({"content": "lo"}),
    event({}, "stop"),
    event({}, choices=[], usage=USAGE),
    b"data: [DONE]\n\n",
]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(data: Any, status: str = "200 OK", more: str = "") -> bytes:
    body = json.dumps(data).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def streamed(kind: Any = "text/event-stream") -> bytes:
    said = "" if kind is None else f"Content-Type: {kind}\r\n"
    return f"HTTP/1.1 200 OK\r\n{said}Transfer-Encoding: chunked\r\n\r\n".encode()


class Server:
    """`talk(server, connection, head, body)` answers each request."""

    def __init__(self, talk: Callable[..., Any]) -> None:
        self.talk = talk
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.go_on = threading.Event()
        self.asked = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            buffer = b""
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = connection.recv(65536)
                    if not data:
                        return
                    buffer += data
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                length = int(lengths[0].split(b":")[1]) if lengths else 0
                while len(buffer) < length:
                    buffer += connection.recv(65536)
                body, buffer = buffer[:length], buffer[length:]
                self.heads.append(head)
                self.bodies.append(body)
                self.asked.set()
                self.talk(self, connection, head, body)

    def close(self) -> None:
        self.go_on.set()
        self._listener.close()


def stream_all(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
    if not json.loads(body).get("stream"):
        connection.sendall(answer(WHOLE))
        return
    connection.sendall(streamed() + b"".join(chunk(each) for each in EVENTS) + b"0\r\n\r\n")


open_clients: list[Any] = []


def client_of(server: Any) -> Any:
    """A client for a server, or for the one at a URL; closed after the test."""
    url = server if isinstance(server, str) else server.url
    open_clients.append(deadstop.OpenAI(api_key="k", base_url=url, max_retries=0))
    return open_clients[-1]
