"""What unwinds a cancelled call."""

from __future__ import annotations

__all__ = ["Interruption", "ReadInterruption"]


class Interruption(BaseException):
    """Unwinds a cancelled call through the SDK.

    Not an `Exception`: the SDK (1.0 to 3.x) turns any `Exception` raised below it into a connection error that it
    retries, and a cancelled call must not be retried. It never reaches the user: the entry and the fence turn it
    into `RunCancelledError`.

    Made of the call, and by no function of its own: each one on the way of a freed caller keeps that one waiting.
    """

    def __str__(self) -> str:
        return f"call {self.args[0].id} was interrupted by a cancel"


class ReadInterruption(Interruption):
    """Raised where a thread reads its answer, from a connection of its own.

    Its pool closes that by itself, and has nothing of the call left in it, unless the call was in one before (see
    `Call.reentered`): an answer to that may still be open.
    """
