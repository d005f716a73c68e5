"""HTTP/2: taking one call off a connection that carries others. What we must know of httpcore's and httpcore2's.

The socket is everybody's, so it is never shut down for one call. What a cancelled call does, in its own thread or
task and on its way out:

* it stops waiting, for data, for its turn to read, for a stream, for a connection that another call is making;
* it resets its stream (RST_STREAM, CANCEL; RFC 9113, 6.4), so that the server stops this answer and no other;
* it writes what it has begun to write: there may be frames of its neighbours in it, and each end keeps a record of
  the headers sent.

As in `deadstop.calls.pool` everything here looks before it touches. A connection of another shape is left as it is:
a cancelled call is then free as soon as data arrive, its stream is not reset, and the receipt says so.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Callable, Optional

import anyio

from deadstop.calls.call import Call, Interruption, active_call
from deadstop.calls.pool import CALL, recast
from deadstop.core.model import Interrupted

__all__ = ["PREFACE", "Overdue", "Permits", "call_here", "hook_pool"]

PREFACE = b"PRI * HTTP/2.0"
"""What a client says first on a connection with HTTP/2, however that was agreed upon (RFC 9113, 3.4)."""

PATIENCE = 1.0
"""How long (seconds) a call that is leaving waits for another that is writing, to say that it leaves."""

_CANCEL = 0x8
_USED = ("_h2_state", "_network_stream", "_read_lock", "_write_lock", "_state_lock", "_response_closed", "_events")
_REQUESTS = "_deadstop_requests"


class Overdue(BaseException):
    """The time of one call is up, on a connection that has more time for others.

    Not an `Exception`: httpcore ends every call on a connection whose read failed with one.
    """


def call_here() -> Optional[Call]:
    """The call that this thread is waiting on the network for. A stream is read in whatever thread has got it."""
    return getattr(_here, "call", None) or active_call()


_here = threading.local()


class Permits:
    """httpcore's semaphore for threads (with one permit: its lock), which a cancelled call does not wait for.

    First come, first served.
    """

    def __init__(self, count: int = 1) -> None:
        self._semaphore = threading.Semaphore(count)
        self._waiting: deque[_Waiter] = deque()

    def acquire(self) -> None:
        """Take a permit. Raises `Interruption` or `Overdue` instead of waiting on for it."""
        self._acquire(None)

    def acquire_if_available(self) -> bool:
        """Take a permit if there is one."""
        return self._semaphore.acquire(blocking=False)

    def release(self) -> None:
        """Give a permit back."""
        self._semaphore.release()
        self._wake()

    def _acquire(self, ready: Optional[Callable[[], Any]]) -> bool:
        """Whether a permit was taken. False when it is not needed any more: `ready()` is true."""
        if not self._waiting and self.acquire_if_available():
            return True
        until = getattr(_here, "until", None)
        call = call_here() if until is None else None
        mine = _Waiter(ready)
        waker = None
        if call is not None:
            waker, call.waker = call.waker, mine.turn.set
        self._waiting.append(mine)
        try:
            while True:
                if ready is not None and ready():
                    return False
                if self._first() is mine and self.acquire_if_available():
                    return True
                if call is not None:
                    _check(call)
                    left = call.timeout(None)
                else:
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        raise Overdue
                mine.turn.wait(left)
                mine.turn.clear()
        finally:
            if call is not None:
                call.waker = waker
            self._waiting.remove(mine)
            self._wake()  # it may have been woken for a permit that it did not take, or there may be one more

    def _first(self) -> Optional[_Waiter]:
        waiting = list(self._waiting)
        # Those who wait for something to be read are told of it by whoever reads. The others must look themselves.
        return next((each for each in waiting if each.ready is None), waiting[0] if waiting else None)

    def _wake(self) -> None:
        first = self._first()
        if first is not None:
            first.turn.set()
        for each in list(self._waiting):
            if each.ready is not None and each.ready():
                each.turn.set()

    def __enter__(self) -> Permits:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Waiter:
    """A thread in the queue."""

    __slots__ = ("ready", "turn")

    def __init__(self, ready: Optional[Callable[[], Any]]) -> None:
        self.ready = ready
        self.turn = threading.Event()


class _ReadLock(Permits):
    """The lock of whoever reads for everybody. Who gets what it waits for passes, while another thread reads on.

    With httpcore's own a thread whose answer is there may wait behind one that waits for the next data.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mine = threading.local()

    @contextlib.contextmanager
    def until(self, ready: Callable[[], Any]) -> Iterator[None]:
        """In here the lock is wanted for as long as `ready()` is false."""
        self._mine.ready = ready
        try:
            yield
        finally:
            self._mine.ready = None

    def __enter__(self) -> _ReadLock:
        self._mine.held = self._acquire(getattr(self._mine, "ready", None))
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine.held:
            self.release()


