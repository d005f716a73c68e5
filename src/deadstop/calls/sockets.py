"""Whose a socket is just now, and how it is shut down for that call alone."""

from __future__ import annotations

import os
import socket
import threading
import weakref
from asyncio import trsock
from typing import Any, Optional

from deadstop.calls.call import Call
from deadstop.calls.loops import stands_in
from deadstop.calls.multiplexed import PREFACE
from deadstop.calls.queued import uses
from deadstop.core.model import Phase

__all__ = ["Owned", "follow", "shut_down"]

BOTH = socket.SHUT_RDWR

_process = object()
"""Another one in a forked child. Asking the system for the process's number takes longer than all the rest."""


def _forked() -> None:
    global _process
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Owned:
    """A network stream that knows which call is using it, and can be interrupted for that call alone (I9).

    The base of the threads' and the tasks' network streams.
    """

    def __init__(self, inner: Any, core: Any = None) -> None:
        self._inner = inner
        self._core = core
        # Reentrant: a signal handler may let go of a stream on top of whoever is at work on it.
        self._lock = threading.RLock()
        self._strikers: list[int] = []  # the threads that are shutting it down just now
        self._owner: Optional[Call] = None
        self.closed = False
        self._dead = False
        self._process = _process  # a forked child has the socket too, and must not shut it down
        self._sock: Any = None  # what `inner` reads from; looked up before it is needed
        self._shut: Any = None  # its `shutdown`, where that is all that is to be called
        self._inode: Optional[int] = None  # of what only passes for a socket
        self._multiplexed: Optional[bool] = None  # HTTP/2; known from the first write on
        self._self = weakref.ref(self)  # what a call is given: one that is over is not to keep the connection
        self._begun = False  # a request was written to it, and no greeting of a proxy comes any more

    def take(self, call: Optional[Call]) -> None:
        """From now on `call` is using the stream. The caller looks at `call.cancelled` next."""
        with self._lock:
            self._owner = call
            if self._strikers:
                self._let_them_end()
        if call is not None:
            if self._sock is None:
                sock = self._inner.get_extra_info("socket")
                # What asyncio puts around a socket takes as long as the shutdown.
                self._sock = getattr(sock, "_sock", None) if type(sock) is trsock.TransportSocket else sock
                self._inode = None if isinstance(self._sock, socket.socket) else _inode(self._sock)
                self._shut = self._sock.shutdown if type(self._sock) is socket.socket else None
            call.socket = self
            call.connection = self._self

    def is_shared(self, buffer: bytes) -> bool:
        """Whether what is written, `buffer` now, is HTTP/2: then the connection is no call's own."""
        if self._multiplexed is None:
            self._multiplexed = bytes(buffer[: len(PREFACE)]) == PREFACE
        return self._multiplexed

    def share(self, call: Optional[Call]) -> None:
        """`call` is about to write to a connection that others use, too."""
        if call is not None and not call.multiplexed:
            call.multiplexed, call.sent = True, call.sent or not call.aside
            call.phase = Phase.SENDING

    def greets_proxy(self, buffer: bytes) -> bool:
        """Whether `buffer`, written first, is for a proxy on the way (CONNECT, SOCKS 5): nothing of the request itself
        leaves yet."""
        first = bytes(buffer[:8])
        return first == b"CONNECT " or first[:1] in (b"\x05", b"\x01")

    def let_go(self, call: Call) -> None:
        """`call` has left the connection: from now on an interruption of it does nothing here."""
        with self._lock:
            if self._owner is call:
                self._owner = None
                if self._strikers:
                    self._let_them_end()

    def _let_them_end(self) -> None:
        """Wait for the other threads that found the stream as it was until now, and are shutting it down.

        That is one system call, so nobody wakes this one. A signal handler may stand on top of one of them.
        """
        pause, me = threading.Lock(), threading.get_ident()
        pause.acquire()
        while self._process is _process:
            others = [each for each in list(self._strikers) if each != me]
            if not others:
                return
            if not pause.acquire(timeout=0.0001) and not any(stands_in(each, Owned.interrupt) for each in others):
                self._strikers.clear()  # broken off at the very end, as by Ctrl-C

    def interrupt(self, call: Call) -> bool:
        """Shut the socket down if `call` is using it. Whether it was. Never blocks; any thread."""
        # Without the lock, which takes longer than the shutdown, cold: who changes what is looked at here waits for
        # those who are in `_strikers` after, and looks at `cancelled`.
        me = threading.get_ident()
        try:
            self._strikers.append(me)
            if self._owner is not call or self.closed or self._multiplexed or self._process is not _process:
                return False
            self._dead = True
            shut = self._shut
            if shut is None:
                return shut_down(self._sock or self._inner.get_extra_info("socket"), self._inode)
            shut(BOTH)  # as `shut_down` would; each step more is a microsecond, cold
            return True
        except OSError:  # not connected any more
            return False
        finally:
            if me in self._strikers:  # or a signal handler came before that
                self._strikers.remove(me)

    def swap(self, inner: Any) -> None:
        """The socket was wrapped anew (TLS): interrupt that one from now on."""
        with self._lock:
            self._inner, self._sock, self._shut = inner, None, None

    def hang_up(self) -> None:
        """The stream is about to be closed; whoever is blocked on it, in another thread, comes free first."""
        if self._dead:  # shut down already, by somebody who may still be at it
            self.closed = True
            if not self._strikers:
                self._owner = None
                return
        with self._lock:
            used = self._owner is not None or self._multiplexed
            if used and not self.closed and not self._dead and self._process is _process:
                shut_down(self._sock or self._inner.get_extra_info("socket"), self._inode)
            self.closed = True
            if self._strikers:
                self._let_them_end()

    def closing(self) -> None:
        """The stream is about to be closed: its descriptor must not be touched any more."""
        self.closed = True  # who shuts it down looks at that, after he is among the strikers
        if self._strikers:
            with self._lock:
                self._let_them_end()

    @property
    def gone(self) -> bool:
        """Whether the connection is over, by us or by the peer."""
        return self._dead or self.closed

    def get_extra_info(self, info: str) -> Any:
        """As the pool's own stream, except for whether it is readable.

        The pool asks that of an idle connection, to drop one that is at its end. One that was shut down is. One that
        a call has just taken is not, though its answer may be there already: httpcore 1.0.9 looks first and acts
        later, and has been seen to close it under that call (7 of 2,880 calls of six threads over two connections).
        """
        if info != "is_readable":
            return self._inner.get_extra_info(info)
        return self._dead or (self._inner.get_extra_info(info) and self._owner is None)


