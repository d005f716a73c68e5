"""What a task's connections are made of: the network backend and its streams, which a cancel can reach.

While a task is inside a request, a cancel scope around that ends it wherever it waits. Afterwards a stream is read by
whatever task holds it, and its socket is shut down, as a thread's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Iterable
from typing import Any, Optional

import anyio

from deadstop.calls.call import Call, Interruption, active_call, current_call
from deadstop.calls.connect import given
from deadstop.calls.shared import Outbox
from deadstop.calls.sockets import Owned
from deadstop.core.model import Phase

__all__ = ["Backend"]


class _Stream(Owned):
    """A network stream of a task that a cancel can reach."""

    _outbox: Optional[Outbox] = None

    async def read(self, max_bytes: int, timeout: Optional[float] = None) -> bytes:
        call = self._owner
        if call is None:
            return await self._inner.read(max_bytes, timeout)  # type: ignore[no-any-return]
        if call.cancelled and call.must_stop():
            raise Interruption(call)
        if call.phase is Phase.SENDING:
            call.request_sent()
        try:
            data: bytes = await self._inner.read(
                max_bytes, timeout if call.read_deadline is None else call.timeout(timeout)
            )
        except Exception:
            if call.cancelled:
                raise Interruption(call) from None
            raise
        if call.cancelled and call.must_stop():
            raise Interruption(call)
        return data

    async def write(self, buffer: bytes, timeout: Optional[float] = None) -> None:
        if not buffer and not self._multiplexed:  # the end of a request that has said all
            return
        call = self._owner
        if call is not None and call.phase is Phase.SENDING and call is current_call.get():
            more = call.tracker is None  # of a request that has begun
        else:
            call, more = active_call(), False
        if self._multiplexed or (self._multiplexed is None and self.is_shared(buffer)):
            self.share(call)
            if buffer:
                if self._outbox is None:
                    self._outbox = Outbox(self._inner)
                await self._outbox.write(buffer, timeout)
            return
        if call is None:
            if self._owner is not None:
                self.take(None)
            await self._inner.write(buffer, timeout)
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
            await self._inner.write(buffer, timeout)
        except Exception:
            if call.cancelled:
                raise Interruption(call) from None
            raise
        if call.cancelled and call.must_stop():
            raise Interruption(call)

    async def aclose(self) -> None:
        self.closing()
        await self._inner.aclose()

    async def start_tls(self, ssl_context: Any, server_hostname: Optional[str] = None, timeout: Any = None) -> _Stream:
        call = active_call()
        began = time.monotonic()
        if call is not None:
            call.phase, call.connection = Phase.HANDSHAKING, self._self
        try:
            inner = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            # The pool has not seen this connection yet, so nobody else would close it.
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise
        if call is not None:
            self.let_go(call)  # a tunnel's: what is inside may be shared
            call.note(tls=time.monotonic() - began)
        return _Stream(inner, self._core)


class Backend:
    """Notes on the call what the pool's own network backend does. The scope around it ends it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Optional[float] = None,
        local_address: Optional[str] = None,
        socket_options: Optional[Iterable[Any]] = None,
    ) -> _Stream:
        call = active_call()
        began = time.monotonic()
        if call is not None:
            call.check()
            in_time = True
            if call.resolves_first and not _is_address(host):
                in_time = await _resolve(call, host, port, timeout)
                if timeout is not None:  # it is for both
                    timeout = max(timeout - (time.monotonic() - began), 0.0) if in_time else 0.0
                began = time.monotonic()
            if in_time:  # else the name is what it hangs at, to the end
                call.phase = Phase.CONNECTING
        try:
            inner = await self._inner.connect_tcp(host, port, timeout, local_address, *given(socket_options))
        except BaseException as error:
            await _close_connected(error)
            raise
        if call is not None:
            call.note(connect=time.monotonic() - began)
        return _Stream(inner)

    async def connect_unix_socket(
        self, path: str, timeout: Optional[float] = None, socket_options: Optional[Iterable[Any]] = None
    ) -> _Stream:
        return _Stream(await self._inner.connect_unix_socket(path, timeout, *given(socket_options)))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


async def _resolve(call: Call, host: str, port: int, timeout: Optional[float]) -> bool:
    """Look the name up before the connect does, so that it is seen how long that takes, and whether it hangs. Whether
    that ended within `timeout` (seconds)."""
    call.phase = Phase.RESOLVING
    began = time.monotonic()
    in_time = False
    with anyio.move_on_after(timeout):
        with contextlib.suppress(OSError):  # the connect will say what is wrong
            await anyio.getaddrinfo(host, port)
        in_time = True
    call.note(dns=time.monotonic() - began)
    return in_time


async def _close_connected(error: BaseException) -> None:
    """Close the connection that a cancelled `anyio.connect_tcp` had made already, and dropped.

    When the cancel comes between the end of its winning attempt and its return, it leaves the stream open, to be
    found by the garbage collector (anyio 3.7 to 4.16). All that is left of it then is a variable in the traceback.
    """
    trace = error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code.co_name == "connect_tcp" and frame.f_globals.get("__name__", "").startswith("anyio."):
            stream = frame.f_locals.get("connected_stream")
            if stream is not None:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