def _check(call: Call) -> None:
    if call.cancelled:
        if call.interrupted is Interrupted.NOTHING:
            call.interrupted = Interrupted.WAKE
        raise Interruption(call)
    if call.read_deadline is not None and time.monotonic() >= call.read_deadline:
        raise Overdue


class _TaskPermits:
    """httpcore's semaphore for tasks, which suspends nobody who need not wait.

    A new connection takes 99 permits out of it. Its own would let a cancellation come in between, and with the rest
    of them left in it, the connection breaks at the server's settings.
    """

    def __init__(self, count: int) -> None:
        self._semaphore = anyio.Semaphore(count)

    async def acquire(self) -> None:
        if not self.acquire_if_available():
            await self._semaphore.acquire()

    def acquire_if_available(self) -> bool:
        try:
            self._semaphore.acquire_nowait()
        except anyio.WouldBlock:
            return False
        return True

    async def release(self) -> None:
        self._semaphore.release()


def hook_pool(pool: Any) -> None:
    """Prepare the connections that `pool` is going to make. One without HTTP/2 is left as it is. Idempotent."""
    if getattr(pool, "_http2", False) and hasattr(pool, "create_connection"):
        recast(pool, _preparing)


def _preparing(cls: Any) -> type:
    """A connection pool that prepares its connections."""

    class Pool(cls):  # type: ignore[misc]
        def create_connection(self, origin: Any) -> Any:
            connection = super().create_connection(origin)
            if _of_threads(connection) and hasattr(connection, "_request_lock"):
                connection._request_lock = Permits()
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
    if not _of_threads(connection):
        recast(connection, _for_tasks)
    elif recast(connection._h2_state, _guarded) and recast(connection, _for_threads):
        connection._read_lock = _ReadLock()
        connection._write_lock = Permits()
        connection._init_lock = Permits()


_OPERATIONS = (
    "acknowledge_received_data", "close_connection", "data_to_send", "end_stream", "increment_flow_control_window",
    "initiate_connection", "local_flow_control_window", "receive_data", "reset_stream", "send_data",
)  # fmt: skip


def _guarded(cls: Any) -> type:
    """h2's state of a connection, for several threads: h2 leaves that to its user, and httpcore does not do it.

    From asking for the next stream until its headers are written down a thread has it to itself: two that ask at once
    get the same one.
    """

    class State(cls):  # type: ignore[misc]
        @property
        def _deadstop_lock(self) -> Any:
            own = self.__dict__
            return own.get("_deadstop_rlock") or own.setdefault("_deadstop_rlock", threading.RLock())

        def get_next_available_stream_id(self) -> Any:
            self._deadstop_lock.acquire()
            try:
                stream_id = super().get_next_available_stream_id()
            except BaseException:
                self._deadstop_lock.release()
                raise
            self._deadstop_opener = threading.get_ident()
            return stream_id

        def send_headers(self, *args: Any, **kwargs: Any) -> None:
            try:
                with self._deadstop_lock:
                    super().send_headers(*args, **kwargs)
            finally:
                self.deadstop_opened()

        def deadstop_opened(self) -> None:
            """This thread opens no stream, or does not any more."""
            if self.__dict__.get("_deadstop_opener") == threading.get_ident():
                self.__dict__["_deadstop_opener"] = None
                self._deadstop_lock.release()

    for name in _OPERATIONS:
        setattr(State, name, _one_at_a_time(getattr(cls, name)))
    return State


