"""What is done with the connection pools of httpcore and httpcore2; what they hold is in `deadstop.calls.queued`.

Two things can't be done through their public interface, and both are needed for a cancel to be exact:

* a call that waits for a free connection blocks on an event that only the pool knows;
* a call that is cancelled just as it is given a new connection leaves that connection in the pool, never opened,
  for ever: a lost slot (httpcore 1.0; fixed in httpcore2). A second cancel while a response is being closed loses
  one in the same way.

Everything here looks before it touches: a pool of another shape is left as it is, and a call waiting on it is
then freed when the grace time asks again, instead of at once.
"""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import Any, Callable, Optional

from deadstop.calls import pool_old
from deadstop.calls.call import Call, Interruption, active_call, current_call
from deadstop.calls.queued import CALL, connections_of, lock_of, lost_in, never_opened, requests_of, set_connections
from deadstop.core.model import Interrupted, Phase

__all__ = [
    "CALL",
    "and_new",
    "core_of",
    "drop_ended",
    "hook_pool",
    "is_transport",
    "lock_is_free",
    "pools_of",
    "recast",
    "reclaim",
    "renew",
    "retire",
    "transports_of",
    "wake_waiter",
]


_recasts: dict[tuple[type, Callable[[Any], type]], type] = {}


def recast(thing: Any, subclass: Callable[[Any], type]) -> bool:
    """Make `thing` an instance of `subclass(type(thing))`. Idempotent.

    Unlike methods patched onto the instance this makes no reference cycle, keeps `isinstance`, and still calls
    what others have patched onto the class. False if Python won't have it (a class with slots or of C).
    """
    cls = type(thing)
    if subclass in getattr(cls, "_deadstop_recast", ()):
        return True
    made: Any = _recasts.get((cls, subclass))
    if made is None:
        made = subclass(cls)
        made.__name__, made.__qualname__, made.__module__ = cls.__name__, cls.__qualname__, cls.__module__
        made.__reduce_ex__ = _reduced_as(made, cls)
        made._deadstop_recast = (*getattr(cls, "_deadstop_recast", ()), subclass)
        _recasts[(cls, subclass)] = made
    try:
        thing.__class__ = made
    except TypeError:
        return False
    return True


def _reduced_as(made: Any, cls: Any) -> Callable[[Any, Any], Any]:
    def reduce(self: Any, protocol: Any) -> Any:
        # pickle and copy look a class up by its name, and find the original.
        function, arguments, *rest = cls.__reduce_ex__(self, protocol)
        return (function, tuple(cls if each is made else each for each in arguments), *rest)

    return reduce


def _entering(request: Any) -> Optional[Call]:
    """The call that a request is about to enter a pool for, if it is one of ours.

    A transport that wraps ours may send its request more than once, and so may one that makes requests of its own.
    """
    call: Optional[Call] = request.extensions.get(CALL)
    if call is None:
        call = active_call()
        if call is None:
            return None
        request.extensions = {**request.extensions, CALL: call}
    if call.phase is not Phase.WAITING_FOR_POOL and active_call() is call:  # not beside it, in another thread
        call.enter_again()
    return call


def _of_tasks(cls: Any) -> type:
    """A pool of tasks, which are cancelled where they wait."""

    class Pool(cls):  # type: ignore[misc]
        def handle_async_request(self, request: Any) -> Any:
            _entering(request)
            return super().handle_async_request(request)

    return Pool


def _of_threads(cls: Any) -> type:
    """A pool in which threads that wait for a connection can be woken."""

    class Pool(cls):  # type: ignore[misc]
        def handle_request(self, request: Any) -> Any:
            call = _entering(request)
            if call is not None:
                call.waker = partial(_wake, self, call)
            return super().handle_request(request)

    return Pool


