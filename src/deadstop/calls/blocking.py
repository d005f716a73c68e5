"""Interrupting a thread's call: the hook on the HTTP transport, and the body of the answer.

How a blocked thread comes free is in `deadstop.calls.network_blocking`.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Callable, Optional

from deadstop.calls import connect, multiplexed
from deadstop.calls.call import Call, Interruption, ReadInterruption, active_call
from deadstop.calls.drain import in_thread
from deadstop.calls.network_blocking import Backend
from deadstop.calls.pool import (
    CALL,
    and_new,
    core_of,
    drop_ended,
    hook_pool,
    lock_is_free,
    pools_of,
    recast,
    reclaim,
    renew,
    retire,
    transports_of,
)
from deadstop.calls.sockets import follow
from deadstop.calls.streamed import exchange_blocking
from deadstop.core.model import Phase

__all__ = ["close_ended", "close_pools", "hook_client", "reset_client"]


def hook_client(http_client: Any) -> bool:
    """Prepare every transport of a sync HTTP client. Idempotent; changes nothing for calls that are not ours.

    False if it has none that we know of (a mock).
    """
    transports = transports_of(http_client)
    for transport in transports:
        hook_transport(transport)
    return bool(transports)


def reset_client(http_client: Any) -> int:
    """Give every transport fresh pools. How many were replaced."""
    count = 0
    for transport in transports_of(http_client):
        for pool in renew(transport):
            count += 1
            for connection in retire(pool):
                connection.close()
    return count


def close_ended(http_client: Any) -> None:
    """Close the unused connections that the peer has ended and the pools would still give to a request."""
    for transport in transports_of(http_client):
        for pool in pools_of(transport):
            for connection in drop_ended(pool):
                with contextlib.suppress(Exception):  # it is over, whatever its end says
                    connection.close()


def close_pools(http_client: Any) -> None:
    """Close every connection of an HTTP client's pools, and nothing else of it."""
    for transport in transports_of(http_client):
        for pool in pools_of(transport):
            pool.close()


def hook_transport(transport: Any) -> None:
    """Prepare one sync transport (httpx or httpx2)."""
    for pool in pools_of(transport):
        hook_backend(pool)
    patched = getattr(transport, "__dict__", {}).get("handle_request")
    if patched is not None and not hasattr(patched, "_deadstop"):  # somebody has put their own on the instance
        transport.handle_request = _around(patched, transport)
    else:
        recast(transport, _interruptible)


def _around(send: Callable[[Any], Any], transport: Any) -> Callable[[Any], Any]:
    def handle_request(request: Any) -> Any:
        call = active_call()
        if call is None or call.exchanging:
            return send(request)
        return _exchange(call, request, send, transport)

    handle_request._deadstop = True  # type: ignore[attr-defined]
    return handle_request


def hook_backend(pool: Any) -> None:
    """Put our network backend in front of the pool's own. Idempotent."""
    if not isinstance(pool._network_backend, Backend):
        pool._network_backend = Backend(pool._network_backend, connect.core(core_of(pool)))
        hook_pool(pool)
        multiplexed.hook_pool(pool)


def _interruptible(cls: Any) -> type:
    """An HTTP transport that runs a call's exchanges so that they can be interrupted."""

    class Transport(cls):  # type: ignore[misc]
        def handle_request(self, request: Any) -> Any:
            call = active_call()
            if call is None or call.exchanging:
                return super().handle_request(request)
            return _exchange(call, request, super().handle_request, self)

    return Transport


def _exchange(call: Call, request: Any, send: Callable[[Any], Any], transport: Any) -> Any:
    pools = pools_of(transport)
    for pool in pools:
        if type(pool._network_backend) is not Backend:  # as it says itself; each request passes here
            hook_backend(pool)
    call.begin_exchange(opaque=not pools, request=request)
    request.extensions = {**request.extensions, CALL: call}
    call.url = request.url
    call.exchanging = True
    try:
        if call.streamed_inside:
            response = exchange_blocking(call, request, lambda one: _send(call, one, send, transport))
        else:
            response = _send(call, request, send, transport, pools)
    finally:
        call.exchanging = False
    if call.cancelled:
        if call.held:
            for _ in response.stream:  # nothing comes out of it; it ends when nothing more is expected
                pass
        response.close()
        raise Interruption(call)
    return response


def _send(
    call: Call, request: Any, send: Callable[[Any], Any], transport: Any, pools: Optional[list[Any]] = None
) -> Any:
    """One request through the pool. Whatever a cancelled call fails with becomes an `Interruption`."""
    pools = pools_of(transport) if pools is None else pools
    while True:
        call.completed = False
        try:
            with call.gate:
                if call.cancelled:
                    raise Interruption(call)
                response = send(request)
            call.waker = None
            stream = response.extensions.get("network_stream")
            if stream is not call.socket:
                follow(call, stream, pools)
            call.headers_read(response.status_code)
            if call.tracker is not None:
                call.tracker.headers(response)
            call.body_closed = False
            response.stream = _body(call, response.stream, pools)
            return response
        except BaseException as error:
            stream, call.socket, call.waker = call.socket, None, None
            if stream is not None and not stream.closed:
                stream.let_go(call)
            if type(error) is not ReadInterruption or call.reentered:
                _reclaim(and_new(pools, transport), call)
            if call.cancelled and isinstance(error, Exception):
                raise Interruption(call) from None
            if call.requeue and call.requeued(error):
                pools = pools_of(transport)
                continue
            if call.tracker is not None or isinstance(error, Exception):
                call.failed(error)
            raise


