"""A socket that one reads from while others write to it: HTTP/2, where it carries the calls of them all.

What was handed over to be written is written whole, whatever becomes of whoever wanted it: a part of it would be the
end of the connection for all. But nobody has to wait for that.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque
from typing import Any, Optional

import anyio

from deadstop.calls import connect
from deadstop.calls.call import Call, Interruption
from deadstop.calls.loops import Loop
from deadstop.calls.turns import Overdue, check, terms

__all__ = ["Outbox", "SharedSocket"]

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class SharedSocket:
    """For threads: reads and writes, each for itself, and waits for them where a cancel can reach it.

    A socket's timeout is for whoever uses it, and OpenSSL does not stand a read and a write at once (CPython keeps
    them apart from 3.13.4 on). So a thread is alone with the socket for the moment in which it reads or writes what
    it can without blocking, and waits besides. There is one reader and one writer at a time: httpcore sees to it.
    """

    def __init__(self, sock: socket.socket, core: Any) -> None:
        self._sock = sock
        self._core = core
        self._alone = threading.Lock()
        self._rest = bytearray()  # what is still to be written, by whoever writes next

    def read(self, call: Optional[Call], max_bytes: int, timeout: Optional[float]) -> bytes:
        """As the package's own stream. Raises `Interruption` when `call` is cancelled, `Overdue` when its time is up.

        In neither case was anything read: it may have been others'.
        """
        deadline = _deadline(timeout)
        while True:
            if call is not None and call.must_stop():
                raise Interruption(call)
            try:
                with self._alone:
                    self._sock.settimeout(0.0)
                    return self._sock.recv(max_bytes)
            except _NOT_NOW as error:
                write = isinstance(error, ssl.SSLWantWriteError)
            except OSError as error:
                raise self._core.ReadError(error) from error
            left = _left(deadline)
            if not connect.wait(call, self._sock, left if call is None else call.timeout(left), write=write):
                if call is not None and call.read_deadline is not None and time.monotonic() >= call.read_deadline:
                    raise Overdue
                raise self._core.ReadTimeout("timed out")

    def write(self, buffer: bytes, timeout: Optional[float]) -> None:
        """As the package's own stream. Raises `Interruption` or `Overdue` instead of waiting on.

        The rest is then left for whoever writes next, and goes out before what that one brings.
        """
        call, until = terms()
        deadline = _deadline(timeout)
        self._rest += buffer
        while self._rest:
            if call is not None:
                check(call)
            try:
                with self._alone:
                    self._sock.settimeout(0.0)
                    del self._rest[: self._sock.send(self._rest)]
                continue
            except _NOT_NOW as error:
                write = not isinstance(error, ssl.SSLWantReadError)
            except OSError as error:
                raise self._core.WriteError(error) from error
            left = _left(deadline)
            if until is not None:
                patience = max(until - time.monotonic(), 0.0)
                left = patience if left is None else min(left, patience)
            if not connect.wait(call, self._sock, left, write=write):
                if until is not None and time.monotonic() >= until:
                    raise Overdue
                raise self._core.WriteTimeout("timed out")


class Outbox:
    """For tasks: what is put in is written in turn, by a task of its own that no cancellation of a call reaches."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._letters: deque[_Letter] = deque()
        self._writing = False
        self._error: Optional[BaseException] = None

    async def write(self, buffer: bytes, timeout: Optional[float]) -> None:
        """As the package's own stream. A task that is cancelled meanwhile leaves `buffer` to be written."""
        if self._error is not None:
            self._fail()
        letter = _Letter(buffer, timeout)
        self._letters.append(letter)
        if not self._writing:
            self._writing = True
            Loop.current().start(self._write_all)
        await letter.done.wait()
        if not letter.written:
            self._fail()

    def _fail(self) -> None:
        raise ConnectionError("the event loop is closing") if self._error is None else self._error

    async def _write_all(self) -> None:
        try:
            while self._letters:
                letter = self._letters[0]
                await self._inner.write(letter.buffer, letter.timeout)
                self._letters.popleft()
                letter.written = True
                letter.done.set()
        except Exception as error:  # each of those who wait for it raises it
            self._error = error
        finally:
            self._writing = False
            while self._letters:
                self._letters.popleft().done.set()


class _Letter:
    __slots__ = ("buffer", "done", "timeout", "written")

    def __init__(self, buffer: bytes, timeout: Optional[float]) -> None:
        self.buffer = buffer
        self.timeout = timeout
        self.done = anyio.Event()
        self.written = False


def _deadline(timeout: Optional[float]) -> Optional[float]:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: Optional[float]) -> Optional[float]:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
