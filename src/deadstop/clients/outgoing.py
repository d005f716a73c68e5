"""A request of ours on its way, for as long as anybody waits for it."""

from __future__ import annotations

import time
from typing import Optional

from deadstop.calls.errand import Errand, Result
from deadstop.core.model import Attempt, Phase

__all__ = ["Outgoing", "not_sent"]


class Outgoing:
    """A request of ours: to be sent within `timeout` seconds, or under way. Its `errand` is made when it begins."""

    __slots__ = ("abandoned", "due", "errand", "number")

    def __init__(self, number: int, timeout: float) -> None:
        self.number = number
        self.due = time.monotonic() + timeout
        self.errand: Optional[Errand] = None
        self.abandoned = False

    def begin(self, errand: Errand) -> Errand:
        """It is under way."""
        self.errand = errand
        if self.abandoned:  # in the moment between the look and now
            errand.interrupt()
        return errand

    def abandon(self) -> None:
        """Nobody waits for it any more. Never blocks; any thread."""
        self.abandoned = True
        if self.errand is not None:
            self.errand.interrupt()

    def so_far(self) -> Optional[Result]:
        """What is known of it while it is under way, as if it ended now. None before it has begun."""
        return None if self.errand is None else self.errand.result(self.number)

    def cut_off(self, why: str) -> Result:
        """What has come of it, where something else than its time has ended it."""
        if self.errand is None:
            return not_sent(self.number, why)
        self.errand.ended_by = why
        return self.errand.result(self.number)


def not_sent(number: int, why: str = "it was not needed any more") -> Result:
    now = time.monotonic()
    return Result(Attempt(number, now, now, error=why), phase=Phase.CREATED)
