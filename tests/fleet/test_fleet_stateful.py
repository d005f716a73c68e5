"""Random histories of three processes that share a ledger, are killed, and cancel each other's runs (I3, I19)."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import hypothesis.strategies as st
import pytest
from fleet_homes import BOUND, LONG
from fleet_processes import Holder
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from worlds import until

import deadstop
from deadstop.core.model import Outcome
from deadstop.ledger.base import Ledger
from deadstop.testing import FakeProcess

SLOTS = st.integers(0, 2)
NAMES = st.sampled_from("ab")
ACTORS = st.sampled_from(["ann", "bob", None])
CANCELLERS = st.sampled_from([None, ["ann"], ["ann", "bob"]])
WRITES = ("record_intent-before", "record_intent-after", "begin_attempt-before", "settle-before", "settle-after")
SENDS = ("POST-before", "POST-left-after", "POST-answer-before")
POINTS = st.sampled_from(["", "", "", *WRITES, *SENDS])
THERE = ("cancelled", "finished_first", "parked")


class Host:
    """What all histories share: a ledger, a server, processes, and one that lives through all of it."""

    def __init__(self, ledger: Ledger, url: str, server: FakeProcess, child: Any) -> None:
        self.ledger, self.server = ledger, server
        self.start = functools.partial(Holder, child, url, server.base_url)
        self.client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
        self.client.runs.policy = deadstop.CancelPolicy(timeout=10.0, recheck=0)
        self.histories = itertools.count()
        self.kills = 0
        self.processes = [self.start() for _ in range(3)]

    def finish(self) -> None:
        """Look at what the dead left behind."""
        member = self.client.runs._registry.keeper.member
        member.read(member.read_again)
        member.reads.drain(BOUND)


@dataclass
class Asked:
    """One cancel that was tried."""

    run: str
    actor: Optional[str]
    reason: str
    answer: Optional[dict[str, Any]]  # None: its process died of it

    @property
    def said(self) -> Optional[str]:
        return self.answer and self.answer["said"]


@dataclass
class Open:
    slot: int
    cancellers: Optional[list[str]]
    cancelled: bool = False


@dataclass
class Begun:
    run: str
    id: str
    cancellers: Optional[list[str]] = field(default=None)


class History(RuleBasedStateMachine):
    """Opens and leaves scopes, cancels as somebody who may or may not, kills processes at rest and at a point."""

    host: ClassVar[Host]

    @initialize()
    def begin(self) -> None:
        self.number = next(self.host.histories)
        self.open: dict[str, Open] = {}
        self.begun: list[Begun] = []
        self.asked: list[Asked] = []

    @rule(slot=SLOTS, name=NAMES, cancellers=CANCELLERS)
    def enter(self, slot: int, name: str, cancellers: Optional[list[str]]) -> None:
        run = f"{self.number}-{name}"
        if run in self.open:
            return
        answer = self.host.processes[slot].do("open", run=run, cancellers=cancellers)
        assert answer is not None
        if answer["said"] == "open":
            self.open[run] = Open(slot, cancellers)
            self.begun.append(Begun(run, answer["id"], cancellers))
            return
        assert answer["said"] == "born cancelled", answer
        waiting = [each for each in self.asked if each.run == run and each.said in ("parked", None)]
        assert answer["reason"] in [each.reason for each in waiting]
        assert cancellers is None or {each.actor for each in waiting} & set(cancellers)

    @rule(name=NAMES)
    def leave(self, name: str) -> None:
        left = self.open.pop(f"{self.number}-{name}", None)
        if left is not None:
            self.host.processes[left.slot].do("leave", run=f"{self.number}-{name}")

    @rule(slot=SLOTS, name=NAMES, actor=ACTORS, dying=POINTS)
    def cancel(self, slot: int, name: str, actor: Optional[str], dying: str) -> None:
        run = f"{self.number}-{name}"
        reason = f"{self.number}-{len(self.asked)}"
        answer = self.host.processes[slot].do("cancel", run=run, actor=actor, reason=reason, dying=dying)
        asked = Asked(run, actor, reason, answer)
        self.asked.append(asked)
        held = self.open.get(run)
        if answer is None:
            assert dying
            self.died(slot)
        elif held is not None and not held.cancelled:
            allowed = held.cancellers is None or actor in held.cancellers
            assert asked.said == ("cancelled" if allowed else "refused"), asked
            held.cancelled = allowed
        else:
            assert asked.said in (*THERE, "refused"), asked

    @rule(slot=SLOTS)
    def kill(self, slot: int) -> None:
        self.host.processes[slot].kill()
        self.died(slot)

    def died(self, slot: int) -> None:
        self.host.kills += 1
        self.open = {run: held for run, held in self.open.items() if held.slot != slot}
        self.host.processes[slot] = self.host.start()

    # What has to hold in the end

    def teardown(self) -> None:
        if not hasattr(self, "open"):
            return
        for run, held in self.open.items():
            self.host.processes[held.slot].do("leave", run=run)
        until(self.finished, "every cancel to come to its end")
        ledger, truth = self.host.ledger, {each.id: each for each in self.host.server.runs()}
        epochs, reasons, firsts = {}, set[Optional[str]](), set[Optional[str]]()
        for run in {each.run for each in [*self.asked, *self.begun]}:
            for life in ledger.runs(run, ended=True):
                wanted = ledger.intent(run, life.epoch)
                epochs.update({each.ids[0]: (life, wanted) for each in ledger.remotes(run, life.epoch)})
                if wanted is not None:
                    every = [wanted.intent, *wanted.later]
                    reasons |= {each.reason for each in every}
                    firsts.add(wanted.intent.reason)
                    if life.cancellers is not None:
                        assert life.opened_at is not None
                        # A tombstone is taken up if one of those who asked may; the others come with it.
                        later = {each.actor for each in every if each.at > life.opened_at}
                        assert later <= set(life.cancellers)
                        assert {each.actor for each in every} & set(life.cancellers)
            refusals = [each.reason for each in ledger.refusals(run)]
            tried = {each.reason: each for each in self.asked if each.run == run}
            assert set(refusals) <= set(tried)
            assert not any(tried[str(each)].said in ("cancelled", "finished_first") for each in refusals)
            for each in tried.values():
                if each.said == "refused":
                    assert refusals.count(each.reason) == 1, each
        for each in self.asked:
            if each.said == "refused":
                assert each.reason not in reasons, f"it had no authority, and took effect: {each}"
            elif each.said in THERE and each.answer is not None:
                # Who comes later joins the first, whose reason the receipt has.
                assert each.reason in reasons or each.answer["reason"] in firsts, f"lost: {each}"
        for one in self.begun:
            life, wanted = epochs[one.id]
            assert life.cancellers == (None if one.cancellers is None else tuple(sorted(one.cancellers)))
            found = truth[one.id]
            if wanted is None:
                assert (found.truth, found.cancels) == ("active", 0), one
            else:
                assert (wanted.outcome, found.truth, found.cancels) == (Outcome.CANCELLED, "cancelled", 1), one

    def finished(self) -> bool:
        self.host.finish()
        mine = f"{self.number}-"
        return not any(each.run.startswith(mine) for each in self.host.ledger.open_intents())


@pytest.mark.timeout(240 * LONG)
def test_any_history_of_three_processes(url: str, ledger: Ledger, child: Any) -> None:
    """I3: a cancel that was acknowledged is on record and comes to its end, whoever was killed when. I19: one by an
    actor who may not raises, is on record as refused, and no remote run notices it. And no run is cancelled twice."""
    with FakeProcess(rate=50, tokens=100_000) as server:
        host = Host(ledger, url, server, child)

        class Here(History):
            pass

        Here.host = host
        # Processes and their timing are no part of the draw, so there is nothing to shrink.
        # On Postgres a cancel that nobody takes waits for a second, since only a holder answers: so there are fewer.
        most = (25 if url.startswith("sqlite") else 4) * LONG
        steps = settings(max_examples=most, stateful_step_count=14, deadline=None, phases=[Phase.generate])
        try:
            run_state_machine_as_test(Here, settings=steps)  # type: ignore[no-untyped-call]
        finally:
            for each in host.processes:
                each.kill()
            host.client.close()
        print(f"{next(host.histories)} histories, {host.kills} kills")
