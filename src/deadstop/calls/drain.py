"""A cancelled stream that is read on, unseen, for its usage: most servers tell that in a stream's last event.

Whoever cancels puts the drain on the call before the fence closes, and nothing interrupts the call until the drain is
over: at the end of the stream, at its time, or when reading fails. Its caller is told that the call is cancelled as
soon as it looks; the reading goes on in a thread or a task of ours. A thread that is blocked in a read can't be
relieved of it without losing the stream: it comes back with the next bytes, or when the time is over.
"""

from __future__ import annotations

import _thread
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from deadstop.calls import timers

if TYPE_CHECKING:
    from deadstop.calls.call import Call

__all__ = ["Drain", "Reader", "in_thread", "plain_usage", "usage_in"]


class Reader(Protocol):
    """The stream that a caller is given events from, and that may be read on without the caller."""

    inside: bool
    """Whether the caller is in it just now: then it looks at the call when it comes out."""

    def read_on(self, drain: Drain) -> None:
        """Read on elsewhere, to the end or until the drain is over; then `drain.finish()`. Never blocks."""


class Drain:
    """One drain of one call. `until` is a moment on the monotonic clock."""

    __slots__ = ("_once", "_timer", "call", "over", "until")

    def __init__(self, call: Call, until: float) -> None:
        self.call = call
        self.until = until
        self.over = False
        self._once = {"it": True}  # a dict, because its pop() is atomic
        self._timer: Optional[timers.Timer] = None

    def watch(self) -> None:
        """Let its time run. Never blocks."""
        # Elsewhere: a deadline takes a lock, and this may be a signal handler.
        if not in_thread(self._watch):
            self.end()

    def _watch(self) -> None:
        self._timer = timers.at(self.until, self.end)
        if self.over:
            self._timer.stop()

    def claim(self) -> bool:
        """Whether it is the caller of this that has to see to the reading on."""
        return not self.over and self._once.pop("it", None) is not None

    def begin(self) -> None:
        """Have the stream read on, if nobody is in it. Whoever is begins it when coming out."""
        reader = self.call.reader
        if reader is not None and not reader.inside and self.claim():
            reader.read_on(self)

    def end(self) -> None:
        """Its time is over, or the stream is wanted for something else: interrupt the reading, as a cancel does."""
        self.over = True
        self.call.interrupt()
        self.call.close_idle()

    def fail(self) -> None:
        """The stream can't be read any more."""
        self.over = True

    def finish(self) -> None:
        """Nobody reads any more: close the stream, and let the call leave."""
        self.over = True
        if self._timer is not None:
            self._timer.stop()
        call = self.call
        call.handed_over = True  # to us: the call leaves when its response is closed
        if call.closer is not None:
            call.close_idle()
        else:
            call.leave()


def in_thread(work: Callable[[], Any]) -> bool:
    """Run `work` in a thread of its own. False if there is none to be had. Takes no lock."""
    try:
        _thread.start_new_thread(work, ())
    except RuntimeError:  # the interpreter is shutting down
        return False
    return True


def usage_in(event: Any) -> Optional[dict[str, Any]]:
    """The usage that an event of the SDK's carries, itself or in the response it tells of; None if it has none."""
    for name in (None, "response", "message"):
        whole = event if name is None else _member(event, name)
        usage = plain_usage(None if whole is None else _member(whole, "usage"))
        if usage:
            return usage
    return None


def _member(thing: Any, name: str) -> Any:
    if isinstance(thing, Mapping):
        return thing.get(name)
    found = getattr(thing, "__dict__", {}).get(name)
    if found is None:  # older SDKs do not know the field, and keep it among what else came
        found = (getattr(thing, "__pydantic_extra__", None) or {}).get(name)
    return found


def plain_usage(usage: Any) -> Optional[dict[str, Any]]:
    """A usage as plain data; None for anything else."""
    if isinstance(usage, Mapping):
        return dict(usage)
    for name in ("model_dump", "dict"):
        dump = getattr(usage, name, None)
        if callable(dump):
            found = dump(exclude_unset=True)
            return dict(found) if isinstance(found, Mapping) else None
    return None
