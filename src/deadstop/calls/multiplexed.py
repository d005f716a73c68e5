"""HTTP/2: taking one call off a connection that carries others. What we must know of httpcore's and httpcore2's.

The socket is everybody's, so it is never shut down for one call. What a cancelled call does, in its own thread or
task and on its way out:

* it stops waiting, for data, for its turn to read, for a stream, for a connection that another call is making;
* it resets its stream (RST_STREAM, CANCEL; RFC 9113, 6.4), so that the server stops this answer and no other, and
  gives back the room that the answer has taken in the connection's window;
* what it has begun to write is written, by itself or by the next: there may be frames of its neighbours in it, and
  each end keeps a record of the headers sent.

As in `deadstop.calls.pool` everything here looks before it touches. A connection of another shape is left as it is:
a cancelled call is then free as soon as data arrive, its stream is not reset, and the receipt says so.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import anyio

from deadstop.calls.framing import guarded, tidied
from deadstop.calls.pool import CALL, recast
from deadstop.calls.turns import (
    PATIENCE,
    Overdue,
    Permits,
    ReadLock,
    TaskLock,
    TaskPermits,
    leaving,
    on_behalf_of,
    undisturbed,
)

__all__ = ["PREFACE", "hook_pool"]

PREFACE = b"PRI * HTTP/2.0"
"""What a client says first on a connection with HTTP/2, however that was agreed upon (RFC 9113, 3.4)."""

_USED = (
    "_h2_state", "_network_stream", "_read_lock", "_write_lock", "_state_lock", "_response_closed", "_events",
    "_state", "_keepalive_expiry", "_expire_at",
)  # fmt: skip
_REQUESTS = "_deadstop_requests"


def hook_pool(pool: Any) -> None:
    """Prepare the connections that `pool` is going to make. One without HTTP/2 is left as it is. Idempotent."""
    if getattr(pool, "_http2", False) and hasattr(pool, "create_connection"):
        recast(pool, _preparing)


def _preparing(cls: Any) -> type:
    """A connection pool that prepares its connections."""

    class Pool(cls):  # type: ignore[misc]
        def create_connection(self, origin: Any) -> Any:
            connection = super().create_connection(origin)
            lock = Permits if _of_threads(connection) else TaskLock
            for name in ("_request_lock", "_connect_lock"):  # the second is a tunnel's
                if hasattr(connection, name):
                    setattr(connection, name, lock())
            recast(connection, _shareable)
            return connection

    return Pool


def _of_threads(connection: Any) -> bool:
    return hasattr(connection, "handle_request")


def _shareable(cls: Any) -> type:
    """A connection that is still to be made, and for which calls wait already."""

    class Shareable(cls):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_connection" and all(hasattr(value, each) for each in _USED):
                _hook(value)
            super().__setattr__(name, value)

        def handle_request(self, request: Any) -> Any:
            try:
                return super().handle_request(request)
            except BaseException as error:
                self._deadstop_spare(error)
                raise

        async def handle_async_request(self, request: Any) -> Any:
            try:
                return await super().handle_async_request(request)
            except BaseException as error:
                self._deadstop_spare(error)
                raise

        def _deadstop_spare(self, error: BaseException) -> None:
            # A call's cancellation is no failure of the connection. Taken for one, the pool would drop it, and not
            # know of it any more when the next call in the queue has made it.
            if not isinstance(error, Exception) and self._connection is None:
                self._connect_failed = False

    return Shareable


def _hook(connection: Any) -> None:
    if not recast(connection._h2_state, tidied):
        return
    if not _of_threads(connection):
        if recast(connection, _for_tasks):
            for name in ("_read_lock", "_write_lock", "_init_lock", "_state_lock"):
                setattr(connection, name, TaskLock())
    elif recast(connection._h2_state, guarded) and recast(connection, _for_threads):
        connection._read_lock = ReadLock()
        connection._write_lock = Permits()
        connection._init_lock = Permits()


def _sends(connection: Any, request: Any, stream_id: int) -> None:
    """A request is about to be sent. Raises `Interruption` when it must not: nothing of it has been, then."""
    call = request.extensions.get(CALL)
    if call is not None:
        call.sending(True)
        connection.__dict__.setdefault(_REQUESTS, {})[stream_id] = request


def _busy(connection: Any) -> None:
    """A stream is open. httpcore takes the connection for idle when the last one ended while this waited for a permit.

    An idle connection is closed when it has been that for a while.
    """
    if connection._state.name == "IDLE":
        connection._state, connection._expire_at = type(connection._state).ACTIVE, None


def _stepped_back(connection: Any) -> None:
    """A request that was to be sent was not. httpcore has noted already that the connection is busy with it."""
    if connection._state.name == "ACTIVE" and not connection._events:
        connection._state = type(connection._state).IDLE
        if connection._keepalive_expiry is not None:
            connection._expire_at = time.monotonic() + connection._keepalive_expiry


def _sent(request: Any) -> None:
    call = request.extensions.get(CALL)
    if call is not None:
        call.request_sent()


def _taken_off(connection: Any, stream_id: int) -> Any:
    """Leave a stream. The request, if it is a call's of ours and the server is to be told that it leaves early."""
    request = connection.__dict__.get(_REQUESTS, {}).pop(stream_id, None)
    return request if connection._h2_state.deadstop_leave(stream_id, request is not None) else None