def follow(call: Call, stream: Any, pools: list[Any]) -> None:
    """The answer of `call` is on `stream`, which is not the last that the call took: its transport asks for more than
    that, after it or beside it. Now it is the call's, if it is still under way there."""
    if not isinstance(stream, Owned) or stream._multiplexed or not any(uses(pool, call, stream) for pool in pools):
        return
    before = call.socket
    if before is not None:
        before.let_go(call)
    stream.take(call)  # the caller looks at `cancelled` next


def shut_down(sock: Any, inode: Optional[int] = None) -> bool:
    """End every blocked read and write on `sock`, and tell the peer. Whether there was a connection to end.

    The socket stays open: it is its owner who closes it, so its descriptor can't be reused under our hands. uvloop is
    one that closes it when the peer resets, and its stand-in keeps the number: `inode` says what it was a number of.
    """
    if sock is None:
        return False
    try:
        if isinstance(sock, socket.socket):
            # Not `SSLSocket.shutdown`: that one takes the TLS layer off under the thread that is reading.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)
    except (TypeError, AttributeError):  # uvloop's stand-in for a socket can't; its descriptor can
        return _shut_down_descriptor(sock, inode)
    except OSError:  # not connected any more
        return False
    return True


def _shut_down_descriptor(sock: Any, inode: Optional[int]) -> bool:
    try:
        with socket.socket(fileno=os.dup(sock.fileno())) as twin:
            if inode is not None and _inode(twin) != inode:
                return False  # somebody else's by now
            twin.shutdown(socket.SHUT_RDWR)
    except (OSError, AttributeError):
        return False
    return True


def _inode(sock: Any) -> Optional[int]:
    try:
        return os.fstat(sock.fileno()).st_ino
    except (OSError, AttributeError, TypeError, ValueError):
        return None
