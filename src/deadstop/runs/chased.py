"""How the chase after one remote run is put on record."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Callable

from deadstop.calls import timers
from deadstop.core.model import Attempt
from deadstop.runs.keeping import PATIENCE, Keeping
from deadstop.runs.kept import Recording, unix

if TYPE_CHECKING:
    from deadstop.runs.keeper import Keeper
    from deadstop.runs.run import BaseRun

__all__ = ["Chased", "bound"]


class Chased(Keeping):
    def __init__(self, keeper: Keeper, run: BaseRun) -> None:
        self._keeper = keeper
        self._run = run
        self._owner = keeper.owner(run)

    def recorded(self, then: Callable[[], None]) -> None:
        recording = self._keeper.recording(self._owner)
        bound(recording)
        recording.done.notify(then)

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