def _for_threads(cls: Any) -> type:
    """A thread's HTTP/2 connection that a call can be taken off."""

    class Connection(cls):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_max_streams_semaphore":
                value = Permits(self._h2_state.local_settings.max_concurrent_streams)
            super().__setattr__(name, value)

        def handle_request(self, request: Any) -> Any:
            try:
                return super().handle_request(request)
            except BaseException:
                with self._state_lock:
                    _stepped_back(self)
                raise
            finally:
                self._h2_state.deadstop_opened()

        def _send_connection_init(self, request: Any) -> None:
            # Cancelled half-way, the connection would be closed under those who wait for it.
            with undisturbed():
                super()._send_connection_init(request=request)

        def _send_request_headers(self, request: Any, stream_id: int) -> None:
            _sends(self, request, stream_id)
            super()._send_request_headers(request=request, stream_id=stream_id)
            with self._state_lock:
                _busy(self)

        def _receive_response(self, request: Any, stream_id: int) -> Any:
            _sent(request)
            return super()._receive_response(request=request, stream_id=stream_id)

        def _receive_stream_event(self, request: Any, stream_id: int) -> Any:
            events = self._events
            with on_behalf_of(request.extensions.get(CALL)), self._read_lock.until(lambda: events.get(stream_id)):
                return super()._receive_stream_event(request, stream_id)

        def _write_outgoing_data(self, request: Any) -> None:
            with on_behalf_of(request.extensions.get(CALL)):
                super()._write_outgoing_data(request)

        def _response_closed(self, stream_id: int) -> None:
            try:
                request = _taken_off(self, stream_id)
                self._h2_state.deadstop_opened()
                if request is not None:
                    # If it comes to nothing, the reset goes out with what is written next.
                    with contextlib.suppress(Overdue, Exception), leaving():
                        self._write_outgoing_data(request)
                        request.extensions[CALL].stream_reset = True
            finally:
                super()._response_closed(stream_id=stream_id)

    return Connection


def _for_tasks(cls: Any) -> type:
    """A task's HTTP/2 connection that a call can be taken off."""

    class Connection(cls):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_max_streams_semaphore":
                value = TaskPermits(self._h2_state.local_settings.max_concurrent_streams)
            super().__setattr__(name, value)

        async def handle_async_request(self, request: Any) -> Any:
            try:
                return await super().handle_async_request(request)
            except BaseException:
                _stepped_back(self)
                raise

        async def _send_connection_init(self, request: Any) -> None:
            # Cancelled half-way, the connection would be closed under those who wait for it.
            with anyio.CancelScope(shield=True):
                await super()._send_connection_init(request=request)

        async def _send_request_headers(self, request: Any, stream_id: int) -> None:
            _sends(self, request, stream_id)
            _busy(self)
            await super()._send_request_headers(request=request, stream_id=stream_id)

        async def _receive_response(self, request: Any, stream_id: int) -> Any:
            _sent(request)
            return await super()._receive_response(request=request, stream_id=stream_id)

        async def _receive_stream_event(self, request: Any, stream_id: int) -> Any:
            events, call = self._events, request.extensions.get(CALL)
            with self._read_lock.until(lambda: events.get(stream_id)):
                if call is None or call.read_deadline is None:
                    return await super()._receive_stream_event(request, stream_id)
                with anyio.move_on_after(call.timeout(None)):
                    return await super()._receive_stream_event(request, stream_id)
            raise Overdue

        async def _response_closed(self, stream_id: int) -> None:
            with anyio.CancelScope(shield=True):
                request = _taken_off(self, stream_id)
                if request is not None:
                    with contextlib.suppress(Exception), anyio.move_on_after(PATIENCE):
                        await self._write_outgoing_data(request)
                        request.extensions[CALL].stream_reset = True
                await super()._response_closed(stream_id=stream_id)

    return Connection
