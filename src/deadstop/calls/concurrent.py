"""Interrupting a task's call: the scope around it, the hook on the HTTP transport, and the body of the answer.

A task can be interrupted wherever it waits, so the entry puts a cancel scope around the whole request (see
`deadstop.calls.entry`). What is left for this module: the time after the request has returned, when a stream is read
by whatever task holds it. There a socket is shut down, as for a thread: it works from any thread, at once, and
without a scope for each event. Only where a call has no socket to itself (HTTP/2, a transport of somebody else's) is
each read put into a scope.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Callable, Optional

import anyio

from deadstop.calls import multiplexed
from deadstop.calls.call import Call, Interruption, active_call, current_call
from deadstop.calls.loops import Loop, asked_of, miscounted
from deadstop.calls.network_concurrent import Backend
from deadstop.calls.pool import (
    CALL,
    and_new,
    drop_ended,
    hook_pool,
    pools_of,
    recast,
    reclaim,
    renew,
    retire,
    transports_of,
)
from deadstop.calls.pool_old import is_old
from deadstop.calls.queued import lock_of
from deadstop.calls.sockets import follow
from deadstop.calls.streamed import exchange_concurrent
from deadstop.calls.turns import TaskLock
from deadstop.core.model import Interrupted, Phase

__all__ = ["close_ended", "close_pools", "hook_client", "interruptible", "reset_client"]


class interruptible:
    """What runs inside is cancelled with the call, wherever it waits; then `Interruption` is raised here.

    A native cancellation passes through untouched. By hand, not with `contextmanager`: every call passes here.
    """

    __slots__ = ("_asked", "_call", "_loop", "_outer", "_scope", "_task")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._loop = call.loop = call.loop or Loop.current()
        self._scope, self._task, self._asked = self._loop.scope_of_task()
        self._outer: Optional[Callable[[Optional[Loop]], None]] = None

    def __enter__(self) -> None:
        call = self._call
        self._scope.__enter__()
        self._outer, call.scope_waker = call.scope_waker, self._wake
        if call.cancelled and call.must_stop():
            error = Interruption(call)
            self.__exit__(Interruption, error, None)
            raise error

    def _wake(self, here: Optional[Loop]) -> None:
        if self._call.interrupted is Interrupted.NOTHING:
            self._call.interrupted = Interrupted.TASK
        if here is not None and (here is self._loop or here.is_same(self._loop)):
            # At once: by way of the loop's queue the task would come free one turn later.
            task = here.task()
            if task is self._task or (current_call.get() is not None and active_call() is self._call):
                # From within: anyio is to see which task that is. To cancel the one that runs, as if from outside,
                # leaves it with a cancellation when it has left the scope (up to Python 3.12).
                self._scope.cancel()
            else:
                here.apart(self._scope.cancel, task)
        elif not self._loop.call(self._scope.cancel):
            self._call.leave()  # the loop was closed under the call: its task will never go on

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> bool:
        self._call.scope_waker, self._outer = self._outer, None
        if error is not None and not self._scope.__exit__(kind, error, trace):
            return False
        if error is None:
            self._scope.__exit__(None, None, None)
        elif asked_of(self._task) > self._asked and not miscounted():
            return False  # a native cancellation, too: anyio before 4.16 takes the two of them for its own
        if self._scope.cancel_called:
            raise Interruption(self._call)
        return error is not None


def hook_client(http_client: Any) -> bool:
    """Prepare every transport of an async HTTP client. Idempotent; changes nothing for calls that are not ours.

    False if it has none that we know of (a mock).
    """
    transports = transports_of(http_client)
    for transport in transports:
        hook_transport(transport)
    return bool(transports)


async def reset_client(http_client: Any) -> int:
    """Give every transport fresh pools. How many were replaced."""
    count = 0
    for transport in transports_of(http_client):
        for pool in renew(transport):
            count += 1
            for connection in await _take_out(pool, retire):
                await connection.aclose()
    return count


async def close_ended(http_client: Any) -> None:
    """Close the unused connections that the peer has ended and the pools would still give to a request."""
    for transport in transports_of(http_client):
        for pool in pools_of(transport):
            for connection in await _take_out(pool, drop_ended):
                with contextlib.suppress(Exception):  # it is over, whatever its end says
                    await connection.aclose()


async def _take_out(pool: Any, take: Callable[[Any], list[Any]]) -> list[Any]:
    if not is_old(pool):
        return take(pool)
    async with lock_of(pool):  # who is just closing a connection of it strikes it off by its place in the list
        return take(pool)


async def close_pools(http_client: Any) -> None:
    """Close every connection of an HTTP client's pools, and nothing else of it."""
    for transport in transports_of(http_client):
        for pool in pools_of(transport):
            await pool.aclose()