def _interruptible(cls: Any) -> type:
    """A pool in which a cancel that comes between queueing and waiting for a connection is seen. For threads."""

    class Pool(cls):  # type: ignore[misc]
        def _assign_requests_to_connections(self) -> Any:
            # Every request passes here after it was queued and before it waits. The canceller sets `cancelled` and
            # then looks through the queue, so a request that it did not find there sees the flag here.
            closing = super()._assign_requests_to_connections()
            call = current_call.get()  # each request passes here twice: what else there is to ask can wait
            if call is None or not call.cancelled or not self._requests or active_call() is not call:
                return closing
            if any(each.is_queued() for each in requests_of(self, call)):
                self._close_connections(closing)
                raise Interruption(call)
            return closing

    return Pool


def hook_pool(pool: Any) -> None:
    """Prepare a connection pool so that it is known what waits there; for threads, so that it can be interrupted."""
    if hasattr(pool, "handle_async_request"):
        recast(pool, _of_tasks)
        return
    if hasattr(pool, "_assign_requests_to_connections") and hasattr(pool, "_requests"):
        recast(pool, _interruptible)
    elif pool_old.is_old(pool):
        recast(pool, pool_old.interruptible)
    recast(pool, _of_threads)


def transports_of(http_client: Any) -> list[Any]:
    """The transports of an HTTP client; none for something that only looks like one."""
    mounts = getattr(http_client, "_mounts", None)
    every = [getattr(http_client, "_transport", None), *(mounts.values() if isinstance(mounts, dict) else ())]
    names = ("handle_request", "handle_async_request")
    return [each for each in every if any(hasattr(type(each), name) for name in names)]


def pools_of(transport: Any) -> list[Any]:
    """The connection pools that a transport sends on: its own, or those of the transports it wraps."""
    pool = getattr(transport, "_pool", None)
    if hasattr(pool, "_network_backend"):  # as `_holders` finds, too: each request asks twice, and nearly all stop here
        return [pool]
    return [holder._pool for holder in _holders(transport)]


def and_new(pools: list[Any], transport: Any) -> list[Any]:
    """`pools`, which were `transport`'s, and those that a reset has put in their place since."""
    found = pools_of(transport)
    if found == pools:  # as nearly always
        return pools
    return [*pools, *(each for each in found if not any(each is one for one in pools))]


def _holders(transport: Any, depth: int = 3) -> list[Any]:
    if hasattr(getattr(transport, "_pool", None), "_network_backend"):
        return [transport]
    found = []
    for inner in list(getattr(transport, "__dict__", {}).values()) if depth else ():
        if is_transport(inner):
            found += _holders(inner, depth - 1)
    return found


def is_transport(thing: Any) -> bool:
    """Whether it is an HTTP transport, sync or async."""
    return hasattr(thing, "handle_request") or hasattr(thing, "handle_async_request")


def _wake(pool: Any, call: Call) -> None:
    if call.phase is Phase.WAITING_FOR_POOL:
        if call.interrupted is Interrupted.NOTHING:
            call.interrupted = Interrupted.WAKE
        wake_waiter(pool, call)


def wake_waiter(pool: Any, call: Call) -> None:
    """Wake `call` if it waits for a connection of this pool (threads only: tasks are cancelled instead).

    The pool then finds that it has no connection and fails; the transport's hook turns that into an
    interruption. Never blocks.
    """
    for entry in requests_of(pool, call):
        if entry.connection is None:
            acquired = getattr(entry, "_connection_acquired", None)
            if acquired is not None:
                acquired.set()


