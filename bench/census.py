"""What a process holds: sockets, threads, pool slots, live runs."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable

QUIET = 5.0
"""How long (seconds) to wait for what ends by itself: the server's last word, a thread's last step."""


@dataclass(frozen=True)
class Census:
    """How many of each there are. `idle` connections are kept for the next call, as they should be."""

    sockets: int = 0
    threads: int = 0
    queued: int = 0
    connections: int = 0
    idle: int = 0
    runs: int = 0

    @property
    def slots(self) -> int:
        """Pool slots in use: busy connections and queue entries. With no call under way they are lost."""
        return self.queued + self.connections - self.idle


def take(clients: tuple[Any, ...]) -> Census:
    """Count now, over these clients."""
    pools = [client._client._transport._pool for client in clients]
    connections = [connection for pool in pools for connection in list(pool._connections)]
    return Census(
        sockets=open_sockets(),
        threads=threading.active_count(),
        queued=sum(len(pool._requests) for pool in pools),
        connections=len(connections),
        idle=sum(bool(connection.is_idle()) for connection in connections),
        runs=sum(len(client.runs.list()) for client in clients),
    )


def open_sockets() -> int:
    """The sockets that this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:  # the directory's own descriptor
            continue
    return found


def leaked(before: Census, after: Census) -> dict[str, int]:
    """What `after` holds that `before` did not, apart from kept connections."""
    return {
        "sockets": after.sockets - before.sockets - (after.idle - before.idle),
        "threads": after.threads - before.threads,
        "pool slots": after.slots - before.slots,
        "live runs": after.runs - before.runs,
    }


def is_clean(before: Census, after: Census) -> bool:
    """Whether nothing was leaked."""
    return not any(count > 0 for count in leaked(before, after).values())


def wait_until(condition: Callable[[], bool], timeout: float = QUIET) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