def hook_transport(transport: Any) -> None:
    """Prepare one async transport (httpx or httpx2)."""
    for pool in pools_of(transport):
        hook_backend(pool)
    patched = getattr(transport, "__dict__", {}).get("handle_async_request")
    if patched is not None and not hasattr(patched, "_deadstop"):  # somebody has put their own on the instance
        transport.handle_async_request = _around(patched, transport)
    else:
        recast(transport, _interruptible)


def _around(send: Callable[[Any], Awaitable[Any]], transport: Any) -> Callable[[Any], Awaitable[Any]]:
    async def handle_async_request(request: Any) -> Any:
        call = active_call()
        if call is None or call.exchanging:
            return await send(request)
        return await _exchange(call, request, send, transport)

    handle_async_request._deadstop = True  # type: ignore[attr-defined]
    return handle_async_request


def hook_backend(pool: Any) -> None:
    """Put our network backend in front of the pool's own. Idempotent."""
    if not isinstance(pool._network_backend, Backend):
        pool._network_backend = Backend(pool._network_backend)
        hook_pool(pool)
        multiplexed.hook_pool(pool)
        if is_old(pool):
            # anyio's, of which it is made, is never had again once those who waited for it were cancelled together.
            pool._pool_lock = TaskLock()


def _interruptible(cls: Any) -> type:
    """An HTTP transport that runs a call's exchanges so that they can be interrupted."""

    class Transport(cls):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            call = active_call()
            if call is None or call.exchanging:
                return await super().handle_async_request(request)
            return await _exchange(call, request, super().handle_async_request, self)

    return Transport


async def _exchange(call: Call, request: Any, send: Callable[[Any], Awaitable[Any]], transport: Any) -> Any:
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
            response = await exchange_concurrent(call, request, lambda one: _send(call, one, send, transport))
        else:
            response = await _send(call, request, send, transport, pools)
    finally:
        call.exchanging = False
    if call.cancelled:
        if call.held:
            async for _ in response.stream:  # nothing comes out of it; it ends when nothing more is expected
                pass
        await response.aclose()
        raise Interruption(call)
    return response


async def _send(
    call: Call, request: Any, send: Callable[[Any], Awaitable[Any]], transport: Any, pools: Optional[list[Any]] = None
) -> Any:
    """One request through the pool. Whatever a cancelled call fails with becomes an `Interruption`."""
    pools = pools_of(transport) if pools is None else pools
    while True:
        call.completed = False
        try:
            if call.cancelled:
                raise Interruption(call)
            response = await send(request)
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
            stream, call.socket = call.socket, None
            if stream is not None and not stream.closed:
                stream.let_go(call)
            await _reclaim(and_new(pools, transport), call)
            if call.requeue and call.requeued(error):
                pools = pools_of(transport)
                continue
            if call.tracker is not None or isinstance(error, Exception):
                call.failed(error)
            if call.cancelled and isinstance(error, Exception):
                raise Interruption(call) from None
            raise


async def _reclaim(pools: list[Any], call: Call) -> None:
    for pool in pools:
        finish = reclaim(pool, call)
        if finish is not None:
            with anyio.CancelScope(shield=True):
                await finish()


_bodies: dict[type, Any] = {}


def _body(call: Call, inner: Any, pools: list[Any]) -> Any:
    """Wrap a response's byte stream in our own, as an instance of the same package's `AsyncByteStream`."""
    cls = _bodies.get(type(inner)) or _body_like(type(inner))
    return cls(call, inner, pools)


def _body_like(kind: type) -> Any:
    for base in kind.__mro__:
        if base.__name__ == "AsyncByteStream":
            _bodies[kind] = type("CallStream", (_Body, base), {})
            return _bodies[kind]
    return _Body