def _one_at_a_time(method: Any) -> Any:
    @functools.wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._deadstop_lock:
            return method(self, *args, **kwargs)

    return locked


def _sends(connection: Any, request: Any, stream_id: int) -> None:
    """A request is about to be sent. Raises `Interruption` when it must not: nothing of it has been, then."""
    call = request.extensions.get(CALL)
    if call is not None:
        call.sending(True)
        connection.__dict__.setdefault(_REQUESTS, {})[stream_id] = request


def _sent(request: Any) -> Optional[Call]:
    call: Optional[Call] = request.extensions.get(CALL)
    if call is not None:
        call.request_sent()
    return call


def _taken_off(connection: Any, stream_id: int) -> Any:
    """The request of a call of ours whose stream is being left before its end."""
    request = connection.__dict__.get(_REQUESTS, {}).pop(stream_id, None)
    stream = connection._h2_state.streams.get(stream_id)
    return None if stream is None or stream.closed else request


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
            finally:
                self._h2_state.deadstop_opened()

        def _send_request_headers(self, request: Any, stream_id: int) -> None:
            _sends(self, request, stream_id)
            super()._send_request_headers(request=request, stream_id=stream_id)

        def _receive_response(self, request: Any, stream_id: int) -> Any:
            _sent(request)
            return super()._receive_response(request=request, stream_id=stream_id)

        def _receive_stream_event(self, request: Any, stream_id: int) -> Any:
            events = self._events
            before, _here.call = getattr(_here, "call", None), request.extensions.get(CALL)
            try:
                with self._read_lock.until(lambda: events.get(stream_id)):
                    return super()._receive_stream_event(request, stream_id)
            finally:
                _here.call = before

        def _response_closed(self, stream_id: int) -> None:
            self._h2_state.deadstop_opened()
            request = _taken_off(self, stream_id)
            if request is not None:
                _here.until = time.monotonic() + PATIENCE
                # If it comes to nothing, the reset goes out with what is written next.
                with contextlib.suppress(Overdue, Exception):
                    with self._state_lock:
                        self._h2_state.reset_stream(stream_id, _CANCEL)
                    self._write_outgoing_data(request)
                    request.extensions[CALL].stream_reset = True
                _here.until = None
            super()._response_closed(stream_id=stream_id)

    return Connection


def _for_tasks(cls: Any) -> type:
    """A task's HTTP/2 connection that a call can be taken off."""

    class Connection(cls):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_max_streams_semaphore":
                value = _TaskPermits(self._h2_state.local_settings.max_concurrent_streams)
            super().__setattr__(name, value)

        async def _send_connection_init(self, request: Any) -> None:
            # Cancelled half-way, the connection would be closed under those who wait for it.
            with anyio.CancelScope(shield=True):
                await super()._send_connection_init(request=request)

        async def _send_request_headers(self, request: Any, stream_id: int) -> None:
            _sends(self, request, stream_id)
            await super()._send_request_headers(request=request, stream_id=stream_id)

        async def _receive_response(self, request: Any, stream_id: int) -> Any:
            _sent(request)
            return await super()._receive_response(request=request, stream_id=stream_id)

        async def _receive_stream_event(self, request: Any, stream_id: int) -> Any:
            call = request.extensions.get(CALL)
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
                        async with self._state_lock:
                            self._h2_state.reset_stream(stream_id, _CANCEL)
                        await self._write_outgoing_data(request)
                        request.extensions[CALL].stream_reset = True
                await super()._response_closed(stream_id=stream_id)

    return Connection
