"""What a thread's connections are made of: the network backend and its streams, which a cancel can reach.

A blocked thread can't be interrupted; its socket can. From another thread `socket.shutdown(SHUT_RDWR)` ends a
blocked read or write within a millisecond, where every `close()` leaves it blocked until the read timeout
(measured; see docs/decisions). So every network stream knows the call that is using it just now.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Optional

from deadstop.calls import connect
from deadstop.calls.call import Call, Interruption, ReadInterruption, active_call, current_call
from deadstop.calls.shared import SharedSocket
from deadstop.calls.sockets import Owned
from deadstop.calls.turns import call_here
from deadstop.core.model import Phase

__all__ = ["Backend"]


class _Stream(Owned):
    """A blocking network stream that a cancel can reach."""

    _shared: Optional[SharedSocket] = None

    def read(self, max_bytes: int, timeout: Optional[float] = None) -> bytes:
        if self._shared is not None:
            return self._shared.read(call_here(), max_bytes, timeout)
        call = self._owner
        if call is None:
            return self._inner.read(max_bytes, timeout)  # type: ignore[no-any-return]
        if call.cancelled and call.must_stop():
            raise Interruption(call)
        if call.phase is Phase.SENDING:
            call.request_sent()
        try:
            data: bytes = self._inner.read(max_bytes, timeout if call.read_deadline is None else call.timeout(timeout))
        except Exception:
            if call.cancelled:
                raise (ReadInterruption if self._begun else Interruption)(call) from None
            raise
        if call.cancelled and ((call.tracker is None and call.drain is None) or not call.held):  # `must_stop()`
            raise (ReadInterruption if self._begun else Interruption)(call)
        return data

    def write(self, buffer: bytes, timeout: Optional[float] = None) -> None:
        if not buffer and not self._multiplexed:  # the end of a request that has said all
            return
        call = self._owner
        if call is not None and call.phase is Phase.SENDING and call is current_call.get():
            more = call.tracker is None  # of a request that has begun
        else:
            call, more = active_call(), False
        if self._multiplexed or (self._multiplexed is None and self.is_shared(buffer)):
            self.share(call)
            if self._shared is None and type(self._inner).__name__ == "SyncStream":  # not TLS within TLS
                self._shared = SharedSocket(self._inner.get_extra_info("socket"), self._core)
            (self._shared or self._inner).write(buffer, timeout)
            return
        if call is None:
            if self._owner is not None:
                self.take(None)
            self._inner.write(buffer, timeout)
            return
        if self._owner is not call:
            self.take(call)
        if more:
            if call.cancelled:
                raise Interruption(call)
        elif not self._begun and self.greets_proxy(buffer):
            call.check()
        else:
            call.sending(False)
            self._begun = True
        try:
            self._inner.write(buffer, timeout)
        except Exception:
            if call.cancelled:
                raise Interruption(call) from None
            raise
        if call.cancelled and call.must_stop():
            raise Interruption(call)

    def close(self) -> None:
        self.hang_up()
        self._inner.close()

    def start_tls(self, ssl_context: Any, server_hostname: Optional[str] = None, timeout: Any = None) -> _Stream:
        call = active_call()
        if call is None:
            inner = self._inner.start_tls(ssl_context, server_hostname, timeout)
        else:
            inner = self._handshake(call, ssl_context, server_hostname, timeout)
        return _Stream(inner, self._core)

    def _handshake(self, call: Call, ssl_context: Any, server_hostname: Optional[str], timeout: Any) -> Any:
        self.take(call)
        call.phase = Phase.HANDSHAKING
        began = time.monotonic()
        try:
            call.check()
            inner = connect.start_tls(call, self, self._inner, self._core, ssl_context, server_hostname, timeout)
            self.let_go(call)
            call.check()
        except BaseException as error:
            self.close()
            if call.cancelled and isinstance(error, Exception):
                raise Interruption(call) from None
            raise
        call.note(tls=time.monotonic() - began)
        return inner


class Backend:
    """A network backend that connects so that a cancel can end it, in front of the pool's own."""

    def __init__(self, inner: Any, core: Any) -> None:
        self._inner = inner
        self._core = core
        self._own_connect = type(inner).__name__ == "SyncBackend" and type(inner).__module__.startswith("httpcore")

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Optional[float] = None,
        local_address: Optional[str] = None,
        socket_options: Optional[Iterable[Any]] = None,
    ) -> _Stream:
        call = active_call()
        if call is None or not self._own_connect:
            inner = self._inner.connect_tcp(host, port, timeout, local_address, *connect.given(socket_options))
        else:
            call.check()
            sock = connect.connect_tcp(call, self._core, host, port, timeout, local_address, socket_options)
            inner = connect.stream_of(self._core, sock)
        return _Stream(inner, self._core)

    def connect_unix_socket(
        self, path: str, timeout: Optional[float] = None, socket_options: Optional[Iterable[Any]] = None
    ) -> _Stream:
        call = active_call()
        if call is not None:
            call.check()
        inner = self._inner.connect_unix_socket(path, timeout, *connect.given(socket_options))
        return _Stream(inner, self._core)

    def sleep(self, seconds: float) -> None:
        call = active_call()
        if call is None:
            self._inner.sleep(seconds)
        else:
            call.sleep(seconds)
