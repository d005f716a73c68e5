"""How the chase after one remote run is put on record; nothing is, unless the client uses a ledger (``keeper.py``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Callable, Optional

from deadstop.core.model import Attempt

if TYPE_CHECKING:
    from deadstop.core.policy import CancelPolicy

__all__ = ["PATIENCE", "UNKEPT", "Keeping", "Place"]

PATIENCE = 1.0
"""How long (seconds) a run or a cancel waits for the ledger before it goes on without."""


class Place:
    """A request's place among those that may be sent, where there is no limit."""

    waited = False
    """Whether somebody else's request for the same run was under way until it was taken."""

    def take(self, then: Callable[[], None]) -> None:
        """Call `then` once it may be sent."""
        then()

    def leave(self) -> bool:
        """The request is over, or not wanted any more. True: it was still waiting, and `then` will not be called."""
        return False

    def left(self) -> float:
        """For how many seconds it stands, once taken: the request has to be over by then."""
        return math.inf


class Keeping:
    """How the chase after one remote run is put on record."""

    def recorded(self, then: Callable[[], None]) -> None:
        """Call `then` when the cancel is on record: nothing is sent before."""
        then()

    def left(self) -> float:
        """For how many seconds this process may act on the run at the least. Asked before anything is sent."""
        return math.inf

    def place(self, policy: CancelPolicy, deadline: Optional[float]) -> Place:
        """A place for one cancel request, within the limits of the policy; `deadline` is on the monotonic clock."""
        return Place()

    def sending(self, number: int) -> None:
        """A cancel request is about to be sent."""

    def sent(self, attempt: Attempt) -> None:
        """What came of it."""


UNKEPT = Keeping()
