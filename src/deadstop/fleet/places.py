"""Where a process is, and whether it is still there, as far as that can be known from here."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

__all__ = ["exists", "place"]


@cache
def place() -> str:
    """A token of this machine since its start, and of this space of process numbers; empty where it can't be told.

    A host's name is not that: two machines or containers may have the same.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]
    except OSError:
        return ""


def exists(pid: int) -> bool:
    """Whether there is a process of that number here. One that has ended and was not waited for yet is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return True  # no such files on this system; or it has just ended
    return state not in (b"Z", b"X")
