"""A call that is over before its stream was read to its end: its caller may still hold forty events of it.

Its run does not know it any more, so nobody sets its flag. The run is asked instead, each time that the flag is looked
at; which costs the others nothing, because such a call becomes one of another class.
"""

from __future__ import annotations

from typing import Any

from deadstop.calls.call import Call

__all__ = ["ClosedCall", "close_early"]

_flag: Any = Call.__dict__["cancelled"]  # the slot


class ClosedCall(Call):
    """One whose stream was closed."""

    __slots__ = ()

    @property
    def cancelled(self) -> Any:  # a bool
        run: Any = self.run
        if _flag.__get__(self) or ((run.parent is not None or run.alone) and run.stops(self)):
            return True
        # Last of all, and without a function: there a thread could lose its turn before it hands out what it holds.
        return run.cancelled or "asked" in run.once

    @cancelled.setter
    def cancelled(self, on: bool) -> None:
        _flag.__set__(self, on)


def close_early(call: Call) -> None:
    """The call is over, and was not read to its end."""
    if type(call) is Call:
        call.__class__ = ClosedCall