def _reclaim(pools: list[Any], call: Call) -> None:
    for pool in pools:
        finish = reclaim(pool, call)
        if finish is not None:
            finish()


_bodies: dict[type, Any] = {}


def _body(call: Call, inner: Any, pools: list[Any]) -> Any:
    """Wrap a response's byte stream in our own, as an instance of the same package's `SyncByteStream`."""
    cls = _bodies.get(type(inner)) or _body_like(type(inner))
    return cls(call, inner, pools)


def _body_like(kind: type) -> Any:
    for base in kind.__mro__:
        if base.__name__ == "SyncByteStream":
            _bodies[kind] = type("CallStream", (_Body, base), {})
            return _bodies[kind]
    return _Body


class _Body:
    """A response's bytes, until the cancel; then closed. Ends the call when it is closed after the hand-over."""

    def __init__(self, call: Call, inner: Any, pools: list[Any]) -> None:
        self._call = call
        self._inner = inner
        self._pools = pools
        self._closed = False
        call.closer = self._close_idle
        call.hearer = self._hear

    def __iter__(self) -> Iterator[bytes]:
        call = self._call
        chunks = iter(self._inner)
        while True:
            with call.gate:
                call.phase = Phase.READING
                call.thread = threading.get_ident()
                try:
                    if call.cancelled and call.must_stop():
                        raise Interruption(call)
                    chunk = next(chunks, None)
                    if call.tracker is not None:
                        call.tracker.feed(chunk)
                        while call.cancelled and call.held and chunk is not None:  # read on; deliver nothing
                            chunk = next(chunks, None)
                            call.tracker.feed(chunk)
                    if call.cancelled and not call.drains:
                        raise Interruption(call)
                except BaseException as error:
                    if call.drain is not None:
                        call.drain.fail()
                    self._close()
                    if call.cancelled and isinstance(error, (Interruption, Exception)):
                        raise call.ending() from None
                    raise
                call.phase = Phase.BETWEEN_EVENTS
            if chunk is None:
                call.completed = True
                return
            if not call.shown or call.reader is not None:
                yield chunk
                continue
            for line in chunk.splitlines(keepends=True):  # of a stream out of sight, which is fenced nowhere else
                if call.cancelled:
                    break
                yield line

    def close(self) -> None:
        if self._call.thread == threading.get_ident() or not self._hung_up():
            self._close()

    def _close(self) -> None:
        """As `close`, by who reads, or holds the gate: nobody else reads."""
        call = self._call
        if self._closed or (call.drain is not None and call.drains):  # what is drained is closed by whoever drains it
            return
        try:
            self._closed = call.body_closed = True
            stream, call.socket, call.closer = call.socket, None, None
            if stream is not None:
                # Before the connection goes back to the pool, where another call may take it at once (I9).
                stream.let_go(call)
            self._inner.close()
        except BaseException:  # Ctrl-C: before it had begun to close, or half-way
            with contextlib.suppress(Exception):
                self._inner.close()
            _reclaim(self._pools, call)
            raise
        finally:
            try:
                if call.handed_over:
                    call.leave()
            finally:
                if call.handed_over and call.left_at is None:
                    call.leave()

    def _hung_up(self) -> bool:
        """Whether another thread is reading: then it is woken, and closes by itself. A plain close leaves it stuck."""
        call = self._call
        if self._closed or call.drains or not call.gate.locked():
            return False
        stream = call.socket
        return stream is not None and bool(stream.interrupt(call))

    def _hear(self) -> None:
        """Read on for the tracker, unseen, if nobody is reading. Never blocks."""
        if not self._call.gate.locked() and not self._closed:  # not the one of an earlier attempt
            in_thread(self._read_on)

    def _read_on(self) -> None:
        with contextlib.suppress(Interruption, Exception):  # what comes of it is the tracker's to say
            for _ in self:
                pass

    def _close_idle(self) -> bool:
        """Close, unless a thread is reading: that one is being interrupted, and closes by itself."""
        call = self._call
        if not call.gate.acquire(blocking=False):
            return False
        try:
            # Taking a call off a shared connection takes locks of that, and writes.
            if not call.multiplexed and all(lock_is_free(pool) for pool in self._pools):
                self._close_quietly()
                return True
        finally:
            call.gate.release()
        # This very thread may hold a pool's lock (a signal handler, a destructor), and httpcore 1.0's is not
        # reentrant. `_thread`, because starting a `threading.Thread` takes locks of its own.
        with contextlib.suppress(RuntimeError):  # the interpreter is shutting down, and its sockets with it
            _thread.start_new_thread(self._close_later, ())
        return True

    def _close_later(self) -> None:
        with self._call.gate:
            self._close_quietly()

    def _close_quietly(self) -> None:
        """Close for somebody who has not asked for that: who cancels, leaves a scope, or drops the stream."""
        try:
            self._close()
        except Exception as error:
            self._call.failed(error)
