"""Between a process and the server of a bus, so that a test decides what is on its way when."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Callable
from urllib.parse import urlsplit

__all__ = ["Proxy"]


class Proxy:
    """`out` is called with each line before it goes to the server, and what comes after it waits meanwhile. `went` and
    `came` are the lines that were passed on, to the server and from it."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self.out: Callable[[bytes], None] = lambda line: None
        self.went: list[bytes] = []
        self.came: list[bytes] = []
        self.open = threading.Event()  # while it is not set, who connects has to wait
        self.open.set()
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"nats://127.0.0.1:{self._listening.getsockname()[1]}{self._server.path}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                self.open.wait()
                far = socket.create_connection((str(self._server.hostname), self._server.port or 4222))
                self._sockets += [near, far]
                for source, target, pass_on in ((near, far, self._out), (far, near, self._came)):
                    target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pump, args=(source, target, pass_on), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, pass_on: Callable[[socket.socket, bytes], None]) -> None:
        with contextlib.suppress(OSError), source, source.makefile("rb") as lines:
            for line in lines:
                pass_on(target, line)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def _out(self, target: socket.socket, line: bytes) -> None:
        self.out(line)
        target.sendall(line)
        self.went.append(line)

    def _came(self, target: socket.socket, line: bytes) -> None:
        target.sendall(line)
        self.came.append(line)

    def answered(self) -> bool:
        """Whether the server has answered each PING."""
        return sum(each == b"PING\r\n" for each in self.went) <= sum(each == b"PONG\r\n" for each in self.came)

    def cut(self) -> None:
        """End the connections there are. What is on its way is lost."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def close(self) -> None:
        self.open.set()
        with contextlib.suppress(OSError), self._listening:
            self._listening.shutdown(socket.SHUT_RDWR)  # whoever waits there is told
        self.cut()
