"""Connecting so that a cancel can end it: name lookup, TCP connect, TLS handshake. For threads.

The pool's own backend blocks in `getaddrinfo` and `connect`, where nothing can reach it. Here the lookup runs in a
helper thread (no system offers a way to stop one; the thread ends when the resolver answers), and the connect is
non-blocking with a wake-up. The semantics are `socket.create_connection`'s: each address in turn, with the timeout
for each.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional

from deadstop.calls.call import Call, Interruption
from deadstop.calls.timers import LONGEST
from deadstop.core.model import Interrupted, Phase

__all__ = ["connect_tcp", "core", "given", "start_tls", "stream_of", "wait"]

_Address = tuple[Any, Any, int, str, Any]


def core(name: str) -> Any:
    """httpcore or httpcore2: the package whose exceptions and streams a pool works with."""
    return importlib.import_module(name or "httpcore")


def stream_of(core: Any, sock: socket.socket) -> Any:
    """The package's own stream over a connected socket."""
    try:
        module = importlib.import_module(f"{core.__name__}._backends.sync")
    except ModuleNotFoundError:  # httpcore before 0.17.3
        module = importlib.import_module(f"{core.__name__}.backends.sync")
    return module.SyncStream(sock)


def given(socket_options: Optional[Iterable[Any]]) -> tuple[Any, ...]:
    """The last argument of a backend's `connect_tcp`, which httpcore before 0.17.2 does not know, and never gives."""
    return () if socket_options is None else (socket_options,)


@contextlib.contextmanager
def _mapped(core: Any) -> Iterator[None]:
    try:
        yield
    except socket.timeout as error:
        raise core.ConnectTimeout(str(error)) from error
    except OSError as error:
        raise core.ConnectError(str(error)) from error


def connect_tcp(
    call: Call,
    core: Any,
    host: str,
    port: int,
    timeout: Optional[float],
    local_address: Optional[str],
    socket_options: Optional[Iterable[Any]],
) -> socket.socket:
    """A connected TCP socket. Raises `Interruption` as soon as `call` is cancelled; else httpcore's errors."""
    with _mapped(core):
        began = time.monotonic()
        call.phase = Phase.RESOLVING
        addresses = _resolve(call, host, port)
        resolved = time.monotonic()
        call.phase = Phase.CONNECTING
        sock = _connect_first(call, addresses, timeout, local_address)
        call.note(dns=resolved - began, connect=time.monotonic() - resolved)
        try:
            for option in socket_options or ():
                sock.setsockopt(*option)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
    return sock


def _resolve(call: Call, host: str, port: int) -> list[_Address]:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:  # nothing to look up, so nothing can hang
        return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    found: list[_Address] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
        except BaseException as error:  # handed to the caller's thread
            failed.append(error)
        finally:
            done.set()

    call.waker = done.set
    try:
        call.check()
        try:
            threading.Thread(target=look_up, name=f"deadstop lookup of {host}", daemon=True).start()
        except RuntimeError:  # no thread to be had (a limit, the interpreter's end): as the plain client does it
            look_up()
        done.wait()
    finally:
        call.waker = None
    if call.cancelled:
        _interrupted(call, Interrupted.WAKE)
    if failed:
        raise failed[0]
    return found


def _connect_first(
    call: Call, addresses: list[_Address], timeout: Optional[float], local_address: Optional[str]
) -> socket.socket:
    last: Optional[OSError] = None
    for family, kind, protocol, _name, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            if local_address is not None:
                sock.bind((local_address, 0))
            _connect(call, sock, address, timeout)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise last or OSError("getaddrinfo returns an empty list")


def _connect(call: Call, sock: socket.socket, address: Any, timeout: Optional[float]) -> None:
    sock.setblocking(False)
    status = sock.connect_ex(address)
    if status not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN):
        raise OSError(status, os.strerror(status))
    if status:
        if not _wait(call, sock, timeout, write=True, how=Interrupted.CONNECT):
            raise socket.timeout("timed out")
        status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            raise OSError(status, os.strerror(status))
    call.check()
    sock.settimeout(timeout)


def wait(call: Optional[Call], sock: Any, timeout: Optional[float], *, write: bool = False) -> bool:
    """Wait until `sock` can be read (or written). False when the time is up.

    Raises `Interruption` as soon as `call` must stop, and leaves the socket alone.
    """
    if call is None:
        return _poll(None, sock, timeout, write)
    return _wait(call, sock, timeout, write=write, how=Interrupted.WAKE, must_stop=call.must_stop)


def _wait(
    call: Call,
    sock: Any,
    timeout: Optional[float],
    *,
    write: bool,
    how: Interrupted,
    must_stop: Optional[Callable[[], bool]] = None,
) -> bool:
    """Wait for `sock` or for the cancel: then raise `Interruption`. False when the time is up."""
    stopped = must_stop or (lambda: call.cancelled)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    closing = threading.Lock()

    def wake() -> None:
        # Not blocking: who holds the lock is done waiting, and looks at `cancelled` next. It keeps the byte from
        # going to whatever gets the descriptor after the close.
        if closing.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError):
                    theirs.send(b"\0")
            finally:
                closing.release()

    call.waker = wake
    try:
        if stopped():
            _interrupted(call, how)
        ready = _poll(ours, sock, timeout, write)
    finally:
        call.waker = None
        with closing:
            theirs.close()
        ours.close()
    if stopped():
        _interrupted(call, how)
    return ready


def _poll(ours: Optional[socket.socket], sock: Any, timeout: Optional[float], write: bool) -> bool:
    wakers = [] if ours is None else [ours]
    timeout = None if timeout is None else min(max(timeout, 0.0), LONGEST)
    if hasattr(select, "poll"):  # no limit on descriptors, as select has
        poll = select.poll()
        for each in wakers:
            poll.register(each, select.POLLIN)
        poll.register(sock, select.POLLOUT if write else select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))
    read, writes = (wakers, [sock]) if write else ([*wakers, sock], [])
    return any(select.select(read, writes, writes, timeout))


def _interrupted(call: Call, how: Interrupted) -> None:
    call.interrupted = how
    raise Interruption(call)


def start_tls(
    call: Call, holder: Any, inner: Any, core: Any, context: ssl.SSLContext, server_hostname: Any, timeout: Any
) -> Any:
    """A TLS stream over `inner`, whose socket `holder` can shut down at any moment of the handshake."""
    plain = inner.get_extra_info("socket")
    if not isinstance(plain, socket.socket) or isinstance(plain, ssl.SSLSocket):
        # TLS within TLS, or somebody else's stream: its socket object stays valid throughout.
        return inner.start_tls(context, server_hostname, timeout)
    with _mapped(core):
        # `wrap_socket` moves the descriptor to a new object, so the handshake must wait until `holder` knows it.
        plain.settimeout(timeout)
        sock = context.wrap_socket(plain, server_hostname=server_hostname, do_handshake_on_connect=False)
        stream = stream_of(core, sock)
        holder.swap(stream)
        call.check()
        sock.do_handshake()
    return stream
