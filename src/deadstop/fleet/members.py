"""This process in each of its fleets: one member for each URL."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading

from deadstop.errors import LedgerError
from deadstop.fleet.member import Member

__all__ = ["member_of"]

_members: dict[str, Member] = {}
_guard = threading.Lock()


def member_of(url: str) -> Member:
    """This process's member for that URL. Raises LedgerError, and then there is none."""
    with _guard:
        found = _members.get(url)
        if found is None or found._closed:
            found = Member(url)
            if not _members:
                # Now, so that it runs before the clean-up of what the ledger is made of.
                atexit.register(_close_all)
            _members[url] = found
        return found


def _close_all() -> None:
    for each in list(_members.values()):
        with contextlib.suppress(LedgerError):
            each.close()


def _forked() -> None:
    global _guard
    _guard = threading.Lock()
    for each in list(_members.values()):
        each.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