def reclaim(pool: Any, call: Call) -> Optional[Callable[[], Any]]:
    """Take back what an aborted `call` may have left in the pool: its queue entries and connections never opened.

    Returns what remains to be closed as a function, or None. Call it on the pool's own thread or loop, after the
    call has left the transport.
    """
    lock = getattr(pool, "_optional_thread_lock", None)
    if lock is None:
        return pool_old.reclaiming(pool, call) if pool_old.is_old(pool) else None
    if not getattr(pool, "_requests", None) and not getattr(pool, "_connections", None):
        return None  # as nearly always for the only one; each step more keeps a freed task waiting
    if connections_of(pool) is None:
        return None
    with lock:
        entries = requests_of(pool, call)
        for entry in entries:
            pool._requests.remove(entry)
        lost = lost_in(pool, entries)
        if not lost and not entries:
            return None
        pool._connections = [each for each in pool._connections if not any(each is one for one in lost)]
        closing = [*(each for each in lost if not never_opened(each)), *pool._assign_requests_to_connections()]
    return (lambda: pool._close_connections(closing)) if closing else None


def lock_is_free(pool: Any, timeout: float = 0.0) -> bool:
    """Whether the pool's lock could be had. False where this very thread may hold it (httpcore 1.0: not reentrant)."""
    lock = getattr(lock_of(pool), "_lock", None)
    if lock is None:
        return True
    taken = lock.acquire(timeout=timeout) if timeout else lock.acquire(blocking=False)
    if taken:
        lock.release()
    return bool(taken)


def renew(transport: Any) -> list[Any]:
    """Give `transport` (None: nothing to do) fresh connection pools, and return the old ones."""
    old = []
    for holder in _holders(transport):
        pool = holder._pool
        fresh = copy.copy(pool)
        fresh.__class__ = type(pool)  # a copy is of the original class, and nobody would prepare it again
        set_connections(fresh, [])
        fresh._requests = []
        for name in ("_optional_thread_lock", "_pool_lock"):
            if hasattr(pool, name):
                setattr(fresh, name, type(getattr(pool, name))())
        holder._pool = fresh
        old.append(pool)
    return old


def retire(pool: Any) -> list[Any]:
    """Wind a replaced pool down, and return its idle connections, for the caller to close.

    Calls under way finish on it, and it keeps no connection for later. Our calls that wait for a connection are
    sent over to the pool that took its place.
    """
    pool._max_keepalive_connections = 0
    for entry in list(pool._requests):
        call = entry.request.extensions.get(CALL)
        if isinstance(call, Call) and entry.connection is None:
            call.requeue = True
            wake_waiter(pool, call)
    lock = lock_of(pool)
    with lock if hasattr(lock, "__enter__") else contextlib.nullcontext():  # a task's: who calls this holds it
        idle = [connection for connection in connections_of(pool) or () if connection.is_idle()]
        set_connections(pool, [each for each in connections_of(pool) or () if not any(each is one for one in idle)])
    return idle


def drop_ended(pool: Any) -> list[Any]:
    """Take out the idle HTTP/2 connections that the peer has said something on; they are for the caller to close.

    That is nearly always its farewell. Of HTTP/1.1 the pool asks the same before it gives a connection to a request;
    with HTTP/2 it does not, and the request fails on a connection that was closed long before.
    """
    lock = lock_of(pool)
    with lock if hasattr(lock, "__enter__") else contextlib.nullcontext():  # as in `retire`
        given = {id(getattr(entry, "connection", None)) for entry in getattr(pool, "_requests", ())}
        there = connections_of(pool) or ()
        ended = [each for each in there if id(each) not in given and _has_word(each)]
        if ended:
            set_connections(pool, [each for each in there if not any(each is one for one in ended)])
    return ended


def _has_word(connection: Any) -> bool:
    """Whether it is an idle HTTP/2 connection that there is something to read from."""
    inner = getattr(connection, "_connection", None)
    stream = getattr(inner, "_network_stream", None)
    if getattr(inner, "_h2_state", None) is None or stream is None or not connection.is_idle():
        return False
    return bool(stream.get_extra_info("is_readable"))


def core_of(pool: Any) -> str:
    """The name of the pool's package: httpcore or httpcore2."""
    for cls in type(pool).__mro__:
        name = cls.__module__.partition(".")[0]
        if name in ("httpcore", "httpcore2"):
            return name
    return ""
