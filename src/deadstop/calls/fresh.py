"""An HTTP client like the user's, with connections of its own.

Cancels must not queue behind the pool that they are to relieve (I16). So the control channel's HTTP client has the
user's settings, certificates, proxies, auth and hooks, and pools that nobody else uses.
"""

from __future__ import annotations

import copy
from typing import Any

from deadstop.calls.pool import is_transport, renew

__all__ = ["fresh_client"]

CONNECTIONS = 20
"""How many connections the control channel's pool may hold."""


def fresh_client(http_client: Any) -> Any:
    """A copy of an HTTP client (httpx or httpx2, sync or async) whose pools are empty and its own.

    A transport of another make is shared as it is: it can't be taken apart.
    """
    twin = copy.copy(http_client)
    states: Any = type(getattr(http_client, "_state", None))
    if hasattr(states, "UNOPENED"):
        twin._state = states.UNOPENED
    if hasattr(http_client, "_transport"):
        twin._transport = _fresh_transport(http_client._transport)
    mounts = getattr(http_client, "_mounts", None)
    if isinstance(mounts, dict):
        twin._mounts = {pattern: _fresh_transport(each) for pattern, each in mounts.items()}
    return twin


def _fresh_transport(transport: Any, depth: int = 3) -> Any:
    """`transport` with pools of its own, also where it wraps others; itself if there are none in it."""
    if transport is None:
        return None
    if hasattr(getattr(transport, "_pool", None), "_network_backend"):
        twin = copy.copy(transport)
        renew(twin)
        pool = twin._pool
        pool._max_connections = CONNECTIONS
        pool._max_keepalive_connections = CONNECTIONS
        return twin
    if depth:
        inner = {
            name: _fresh_transport(value, depth - 1)
            for name, value in list(getattr(transport, "__dict__", {}).items())
            if is_transport(value)
        }
        if any(value is not transport.__dict__[name] for name, value in inner.items()):
            twin = copy.copy(transport)
            twin.__dict__.update(inner)
            return twin
    return transport
