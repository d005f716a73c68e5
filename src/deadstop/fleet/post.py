"""Signals between the processes of a host: one Unix datagram socket for each, in a directory of this user's own.

A signal is a hint: it says at once what the ledger says as well. So it may be lost, and it is never waited for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import tempfile
import uuid
from enum import Enum
from pathlib import Path
from typing import Any, Optional

from deadstop.errors import LedgerUnavailable
from deadstop.ledger.urls import state_file

__all__ = ["Post", "Sent", "directory"]

LARGEST = 65_536  # bytes of a message that is read
LONGEST = 100  # characters of a socket's path: the kernel's limit is 104 to 108
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Sent(Enum):
    """What became of a message."""

    TAKEN = "taken"
    DEAD = "dead"
    """Nobody listens there, and nobody will: sockets are never bound twice."""
    UNSURE = "unsure"
    """Its receiver does not read (it may be stopped), or may not be written to."""


def directory() -> Path:
    """Where the sockets of this user's processes are; made, if need be, so that nobody else can look in.

    Raises LedgerUnavailable if it belongs to somebody else, or is open to others.
    """
    path = state_file().parent / "sockets"
    if len(str(path)) > LONGEST - 24:
        path = Path(tempfile.gettempdir()) / f"deadstop-{os.geteuid()}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise LedgerUnavailable(f"The directory {path} for sockets can't be made: {error.strerror}.") from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise LedgerUnavailable(f"The directory {path} for sockets is not this user's alone. Remove it, or chmod 0700.")
    return path


class Post:
    """The socket of this process. Raises LedgerUnavailable where there can be none."""

    def __init__(self, where: Path) -> None:
        if not hasattr(socket, "AF_UNIX"):
            raise LedgerUnavailable("This platform has no Unix sockets, so other processes can't be signalled.")
        self.address = str(where / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            if hasattr(socket, "SO_PASSCRED"):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind(self.address)
            os.chmod(self.address, 0o600)
        except OSError as error:
            self._socket.close()
            raise LedgerUnavailable(f"The socket {self.address} can't be made: {error.strerror}.") from error

    def send(self, address: str, message: dict[str, Any]) -> Sent:
        """Send without waiting. Any thread."""
        try:
            # One for each: `receive` sets a timeout, for which Python would wait here, too; and what a stopped process
            # does not read fills the buffer of the socket that it was sent from.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
                speaker.setblocking(False)
                speaker.sendto(json.dumps(message).encode(), address)
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                self._bury(address)
                return Sent.DEAD
            return Sent.UNSURE
        return Sent.TAKEN

    def _bury(self, address: str) -> None:
        """A socket that nobody listens on is left by a process that was killed."""
        if os.path.dirname(address) == os.path.dirname(self.address):
            with contextlib.suppress(OSError):
                os.unlink(address)

    def receive(self, timeout: Optional[float]) -> Optional[dict[str, Any]]:
        """The next message, within ``timeout`` seconds; None if there is none, or it is not from this user.

        Raises OSError once the socket is closed.
        """
        self._socket.settimeout(timeout)
        try:
            data, extra, _, _ = self._socket.recvmsg(LARGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
        except (socket.timeout, InterruptedError):
            return None
        credentials = getattr(socket, "SCM_CREDENTIALS", None)
        for level, kind, value in extra:
            if level == socket.SOL_SOCKET and kind == credentials:
                _, user, _ = _CREDENTIALS.unpack(value[: _CREDENTIALS.size])
                if user not in (os.geteuid(), 0):
                    return None
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    def wake(self) -> None:
        """Have ``receive`` return. Never blocks; any thread."""
        self.send(self.address, {"do": "wake"})

    def close(self) -> None:
        """Nobody can be heard any more. Again is fine."""
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.address)

    def disown(self) -> None:
        """In a forked child: the socket is the parent's."""
        self._socket.close()
