"""What closed clients of this process left unconfirmed, and its other clients may finish, though the process lives."""

from __future__ import annotations

import time

from deadstop.errors import LedgerError
from deadstop.ledger.base import Ledger

__all__ = ["Left"]

FEW = 16
"""So many are remembered without a look at what became of them."""

Key = tuple[str, int]


class Left:
    """Runs, by name and epoch. Who finishes them need not be in this process, so it is the record that tells which of
    them are still to be finished: for `since` seconds."""

    def __init__(self, ledger: Ledger, since: float) -> None:
        self._ledger = ledger
        self._since = since
        self._keys: set[Key] = set()
        self._many = FEW

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: Key) -> None:
        """Uses the ledger now and then, each time that there are twice as many as were open."""
        self._keys.add(key)
        if len(self._keys) > self._many:
            try:
                self._keys -= {each for each in list(self._keys) if not self._open(each)}
            except LedgerError:  # with the next one
                return
            self._many = max(FEW, 2 * len(self._keys))

    def _open(self, key: Key) -> bool:
        found = self._ledger.intent(*key)
        return found is not None and found.open and found.intent.at > time.time() - self._since
