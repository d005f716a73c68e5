"""The pools of httpcore up to 1.0.2, which httpx 0.23 to 0.27 may be found with.

They give out their connections one by one, as each request comes or goes. A call that is cancelled while it connects
leaves its connection behind, never opened: a lost slot, as in later ones, and here at every such cancel.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

from deadstop.calls.call import Call, Interruption, current_call
from deadstop.calls.queued import CALL, connections_of, lock_of, lost_in, never_opened, requests_of, set_connections

__all__ = ["interruptible", "is_old", "reclaiming"]


def is_old(pool: Any) -> bool:
    """Whether it is such a pool."""
    known = all(hasattr(pool, name) for name in ("_attempt_to_acquire_connection", "_requests", "_pool_lock"))
    return known and connections_of(pool) is not None


def interruptible(cls: Any) -> type:
    """A pool in which a cancel that comes between queueing and waiting for a connection is seen. For threads."""

    class Pool(cls):  # type: ignore[misc]
        def _attempt_to_acquire_connection(self, status: Any) -> Any:
            # Asked for each request after it was queued and before it waits; see `deadstop.calls.pool`.
            acquired = super()._attempt_to_acquire_connection(status)
            call = current_call.get()
            if acquired or call is None or not call.cancelled or status.request.extensions.get(CALL) is not call:
                return acquired
            raise Interruption(call)

    return Pool


def reclaiming(pool: Any, call: Call) -> Callable[[], Any]:
    """What takes back what an aborted `call` may have left in the pool; for tasks it makes a coroutine."""
    return partial(_reclaim_in_task if hasattr(pool, "handle_async_request") else _reclaim_in_thread, pool, call)


def _reclaim_in_thread(pool: Any, call: Call) -> None:
    with lock_of(pool):
        for connection in _take_back(pool, call):
            connection.close()
        for status in list(pool._requests):
            if status.connection is None and not pool._attempt_to_acquire_connection(status):
                break


async def _reclaim_in_task(pool: Any, call: Call) -> None:
    async with lock_of(pool):
        for connection in _take_back(pool, call):
            await connection.aclose()
        for status in list(pool._requests):
            if status.connection is None and not await pool._attempt_to_acquire_connection(status):
                break


def _take_back(pool: Any, call: Call) -> list[Any]:
    """Strike the call and what it leaves off the pool's lists. Returns the connections that are to be closed."""
    entries = requests_of(pool, call)
    for entry in entries:
        pool._requests.remove(entry)
    lost = lost_in(pool, entries)
    if lost:
        set_connections(pool, [each for each in connections_of(pool) or () if not any(each is one for one in lost)])
    return [each for each in lost if not never_opened(each)]
