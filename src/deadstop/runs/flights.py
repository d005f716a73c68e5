"""One cancel request at a time for each remote run (I7), over all processes and whatever it is cancelled by.

The same run may be cancelled with its scope in one process, and by its address in another: neither knows of the other
but by the ledger. Nothing here waits, and none of it takes a lock in a signal handler.
"""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
import weakref
from collections import deque
from typing import TYPE_CHECKING, Callable, Optional

from deadstop.calls import timers
from deadstop.errors import DeadstopError
from deadstop.ledger.facts import Flight, RemoteRun
from deadstop.ledger.leases import MARGIN, elapsed
from deadstop.runs.keeping import PATIENCE, Place

if TYPE_CHECKING:
    from deadstop.fleet.member import Member

__all__ = ["Alone", "Flights"]

log = logging.getLogger("deadstop")

POLL = 0.05
"""How often (seconds) it is looked whether somebody else's request is over."""

SLACK = 0.5
"""How much longer (seconds) than its request may take it is kept for, should its process not say that it is over."""


class Flights:
    """The requests of one client that ask for it. All that ask while the ledger is busy are asked for at once."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self._fresh()
        _every.add(self)

    def _fresh(self) -> None:
        """As at the start. Also for the child of a fork, where nobody hears the answer."""
        self._asking: deque[Alone] = deque()
        self._landing: deque[str] = deque()

    def ask(self, alone: Alone) -> None:
        self._asking.append(alone)
        self.member.write(self._take_off)

    def land(self, token: str) -> None:
        self._landing.append(token)
        self.member.write(self._land)

    def _take_off(self) -> None:
        asked, asked_at = _all(self._asking), elapsed()
        if not asked:
            return  # with those before
        may: Optional[set[str]] = None
        try:
            flights = [each.flight() for each in asked]
            may = self.member.ledger.take_off(flights, by=self.member.process.owner, now=time.time())
        except DeadstopError as error:
            log.warning("Cancels go out without a look at those of other processes: %s", error)
        for each in asked:
            try:
                each.told(None if may is None else each.token in may, asked_at)
            except Exception:  # the others' answers are here as well
                log.exception("A cancel request could not be begun.")

    def _land(self) -> None:
        tokens = _all(self._landing)
        if tokens:
            self.member.ledger.land(tokens)


def _all(waiting: deque) -> list:  # type: ignore[type-arg]
    found = []
    while waiting:
        found.append(waiting.popleft())  # by one thread alone
    return found


class Alone(Place):
    """One request that is sent while no other one is under way for that run; `within` a place of the policy's limits.

    A ledger that does not answer is waited for as long as for the record, and no longer.
    """

    def __init__(self, flights: Flights, remote: RemoteRun, lasts: float, within: Place) -> None:
        self.token = uuid.uuid4().hex
        self.waited = False
        self._flights = flights
        self._remote = remote
        self._lasts = lasts + SLACK
        self._within = within
        self._then: Callable[[], None] = lambda: None
        self._undecided: list[None] = [None]  # empty once it goes, or is given up: list.pop is atomic
        self._asked = self._answered = 0
        self._until = math.inf
        self._taken = False
        self._over = False

    def flight(self) -> Flight:
        return Flight(self.token, self._remote, self._lasts, self.waited)

    def take(self, then: Callable[[], None]) -> None:
        self._then = then
        self._within.take(self._ask)

    def _ask(self) -> None:
        if self._undecided:
            self._asked += 1
            number = self._asked
            timers.at(time.monotonic() + PATIENCE, lambda: self._late(number))
            self._flights.ask(self)

    def told(self, may: Optional[bool], asked_at: float) -> None:
        """The ledger's answer; None if it can't be used."""
        self._answered = self._asked
        if may:
            self._until = asked_at + self._lasts - MARGIN
            self._taken = True
            if self._over:
                self._land()
        if may is False:
            self.waited = True
            timers.at(time.monotonic() + POLL, self._ask)
        else:
            self._go()

    def _late(self, number: int) -> None:
        if self._answered < number and self._undecided:
            log.warning("A cancel goes out without a look at those of other processes: the ledger does not answer.")
            self._go()

    def _go(self) -> None:
        if self._decided():
            self._then()

    def leave(self) -> bool:
        given_up = self._decided()
        self._over = True
        self._land()
        self._within.leave()
        return given_up

    def left(self) -> float:
        return max(self._until - elapsed(), 0.0) if self._taken else math.inf

    def _decided(self) -> bool:
        """Whether it is decided here and now what becomes of it."""
        try:
            self._undecided.pop()
        except IndexError:
            return False
        return True

    def _land(self) -> None:
        if self._taken:
            self._taken = False
            self._flights.land(self.token)


_every: weakref.WeakSet[Flights] = weakref.WeakSet()


def _forked() -> None:
    for each in list(_every):
        each._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