class _Body:
    """A response's bytes, until the cancel; then closed. Ends the call when it is closed after the hand-over."""

    def __init__(self, call: Call, inner: Any, pools: list[Any]) -> None:
        self._call = call
        self._inner = inner
        self._pools = pools
        self._loop = call.loop or Loop.current()
        self._closed = False
        self._busy = False
        self._chunks: Any = None
        self._lines: Any = iter(())  # what is left of a chunk that is handed out by the line
        call.closer = self._close_soon
        call.hearer = self._hear

    # Not an async generator: the SDK drops its stream half-way when it has read [DONE], and event loops grumble
    # about generators that are left so.

    def __aiter__(self) -> _Body:
        if self._chunks is None:  # asked again (the SDK drains what follows [DONE]), it goes on where it was
            self._chunks = self._inner.__aiter__()
        return self

    async def __anext__(self) -> bytes:
        call = self._call
        if call.shown and not call.cancelled:
            line: Optional[bytes] = next(self._lines, None)
            if line is not None:
                return line
        self._busy = True
        call.phase = Phase.READING
        try:
            if call.cancelled and call.must_stop():
                raise Interruption(call)
            if call.socket is None and call.scope_waker is None:
                chunk = await self._read(call)
            else:
                try:  # as `_read`, of which every chunk would make two more coroutines
                    chunk = await self._chunks.__anext__()
                except StopAsyncIteration:
                    chunk = None
            if call.tracker is not None:
                call.tracker.feed(chunk)
                while call.cancelled and call.held and chunk is not None:  # read on; deliver nothing
                    chunk = await self._read(call)
                    call.tracker.feed(chunk)
            if call.cancelled and not call.drains:
                raise Interruption(call)
        except BaseException as error:
            if call.drain is not None:
                call.drain.fail()
            with self._loop.scope(shield=True):
                await self.aclose()
            await _reclaim(self._pools, call)
            if call.cancelled and isinstance(error, (Interruption, Exception)):
                raise call.ending() from None
            raise
        finally:
            self._busy = False
        call.phase = Phase.BETWEEN_EVENTS
        if chunk is None:
            call.completed = True
            raise StopAsyncIteration
        if call.shown and call.reader is None and chunk:  # a stream out of sight, which is fenced nowhere else
            self._lines = iter(chunk.splitlines(keepends=True))
            return next(self._lines)  # type: ignore[no-any-return]
        return chunk

    async def _read(self, call: Call) -> Optional[bytes]:
        if call.socket is None and call.scope_waker is None:
            with interruptible(call):
                return await _next(self._chunks)
        return await _next(self._chunks)

    async def aclose(self) -> None:
        call = self._call
        if self._closed or (call.drain is not None and call.drains):  # what is drained is closed by whoever drains it
            return
        self._closed = call.body_closed = True
        stream, call.socket, call.closer = call.socket, None, None
        if stream is not None:
            # Before the connection goes back to the pool, where another call may take it at once (I9).
            stream.let_go(call)
        try:
            await self._inner.aclose()
        except BaseException:  # a second cancellation: take back what the pool could not
            await _reclaim(self._pools, call)
            raise
        finally:
            if call.handed_over:
                call.leave()

    def _hear(self) -> None:
        """Read on for the tracker, unseen, if nobody is reading. Never blocks."""
        if not self._busy and not self._closed:  # not the one of an earlier attempt
            self._loop.spawn(self._read_on)

    async def _read_on(self) -> None:
        with contextlib.suppress(Interruption, Exception):  # what comes of it is the tracker's to say
            async for _ in self:
                pass

    def _close_soon(self) -> bool:
        if self._busy:
            return False
        if not self._loop.spawn(self._close_idle) and self._call.handed_over:
            self._call.leave()  # the loop is over, and its sockets with it
        return True

    async def _close_idle(self) -> None:
        """Close, unless a task is reading: that one is being interrupted, and closes by itself."""
        if not self._busy:
            try:
                await self.aclose()
            except Exception as error:  # it runs as a task of its own: nobody else would see it
                self._call.failed(error)


async def _next(chunks: Any) -> Optional[bytes]:
    try:
        return await chunks.__anext__()  # type: ignore[no-any-return]
    except StopAsyncIteration:
        return None
