"""How the chase after one remote run is put on record; nothing is, unless the client uses a ledger (``keeper.py``)."""

from __future__ import annotations

from typing import Callable

from deadstop.core.model import Attempt

__all__ = ["PATIENCE", "UNKEPT", "Keeping"]

PATIENCE = 1.0
"""How long (seconds) a run or a cancel waits for the ledger before it goes on without."""


class Keeping:
    """How the chase after one remote run is put on record."""

    def recorded(self, then: Callable[[], None]) -> None:
        """Call `then` when the cancel is on record: nothing is sent before."""
        then()

    def sending(self, number: int) -> None:
        """A cancel request is about to be sent."""

    def sent(self, attempt: Attempt) -> None:
        """What came of it."""


UNKEPT = Keeping()
