"""One request of a chase: its turn, its place, and how it is sent. Nothing here waits."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from deadstop.calls.errand import Result
from deadstop.core.machine import Replied
from deadstop.core.model import Evidence, Outcome, RunStatus
from deadstop.runs.keeping import Place

if TYPE_CHECKING:
    from deadstop.runs.chase import Chase

__all__ = ["Sending"]

UNNEEDED = "the run was over before this was answered"


class Sending:
    """A cancel, or a status read, of the remote run that is chased."""

    def __init__(
        self, chase: Chase, request: Any, number: int, done: Callable[[Result], None], *, cancel: bool
    ) -> None:
        self._chase = chase
        self._request = request
        self._number = number
        self._done = done
        self._cancel = cancel
        self._place = Place()
        self._free: Callable[[], None] = _nothing
        self._out: Any = None  # what is under way,
        self._cancels = False  # and whether that is a cancel
        self._began = self._abandoned = False

    def begin(self, free: Callable[[], None]) -> None:
        """It is its turn: no other request of this chase's process for that run is under way until `free()`."""
        chase, machine = self._chase, self._chase.machine
        self._free = free
        if chase.stopped or (machine.settled is not None and machine.outcome is not Outcome.UNCONFIRMED):
            free()
            return
        if self._cancel:
            self._place = chase.keeping.place(chase.policy, machine.deadline)
        chase.under_way = self
        self._place.take(self._go)

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self._abandoned = True
        out = self._out
        if out is not None:
            out.abandon()
        elif not self._began and self._place.leave():
            self._chase.held_back = True
            self._free()

    def note(self, in_vain: bool) -> None:
        """It is not waited for any more: what is under way counts as it stands. `in_vain`: because time is up."""
        out = self._out
        found = None if out is None else out.so_far()
        if found is not None and not in_vain:
            found = replace(found, attempt=replace(found.attempt, error=UNNEEDED)) if found.may_have_arrived else None
        if found is not None:
            self._chase.note(found, cancel=self._cancels, under_way=True)

    def _go(self) -> None:
        chase, self._began = self._chase, True
        if not chase.may():
            self._over()
            chase.stop()  # somebody else goes on
        elif not self._may():  # this process was stopped, and its place is another's by now
            self._over()
            chase.remote.in_turn(self.begin)
        elif self._place.waited and chase.remote.kind.readable:
            self._look()
        else:
            self._send()

    def _may(self) -> bool:
        return self._chase.may() and self._place.left() > 0.0

    def _through(
        self, request: Any, number: int, left: Callable[[], None], done: Callable[[Result], None], *, cancel: bool
    ) -> None:
        chase, self._cancels = self._chase, cancel
        unbounded = math.isinf(chase.keeping.left()) and math.isinf(self._place.left())
        guard = () if unbounded else (self._may,)
        timeout = min(chase.time_left(), max(self._place.left(), 0.001))
        self._out = out = chase.remote.channel.send(request, number, timeout, left, done, *guard)
        if self._abandoned:
            out.abandon()

    def _send(self) -> None:
        chase = self._chase
        if self._cancel:
            chase.keeping.sending(self._number)
        left = partial(chase.request_left, self._number) if self._cancel else _nothing
        self._through(self._request, self._number, left, self._finished, cancel=self._cancel)

    def _finished(self, result: Result) -> None:
        self._over()
        self._done(result)
        if getattr(self._chase.remote.channel, "closed", False):
            self._chase.deadline_passed()  # the client is closed: nothing more can be sent

    def _over(self) -> None:
        self._chase.under_way = None
        self._place.leave()
        self._free()

    # After somebody else's request for the same run

    def _look(self) -> None:
        """It may have been enough, so how the run stands is read first. A second cancel has been seen to wedge a
        server."""
        self._through(self._chase.remote.kind.to_read(self._chase.ref), 0, _nothing, self._looked, cancel=False)

    def _looked(self, result: Result) -> None:
        chase, remote = self._chase, self._chase.remote
        self._out = None
        word = chase.read_in(result)
        if word is not None:
            remote.observe(word, Evidence.STATUS)  # which settles it, if it is over
        if chase.stopped or remote.over or chase.settled_at is not None:
            chase.held_back = chase.held_back or not remote.over
            self._over()
        elif remote.status is RunStatus.CANCELLING:
            self._over()
            now, taken = chase.clock.now(), RunStatus.CANCELLING
            chase.feed(Replied(at=now, attempt=self._number, status=202, run=taken, word=remote.word))
        else:
            self._send()


def _nothing() -> None:
    pass
