"""What a connection pool holds for a call: its entries in the queue, and connections that nobody would ever take.

Of every httpcore that httpx has been built on: up to 1.0.2 a pool keeps other names and another lock, and assigns its
connections one by one (see `deadstop.calls.pool_old`).
"""

from __future__ import annotations

from typing import Any, Optional

from deadstop.calls.call import Call

__all__ = ["CALL", "connections_of", "lock_of", "lost_in", "requests_of", "set_connections", "uses"]

CALL = "deadstop.call"
"""The request extension that names a request's call."""


def connections_of(pool: Any) -> Optional[list[Any]]:
    """The pool's own list of its connections; None if its shape is not known."""
    found = getattr(pool, "_connections", None)
    found = getattr(pool, "_pool", None) if found is None else found
    return found if isinstance(found, list) else None


def set_connections(pool: Any, connections: list[Any]) -> None:
    """From now on these are the pool's."""
    setattr(pool, "_connections" if hasattr(pool, "_connections") else "_pool", connections)


def lock_of(pool: Any) -> Any:
    """What guards both lists; None if the pool's shape is not known. Up to 1.0.2 a task has to wait for it."""
    return getattr(pool, "_optional_thread_lock", None) or getattr(pool, "_pool_lock", None)


def requests_of(pool: Any, call: Call) -> list[Any]:
    """The entries of the pool's queue that belong to `call`. A copy: safe without the pool's lock."""
    found = []
    for entry in list(getattr(pool, "_requests", ())):
        request = getattr(entry, "request", None)
        if request is not None and request.extensions.get(CALL) is call:
            found.append(entry)
    return found


def uses(pool: Any, call: Call, stream: Any) -> bool:
    """Whether a request of `call` is under way in the pool on the connection over `stream`."""
    return any(_stream_of(entry.connection) is stream for entry in requests_of(pool, call))


def _stream_of(connection: Any) -> Any:
    while connection is not None and not hasattr(connection, "_network_stream"):
        connection = getattr(connection, "_connection", None)
    return getattr(connection, "_network_stream", None)


def lost_in(pool: Any, entries: list[Any]) -> list[Any]:
    """The connections that nobody would ever take, now that these `entries` have left the queue. Under its lock."""
    wanted = {id(entry.connection) for entry in pool._requests}
    return [
        connection
        for connection in connections_of(pool) or ()
        if id(connection) not in wanted
        and (
            never_opened(connection)
            or _never_used(connection)
            or _orphaned(connection)
            or _held_by(connection, entries)
        )
    ]


def never_opened(connection: Any) -> bool:
    """Whether nobody has connected it yet, or tried to in vain."""
    if not hasattr(connection, "_connect_failed"):  # a connection through a proxy holds the real one
        connection = getattr(connection, "_connection", None)
    if not hasattr(connection, "_connect_failed"):
        return False
    return connection._connection is None and not connection._connect_failed


def _never_used(connection: Any) -> bool:
    """Whether it was connected for a call that was cancelled before it wrote: nobody would ever take it."""
    inner = getattr(connection, "_connection", None)
    name = getattr(getattr(inner, "_state", None), "name", "")
    return name == "NEW" and getattr(inner, "_request_count", None) == 0


def _orphaned(connection: Any) -> bool:
    """Whether it is busy with a request that the pool has forgotten: a second cancel during a clean-up."""
    inner = getattr(connection, "_connection", None)
    inner = getattr(inner, "_connection", inner)  # through a forwarding proxy
    busy = getattr(getattr(inner, "_state", None), "name", "") == "ACTIVE"
    return busy and getattr(inner, "_h2_state", None) is None


def _held_by(connection: Any, entries: list[Any]) -> bool:
    multiplexed = getattr(getattr(connection, "_connection", None), "_h2_state", None) is not None
    return not multiplexed and any(entry.connection is connection for entry in entries)
