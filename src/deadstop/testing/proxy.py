"""A small HTTP proxy: CONNECT tunnels and plain forwarding."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit

_HEAD_END = b"\r\n\r\n"


class FakeProxy:
    """A proxy on 127.0.0.1, running inside `with`.

    The end of either side ends the other at once. A plain request is passed on as it came, its target in
    absolute form (which every HTTP/1.1 server takes, RFC 9112 3.2.2); its connection stays with that one
    server.
    """

    def __init__(self) -> None:
        self.tunnels = 0
        """How many CONNECT tunnels were opened so far."""
        self.forwards = 0
        """How many connections were forwarded without one so far."""

    def __enter__(self) -> FakeProxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._stop_fd, self._stop_writer = os.pipe()
        self._threads = [threading.Thread(target=self._accept, name="fake-proxy-accept", daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._stop_writer)
        for thread in self._threads:  # the first one, which may add to the list, ends before the second is looked at
            thread.join(5.0)
        self._listener.close()
        os.close(self._stop_fd)

    @property
    def url(self) -> str:
        """What goes into `proxy=` or HTTPS_PROXY."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while self._ready(self._listener):
            client, _ = self._listener.accept()
            thread = threading.Thread(target=self._serve, args=(client,), name="fake-proxy", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while _HEAD_END not in head:
                data = client.recv(1 << 16) if self._ready(client) else b""
                if not data:
                    return
                head += data
            method, target = head.split(b" ", 2)[:2]
            is_tunnel = method == b"CONNECT"
            where = urlsplit(f"//{target.decode()}" if is_tunnel else target.decode())
            try:
                server = socket.create_connection((where.hostname, where.port or 80), timeout=5.0)
            except OSError:
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
                return
            with server:
                for side in (client, server):
                    side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if is_tunnel:
                    self.tunnels += 1
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    head = head.split(_HEAD_END, 1)[1]
                else:
                    self.forwards += 1
                server.sendall(head)
                self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Copies both ways until either side ends; the caller then closes both."""
        other = {client.fileno(): (client, server), server.fileno(): (server, client)}
        poller = select.poll()
        for fd in (self._stop_fd, *other):
            poller.register(fd, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == self._stop_fd:
                    return
                source, sink = other[fd]
                data = source.recv(1 << 16)
                if not data:
                    return
                sink.sendall(data)

    def _ready(self, sock: socket.socket) -> bool:
        """Waits until the socket has something to read; False when the proxy is stopped."""
        poller = select.poll()
        poller.register(self._stop_fd, select.POLLIN)
        poller.register(sock, select.POLLIN)
        return all(fd != self._stop_fd for fd, _ in poller.poll())
