"""Claims within one process, and the file lock that says which process may make any."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Optional, Protocol

from deadstop.ledger.base import Claim

fcntl: Any
try:
    import fcntl
except ImportError:  # not on Windows: there the reconciling process is the user's to choose
    fcntl = None

__all__ = ["Claims", "FileLock", "Gate"]

POLL = 0.0003  # seconds


class Lock(Protocol):
    def acquire(self) -> bool: ...

    def release(self) -> None: ...

    def disown(self) -> None: ...


class FileLock:
    """One process at a time, without waiting. The kernel frees it when the process dies, however it dies."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Optional[int] = None

    def acquire(self) -> bool:
        """Whether this process has it now. Raises OSError if the file can't be opened."""
        if self._file is not None and not self._there(self._file):
            self.release()  # it was taken away, and whoever comes now makes another one
        if self._file is None:
            file = os.open(self._path, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            except BaseException:
                os.close(file)
                raise
            self._file = file
        return True

    def _there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except OSError:
            return False

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    disown = release  # in a forked child: the lock stays with the parent, but must not outlive it in the child


class Gate:
    """A place in front of a lock, for one process at a time. It makes for fair turns and nothing else: where it can't
    be had within the patience (its holder was stopped), or at all, one goes on without."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Optional[int] = None

    def enter(self, patience: float) -> None:
        if fcntl is None:
            return
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if time.monotonic() >= until:
                        return
                time.sleep(POLL)
        except OSError:
            return

    def leave(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Also in a forked child, which must not unlock what it shares with its parent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class _Claim(Claim):
    def __init__(self, claims: Claims, run: str) -> None:
        self.run = run
        self._claims = claims

    @property
    def held(self) -> bool:
        return self._claims.holder(self.run) is self

    def release(self) -> None:
        self._claims.release(self)


class Claims:
    """One claim on each run, among the threads of this process; all of them under one lock of the whole process."""

    def __init__(self, lock: Optional[Lock]) -> None:
        self._lock = lock
        self._guard = threading.Lock()
        self._held: dict[str, _Claim] = {}

    def claim(self, run: str) -> Optional[Claim]:
        with self._guard:
            if run in self._held or (self._lock is not None and not self._lock.acquire()):
                return None
            made = self._held[run] = _Claim(self, run)
            return made

    def holder(self, run: str) -> Optional[Claim]:
        with self._guard:
            return self._held.get(run)

    def release(self, claim: _Claim) -> None:
        with self._guard:
            if self._held.get(claim.run) is claim:
                del self._held[claim.run]
                if not self._held and self._lock is not None:
                    self._lock.release()

    def disown(self) -> None:
        """In a forked child: these are the parent's claims."""
        self._guard = threading.Lock()
        self._held = {}
        if self._lock is not None:
            self._lock.disown()

    def close(self) -> None:
        with self._guard:
            self._held = {}
            if self._lock is not None:
                self._lock.release()
