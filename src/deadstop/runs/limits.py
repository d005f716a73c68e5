"""A place among the cancel requests that all processes send to one server, where the policy limits them.

The ledger counts. In a process, who waits stands in line, and the first alone asks the ledger: so a fleet that waits
costs one look for each process. Nothing here waits, and none of it takes a lock in a signal handler.
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
from deadstop.core.policy import CancelPolicy
from deadstop.ledger.rows import bare
from deadstop.runs.keeping import Place
from deadstop.runs.kept import monotonic, unix

if TYPE_CHECKING:
    from deadstop.fleet.member import Member

__all__ = ["Line", "Queued"]

log = logging.getLogger("deadstop")

POLL = 0.05
"""How often (seconds) the first in line looks for a place that another process gave back."""

SLACK = 0.5
"""How much longer (seconds) than its request may take a place is kept, should its process not give it back."""


class Line:
    """Who waits in this process for one server."""

    def __init__(self, member: Member, base_url: str) -> None:
        self.member = member
        self.server = bare(base_url)
        self._fresh()
        _every.add(self)

    def _fresh(self) -> None:
        """As at the start: nobody waits, nobody asks. Also for the child of a fork, where nobody hears the answer."""
        self._waiting: deque[Queued] = deque()
        self._turn: list[None] = [None]  # empty while somebody asks: list.pop is atomic
        self._first: Optional[Queued] = None  # who asked, and is to ask again

    def join(self, queued: Queued) -> None:
        self._waiting.append(queued)
        self.go_on()

    def go_on(self) -> None:
        """Have the next one ask, if nobody does."""
        while self._waiting:
            try:
                self._turn.pop()
            except IndexError:
                return
            try:
                first = self._waiting.popleft()
            except IndexError:  # somebody else was quicker
                self._turn.append(None)
                continue
            first.ask()
            return

    def answered(self) -> None:
        """Whoever asked has its answer."""
        self._turn.append(None)
        self.go_on()

    def full(self, first: Queued) -> None:
        """There is no place: ask again, soon, or as soon as this process gives one back."""
        self._first = first
        timers.at(time.monotonic() + POLL, lambda: self.again(first))

    def again(self, first: Optional[Queued]) -> None:
        if first is not None and self._first is first:
            self._first = None
            first.ask()

    def give_back(self, permit: str) -> None:
        ledger = self.member.ledger
        self.member.write(lambda: ledger.dismiss(permit), lambda _, error: self.again(self._first))


class Queued(Place):
    """One request's place, or its wait for one."""

    def __init__(self, line: Line, policy: CancelPolicy, deadline: Optional[float]) -> None:
        self._line = line
        self._policy = policy
        self._deadline = math.inf if deadline is None else deadline
        self._permit = uuid.uuid4().hex
        self._then: Callable[[], None] = lambda: None
        self._waiting: list[None] = [None]  # empty once it goes, or is given up: list.pop is atomic
        self._taken = False

    def take(self, then: Callable[[], None]) -> None:
        self._then = then
        self._line.join(self)

    def ask(self) -> None:
        if not self._waiting:
            self._line.answered()
        else:
            self._line.member.write(self._ask, self._told)

    def _ask(self) -> Optional[float]:
        line, policy = self._line, self._policy
        return line.member.ledger.admit(
            line.server,
            self._permit,
            at_once=policy.concurrency,
            per_second=policy.rate,
            lasts=policy.attempt_timeout + SLACK,
            by=line.member.process.owner,
            deadline=unix(self._deadline),
            now=time.time(),
        )

    def _told(self, when: Optional[float], error: Optional[Exception]) -> None:
        if error is not None:
            log.warning("A cancel goes out without a look at the limits of the fleet: %s", error)
            self._line.answered()
            self._go()
        elif when is None and self._waiting:
            self._line.full(self)
        else:
            self._taken = when is not None
            self._line.answered()
            if when is None or not self._waiting or when <= time.time():
                self._go()
            else:
                timers.at(monotonic(when), self._go)

    def _go(self) -> None:
        if self._decided():
            self._then()
        else:
            self._give_back()

    def leave(self) -> bool:
        given_up = self._decided()
        self._give_back()
        return given_up

    def _decided(self) -> bool:
        """Whether it is decided here and now what becomes of it."""
        try:
            self._waiting.pop()
        except IndexError:
            return False
        return True

    def _give_back(self) -> None:
        if self._taken:
            self._taken = False
            self._line.give_back(self._permit)


_every: weakref.WeakSet[Line] = weakref.WeakSet()


def _forked() -> None:
    for each in list(_every):
        each._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
