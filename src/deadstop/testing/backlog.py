"""An address where a TCP connect hangs."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

_ANSWERED_WITHIN = 0.1  # seconds; a loopback connect that takes longer is one that hangs


@contextlib.contextmanager
def full_backlog() -> Iterator[tuple[str, int]]:
    """Yields (host, port) of a listening socket whose queue is full, so that a new connect gets no answer.

    Raises RuntimeError where the system lets every connection in.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address: tuple[str, int] = listener.getsockname()
        for _ in range(64):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
            if not select.select([], [filler], [], _ANSWERED_WITHIN)[1]:
                break
        else:
            raise RuntimeError("The backlog of a listening socket can't be filled on this system.")
        yield address
