"""A client of sockets alone, which leaves a connection exactly when and how a test says."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from deadstop.testing import FakeOpenAI, FakeProcess

CHAT = "/v1/chat/completions"


class KitClient:
    """One connection to a fake server."""

    def __init__(self, server: FakeOpenAI | FakeProcess, tls: ssl.SSLContext | None = None) -> None:
        url = urlsplit(server.base_url)
        self.sock: socket.socket = socket.create_connection((url.hostname, url.port), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self.seen = b""

    def __enter__(self) -> KitClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, path: str = CHAT, body: Any = None, *, claimed: int | None = None, **fields: Any) -> None:
        """Sends a POST with these JSON fields; `claimed` is a false Content-Length."""
        data = json.dumps({"model": "m", "messages": [], **fields} if body is None else body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: fake\r\ncontent-length: {claimed or len(data)}\r\n\r\n"
        self.sock.sendall(head.encode() + data)

    def read_until(self, mark: bytes) -> bytes:
        """All that has come, once it holds `mark`; or at the connection's end."""
        while mark not in self.seen:
            data = self.sock.recv(1 << 16)
            if not data:
                break
            self.seen += data
        return self.seen

    def read_all(self) -> bytes:
        """All that comes until the connection ends, by whatever end."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.sock.recv(1 << 16):
                self.seen += data
        return self.seen

    def is_silent(self, seconds: float = 0.05) -> bool:
        """Whether nothing comes for so long, the connection's end included."""
        return not select.select([self.sock], [], [], seconds)[0]

    def close(self) -> None:
        """Leaves with a FIN."""
        self.sock.close()

    def reset(self) -> None:
        """Leaves with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def events_of(answer: bytes) -> list[Any]:
    """The JSON of each complete event in what was received, in order."""
    found = []
    for line in answer.split(b"\n"):
        if line.startswith(b"data: {"):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line[len(b"data: ") :]))
    return found
