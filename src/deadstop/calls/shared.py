"""A socket that one thread reads from while others write to it: HTTP/2, where it carries the calls of them all."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Any, Optional

from deadstop.calls import connect
from deadstop.calls.call import Call
from deadstop.calls.multiplexed import Overdue

__all__ = ["SharedSocket"]

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class SharedSocket:
    """Reads and writes, each for itself, and waits for them where a cancel can reach it.

    A socket's timeout is for whoever uses it, and OpenSSL does not stand a read and a write at once (CPython keeps
    them apart from 3.13.4 on). So a thread is alone with the socket for the moment in which it reads or writes what
    it can without blocking, and waits besides.
    """

    def __init__(self, sock: socket.socket, core: Any) -> None:
        self._sock = sock
        self._core = core
        self._alone = threading.Lock()

    def read(self, call: Optional[Call], max_bytes: int, timeout: Optional[float]) -> bytes:
        """As the package's own stream. Raises `Interruption` when `call` is cancelled, `Overdue` when its time is up.

        In neither case was anything read: it may have been others'.
        """
        deadline = _deadline(timeout)
        while True:
            if call is not None:
                call.check()
            try:
                with self._alone:
                    self._sock.settimeout(0.0)
                    return self._sock.recv(max_bytes)
            except _NOT_NOW:
                pass
            except OSError as error:
                raise self._core.ReadError(error) from error
            left = _left(deadline)
            if not connect.wait(call, self._sock, left if call is None else call.timeout(left)):
                if call is not None and call.read_deadline is not None and time.monotonic() >= call.read_deadline:
                    raise Overdue
                raise self._core.ReadTimeout("timed out")

    def write(self, buffer: bytes, timeout: Optional[float]) -> None:
        """As the package's own stream. Not interrupted: a part of it would be the end of the connection for all."""
        deadline = _deadline(timeout)
        rest = memoryview(buffer)
        while rest:
            try:
                with self._alone:
                    self._sock.settimeout(0.0)
                    rest = rest[self._sock.send(rest) :]
                continue
            except _NOT_NOW:
                pass
            except OSError as error:
                raise self._core.WriteError(error) from error
            if not connect.wait(None, self._sock, _left(deadline), write=True):
                raise self._core.WriteTimeout("timed out")


def _deadline(timeout: Optional[float]) -> Optional[float]:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: Optional[float]) -> Optional[float]:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
