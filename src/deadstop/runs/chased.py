"""How the chase after one remote run is put on record, and whether this process may still act."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Callable, Optional

from deadstop.calls import timers
from deadstop.core.model import Attempt
from deadstop.runs.authority import refuse
from deadstop.runs.flights import Alone
from deadstop.runs.keeping import PATIENCE, Keeping, Place
from deadstop.runs.kept import Recording, unix
from deadstop.runs.limits import Queued

if TYPE_CHECKING:
    from deadstop.core.policy import CancelPolicy
    from deadstop.runs.keeper import Keeper
    from deadstop.runs.run import BaseRun

__all__ = ["Chased", "bound", "late"]


class Chased(Keeping):
    def __init__(self, keeper: Keeper, run: BaseRun) -> None:
        self._keeper = keeper
        self._run = run
        self._owner = keeper.owner(run)

    def recorded(self, then: Callable[[], None]) -> None:
        recording = self._keeper.recording(self._owner)
        bound(recording)

        def go_on() -> None:
            refused = recording.goes_out()
            if refused is None:
                then()
            else:
                refuse(self._run, refused)

        recording.done.notify(go_on)

    def left(self) -> float:
        claim = self._keeper.kept(self._owner).claim
        return math.inf if claim is None else claim.left

    def place(self, policy: CancelPolicy, deadline: Optional[float]) -> Place:
        remote, recording = self._run.remote, self._keeper.kept(self._owner).recording
        if remote is None or remote.ref is None:
            return Place()
        place, limited = Place(), policy.concurrency or policy.rate
        if limited:
            place = Queued(self._keeper.line(remote.channel.base_url), policy, deadline)
        if remote.kind.connected or recording is None or not recording.kept:
            return place  # nobody else can send one; nobody else knows
        asked = self._keeper.remote_record(remote, self._owner)
        return Alone(self._keeper.flights, asked, policy.attempt_timeout, place)

    def sending(self, number: int) -> None:
        kept, member = self._keeper.kept(self._owner), self._keeper.member
        target, now = str(self._run.remote.ref) if self._run.remote else "", time.time()

        def begin() -> None:
            if kept.epoch:
                numbers, by = self._keeper.kept(self._run).numbers, member.process.owner
                numbers[number] = member.ledger.begin_attempt(kept.name, kept.epoch, target, by=by, now=now)

        member.write(begin)

    def sent(self, attempt: Attempt) -> None:
        kept, member = self._keeper.kept(self._owner), self._keeper.member
        target = str(self._run.remote.ref) if self._run.remote else ""
        ended = None if attempt.ended is None else unix(attempt.ended)
        facts = replace(attempt, started=unix(attempt.started), ended=ended)

        def end() -> None:
            number = self._keeper.kept(self._run).numbers.get(attempt.number)
            if kept.epoch and number is not None:
                told = replace(facts, number=number)
                member.ledger.record_attempt(kept.name, kept.epoch, told, target, by=member.process.owner)

        member.write(end)


def bound(recording: Recording) -> None:
    """Have a record that does not come waited for no longer than `PATIENCE`."""
    if not recording.done.is_set():
        timers.at(time.monotonic() + PATIENCE, recording.late)


def late(work: Callable[[], None]) -> None:
    """Do it once a record that does not come is waited for no longer."""
    timers.at(time.monotonic() + PATIENCE, work)
