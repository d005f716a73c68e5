"""A call that is over before its stream was read to its end: its caller may still hold forty events of it.

Its run does not know it any more, so nobody sets its flag. The run is asked instead, each time that the flag is looked
at; which costs the others nothing, because such a call becomes one of another class.
"""

from __future__ import annotations

from typing import Any

from deadstop.calls.call import Call

__all__ = ["ClosedCall", "CutOffCall", "close_early", "cut_off"]

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


class CutOffCall(ClosedCall):
    """One whose stream was closed because its scope was left. There is nothing more to be had from it: what was read
    ahead would end in the middle, with an error that looks like the network's."""

    __slots__ = ()

    @property
    def cancelled(self) -> Any:
        return (self.left.done and not self.completed) or super().cancelled

    @cancelled.setter
    def cancelled(self, on: bool) -> None:
        _flag.__set__(self, on)


def close_early(call: Call) -> None:
    """The call is over, and was not read to its end."""
    if type(call) is Call:
        call.__class__ = ClosedCall


def cut_off(call: Call) -> bool:
    """Close the stream of a call because its scope is left. Whether it is closed, or is being closed."""
    inner = getattr(call.reader, "_inner", None)
    read_out = getattr(inner, "gi_frame", getattr(inner, "ag_frame", inner)) is None
    if inner is not None and read_out:  # to [DONE], after which old SDKs leave the answer open
        return call.close_idle()
    call.__class__ = CutOffCall  # first: whoever finds it closed is to be told why
    if call.close_idle():
        return True
    call.__class__ = Call  # somebody is reading it elsewhere, and goes on
    if call.left.done and not call.completed:  # or has closed it just now
        close_early(call)
    return False
