"""A name whose resolution hangs."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def slow_dns(host: str, seconds: float | None = None) -> Iterator[threading.Event]:
    """Makes `socket.getaddrinfo` block for this one host, until the context is left or `seconds` have passed.

    Then it resolves to 127.0.0.1. Yields an event that is set once somebody has asked for the host.
    """
    real = socket.getaddrinfo
    asked, left = threading.Event(), threading.Event()

    def patched(name: Any, *args: Any, **kwargs: Any) -> Any:
        plain = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        flags = kwargs.get("flags", args[4] if len(args) > 4 else 0)
        if plain != host or flags & socket.AI_NUMERICHOST:  # asks whether it is an address: that never waits
            return real(name, *args, **kwargs)
        asked.set()
        left.wait(seconds)
        return real("127.0.0.1", *args, **kwargs)

    socket.getaddrinfo = patched  # type: ignore[assignment]
    try:
        yield asked
    finally:
        socket.getaddrinfo = real
        left.set()
