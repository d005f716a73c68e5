"""Random histories, against a model of plain dicts: memory and SQLite."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field
from typing import Any, Optional

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from ledger_homes import HERE, NOW, THERE, cancel, opening, receipt

from deadstop.core.model import Level, Outcome
from deadstop.errors import CancelRefusedError, UnknownRunError
from deadstop.ledger import connect

NAMES = st.sampled_from(["a", "b"])
OWNERS = st.sampled_from([HERE, THERE])
ACTORS = st.sampled_from(["alice", "mallory", None])
ENDS = st.sampled_from([Outcome.CANCELLED, Outcome.FINISHED_FIRST, Outcome.UNCONFIRMED])
REQUESTS = st.sampled_from(["r1", "r2", "r3", None])


@dataclass
class Life:
    """One epoch of a run, as the model sees it."""

    run: str
    epoch: int
    owner: Optional[str]
    cancellers: Optional[tuple[str, ...]] = None
    closed: bool = False
    parked_until: Optional[float] = None
    asked: list[tuple[Optional[str], Optional[str], Level, float]] = field(default_factory=list)
    requests: list[Optional[str]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def final(self) -> Optional[Outcome]:
        return self.outcomes[-1] if self.outcomes else None


class History(RuleBasedStateMachine):
    """Opens, closes, cancels, parks, settles, sweeps, opens the ledger again."""

    def address(self) -> str:
        return "memory:"

    @initialize()
    def begin(self) -> None:
        self.url = self.address()
        self.ledger = connect(self.url)
        self.lives: list[Life] = []
        self.seen: dict[tuple[str, str], tuple[Life, bool]] = {}
        self.refused: list[Optional[str]] = []
        self.turned_away: set[tuple[str, Optional[str]]] = set()
        self.now = NOW

    def newest(self, run: str, **facts: Any) -> Optional[Life]:
        found = [each for each in self.lives if each.run == run]
        found = [each for each in found if all(getattr(each, key) == value for key, value in facts.items())]
        return max(found, key=lambda each: each.epoch, default=None)

    def born(self, run: str, owner: Optional[str], cancellers: Optional[tuple[str, ...]] = None) -> Life:
        newest = self.newest(run)
        made = Life(run, newest.epoch + 1 if newest else 1, owner, cancellers)
        self.lives.append(made)
        return made

    def expire(self, life: Life) -> None:
        life.closed, life.parked_until = True, None
        life.outcomes.append(Outcome.PARKED)

    def opened(self, run: str, by: Any, cancellers: Optional[tuple[str, ...]]) -> Life:
        """What the ledger should make of an opening."""
        mine = self.newest(run, owner=by.owner, closed=False)
        if mine is not None:
            return mine
        waiting = self.newest(run, owner=None, closed=False)
        if waiting is not None:
            assert waiting.parked_until is not None
            actors = [actor for _, actor, _, _ in waiting.asked]
            if waiting.parked_until > self.now and (cancellers is None or set(actors) & set(cancellers)):
                waiting.owner, waiting.cancellers, waiting.parked_until = by.owner, cancellers, None
                return waiting
            if waiting.parked_until > self.now:
                for request, actor in zip(waiting.requests, actors):
                    self.turn_away(run, request, actor)
            self.expire(waiting)
        return self.born(run, by.owner, cancellers)

    @rule(run=NAMES, by=OWNERS, cancellers=st.sampled_from([None, None, ("alice",)]), quietly=st.booleans())
    def open(self, run: str, by: Any, cancellers: Optional[tuple[str, ...]], quietly: bool) -> None:
        opened = opening(run, by, self.now, cancellers=cancellers)
        if quietly:
            waiting = self.newest(run, owner=None, closed=False)
            found = self.ledger.take_tombstone(opened)
            if waiting is None or waiting.parked_until is None or waiting.parked_until <= self.now:
                assert found is None
                return
            life = self.opened(run, by, cancellers)
            assert (found is not None) == bool(life.asked)
            return
        life = self.opened(run, by, cancellers)
        record = self.ledger.open_run(opened)
        assert (record.epoch, record.cancellers) == (life.epoch, life.cancellers)
        assert (record.intent is not None) == bool(life.asked)

    @rule(run=NAMES, by=OWNERS)
    def close(self, run: str, by: Any) -> None:
        life = self.newest(run, owner=by.owner, closed=False)
        if life is not None:
            life.closed = True
            self.ledger.close_run(run, life.epoch, now=self.now)

    @rule(
        run=NAMES,
        by=OWNERS,
        actor=ACTORS,
        request=REQUESTS,
        level=st.sampled_from(Level),
        wait=st.integers(-5, 50),
        park=st.sampled_from([None, 5.0, 20.0]),
        local=st.booleans(),
    )
    def ask(self, run: str, by: Any, actor: Any, request: Any, level: Level, wait: int, park: Any, local: bool) -> None:
        until = None if park is None else self.now + park
        facts = {"by": by, "actor": actor, "request_id": request, "level": level, "deadline": NOW + wait}
        opened = opening(run, by, self.now) if local else None

        def act() -> Any:
            return cancel(self.ledger, run, opened=opened, park_until=until, now=self.now, reason=actor, **facts)

        if (run, request) in self.seen:
            life, first = self.seen[run, request]
            again = act()
            assert (again.repeated, again.first, again.intent.epoch) == (True, first, life.epoch)
            return
        target = self.opened(run, by, None) if local else self.target(run, until)
        if target is None:
            with pytest.raises(UnknownRunError):
                act()
            return
        if target.cancellers is not None and actor not in target.cancellers:
            with pytest.raises(CancelRefusedError):
                act()
            self.turn_away(run, request, actor)
            return
        recorded = act()
        assert (recorded.intent.epoch, recorded.first, recorded.repeated) == (target.epoch, not target.asked, False)
        if target.owner is None and until is not None:
            target.parked_until = max(target.parked_until or 0.0, until)
        if request is not None:
            self.seen[run, request] = target, not target.asked
        target.asked.append((actor, actor, level, NOW + wait))
        target.requests.append(request)

    def turn_away(self, run: str, request: Optional[str], actor: Optional[str]) -> None:
        """A refusal is on record once, however often it is asked."""
        if request is None or (run, request) not in self.turned_away:
            self.refused.append(actor)
        self.turned_away.add((run, request))

    def target(self, run: str, until: Optional[float]) -> Optional[Life]:
        live = [each for each in self.lives if each.run == run and each.owner is not None and not each.closed]
        if live:
            return max(live, key=lambda each: each.epoch)
        waiting = self.newest(run, owner=None, closed=False)
        if waiting is not None and waiting.parked_until is not None and waiting.parked_until > self.now:
            return waiting
        if until is None:
            return None  # and the ledger leaves an expired tombstone as it was
        if waiting is not None:
            self.expire(waiting)
        return self.born(run, None)

    @rule(run=NAMES, outcome=ENDS, by=OWNERS)
    def settle(self, run: str, outcome: Outcome, by: Any) -> None:
        asked = [each for each in self.lives if each.run == run and each.asked and each.parked_until is None]
        if not asked:
            return
        life = max(asked, key=lambda each: each.epoch)
        settled = self.ledger.settle(receipt(outcome, run), life.epoch, by=by.owner, now=self.now)
        refines = life.outcomes == [Outcome.UNCONFIRMED] and outcome is not Outcome.UNCONFIRMED
        assert settled.won == (not life.outcomes or refines)
        if settled.won:
            life.outcomes.append(outcome)
        assert settled.record.outcome is life.final

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        self.ledger.sweep(before=NOW - 1, now=self.now)
        for each in self.lives:
            if each.parked_until is not None and each.parked_until <= self.now:
                self.expire(each)

    @rule()
    def reopen(self) -> None:
        if self.url != "memory:":
            self.ledger.close()
            self.ledger = connect(self.url)

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for life in self.lives:
            found = self.ledger.intent(life.run, life.epoch)
            assert (found is not None) == bool(life.asked), life
            if found is not None:
                levels, deadlines = [each[2] for each in life.asked], [each[3] for each in life.asked]
                intent = found.intent
                assert (intent.reason, intent.actor) == life.asked[0][:2]
                assert (intent.level.rank, intent.deadline) == (max(each.rank for each in levels), min(deadlines))
                assert [each.actor for each in found.later] == [each[1] for each in life.asked[1:]]
                assert (found.outcome, found.parked_until) == (life.final, life.parked_until)
        waiting = {(each.run, each.epoch) for each in self.ledger.open_intents()}
        still = [each for each in self.lives if each.asked and each.parked_until is None]
        assert waiting == {(e.run, e.epoch) for e in still if e.final in (None, Outcome.UNCONFIRMED)}
        settled = {(each.run, each.epoch): each.outcome for each in self.ledger.receipts()}
        assert settled == {(each.run, each.epoch): each.final for each in self.lives if each.outcomes}
        assert sorted(map(str, self.refused)) == sorted(str(each.actor) for each in self.ledger.refusals())

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()


EXAMPLES = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_any_history_in_memory() -> None:
    """I5, I6, I8, I10, I11, I12, I19: after every step the ledger is what a model of plain dicts is."""
    run_state_machine_as_test(History, settings=EXAMPLES)  # type: ignore[no-untyped-call]


def test_any_history_in_a_file() -> None:
    """The same, and I3: closed and opened again at any moment, nothing acknowledged is gone."""
    with tempfile.TemporaryDirectory() as directory:

        class InAFile(History):
            numbers = itertools.count()

            def address(self) -> str:
                return f"sqlite:///{directory}/{next(self.numbers)}.db"

        run_state_machine_as_test(InAFile, settings=EXAMPLES)  # type: ignore[no-untyped-call]
