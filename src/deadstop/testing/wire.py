"""A non-blocking socket, with or without TLS, that learns from the kernel at once when its peer has gone."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time

_GONE = getattr(select, "POLLRDHUP", 0)  # Linux: seen even while unread data stands before the end
_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Ended(Exception):
    """Ends the work on a request or a connection; the subclasses say why. Internal to the kit."""


class PeerGone(Ended):
    """The peer has closed or reset the connection."""


class HungUp(Ended):
    """A fault has closed the connection."""


class Stopped(Ended):
    """The server is being stopped."""


class Wire:
    """One accepted connection. Every wait also watches the peer and the server's stop.

    `stop_fd` becomes readable when the server is stopped; whatever waits then raises Stopped.
    """

    def __init__(self, sock: socket.socket, stop_fd: int) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inbox = bytearray()
        """Bytes that arrived and that nobody has taken yet, decrypted."""
        self.gone_at: float | None = None
        """When the kernel first said that the peer is gone (monotonic seconds)."""
        self._sock = sock
        self._fd = sock.fileno()
        self._stop_fd = stop_fd
        self._poller = select.poll()
        self._poller.register(stop_fd, select.POLLIN)
        self._poller.register(self._fd, select.POLLIN)
        self._registered = True
        self._tls: ssl.SSLObject | None = None
        self._shaken = False
        self._tls_in, self._tls_out = ssl.MemoryBIO(), ssl.MemoryBIO()

    # -- waiting

    def watch(self, deadline: float | None, *, writable: bool = False) -> None:
        """Waits until something happens on the connection or the `deadline` (monotonic seconds) comes.

        Raises Stopped.
        """
        if writable:
            self._interest(select.POLLIN | select.POLLOUT)
        try:
            if deadline is None:
                ready = self._poller.poll()
            else:
                ready = self._poller.poll(max(0.0, (deadline - time.monotonic()) * 1000))
        finally:
            if writable:
                self._interest(select.POLLIN)
        for fd, happened in ready:
            if fd == self._stop_fd:
                raise Stopped
            if happened & select.POLLIN:
                self._receive()
            if happened & _BROKEN:
                self._mark_gone()
                if self._registered:  # A broken socket is always ready: watching it would spin.
                    self._poller.unregister(self._fd)
                    self._registered = False

    def pause(self, seconds: float | None) -> None:
        """Waits so long (None: for ever). Raises PeerGone as soon as the peer is gone, and Stopped."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            if self.gone_at is not None:
                raise PeerGone
            if deadline is not None and time.monotonic() >= deadline:
                return
            self.watch(deadline)

    def hold(self) -> None:
        """Reads nothing until the peer is seen to be gone or the server is stopped. Never returns."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self._poller.modify(self._fd, _GONE)
        while True:
            for fd, _ in self._poller.poll():
                raise Stopped if fd == self._stop_fd else PeerGone

    def is_there(self) -> bool:
        """Whether the peer is. Looks at the kernel without taking anything, so that any thread may ask."""
        if self.gone_at is not None:
            return False
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False

    # -- reading and writing

    def read(self) -> bytes:
        """The next bytes; empty at the end. Raises Stopped."""
        while not self.inbox and self.gone_at is None:
            self.watch(None)
        data = bytes(self.inbox)
        self.inbox.clear()
        return data

    def encode(self, data: bytes) -> bytes:
        """The bytes that go over the wire for these."""
        if self._tls is None:
            return data
        self._tls.write(data)
        return self._tls_out.read()

    def send(self, data: bytes | memoryview) -> int:
        """Gives encoded bytes to the kernel and returns how many it took. Raises PeerGone when it refuses."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._mark_gone()
            raise PeerGone from None

    def start_tls(self, context: ssl.SSLContext) -> None:
        """The server's side of the handshake. Raises PeerGone and Stopped; ssl.SSLError where it fails."""
        self._tls_in.write(bytes(self.inbox))
        self.inbox.clear()
        tls = context.wrap_bio(self._tls_in, self._tls_out, server_side=True)
        self._tls = tls
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if self.gone_at is not None:
                    raise PeerGone from None
                self.watch(None)
                continue
            self._shaken = True
            self._decrypt()
            return

    def close(self, *, reset: bool = False) -> None:
        """Closes the socket; with `reset` the peer gets a RST."""
        if reset:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    # -- inside

    def _interest(self, events: int) -> None:
        if self._registered:
            # After the end there is nothing more to read, and the end itself is always readable.
            self._poller.modify(self._fd, events if self.gone_at is None else events & ~select.POLLIN)

    def _mark_gone(self) -> None:
        if self.gone_at is None:
            self.gone_at = time.monotonic()
            self._interest(select.POLLIN)

    def _receive(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._mark_gone()
        elif self._tls is None:
            self.inbox += data
        else:
            self._tls_in.write(data)
            self._decrypt()

    def _decrypt(self) -> None:
        if self._tls is None or not self._shaken:
            return
        try:
            while True:
                data = self._tls.read(1 << 16)
                if not data:
                    self._mark_gone()
                    break
                self.inbox += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._mark_gone()
        self._flush()

    def _flush(self) -> None:
        data = self._tls_out.read()
        if data:
            with contextlib.suppress(OSError):
                self._sock.send(data)
