"""The crash sweep: whatever a process is doing when it is killed, another one finishes its cancel (I3)."""

from __future__ import annotations

import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Optional

import pytest
from fleet_homes import LONG, SWEEP, Child
from worlds import until

import deadstop
from deadstop.fleet.member import Member
from deadstop.ledger.base import Ledger
from deadstop.testing import FakeProcess
from deadstop.testing.runs import RunRecord

AT_ONCE = 3
KILLS = {"sqlite": 200, "postgresql": 100}
STORIES = ("scope", "pair", "address", "orphan")


class Sweep:
    """Trials, each a process of its own that is killed at one point, and what became of them."""

    def __init__(self, url: str, base_url: str) -> None:
        self._where = (url, base_url)
        self.stories: dict[str, str] = {}  # by the names of trials
        self.points: dict[str, str] = {}
        self.acknowledged: set[str] = set()
        self.kills: Counter[tuple[str, str]] = Counter()
        self.came_by: dict[str, list[str]] = {}

    def run(self, trials: list[tuple[str, str]], meanwhile: Any) -> None:
        """Run trials (story, point) to their end, a few at once, and call `meanwhile()` each time that one is over."""
        names = [f"chat-{len(self.stories) + number}" for number in range(len(trials))]
        self.stories.update((name, story) for name, (story, _) in zip(names, trials))
        self.points.update((name, at) for name, (_, at) in zip(names, trials))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for each in as_completed([pool.submit(self._trial, name) for name in names]):
                each.result()
                meanwhile()

    def _trial(self, name: str) -> None:
        story, at = self.stories[name], self.points[name]
        child = Child(*self._where, name, story, at, script=SWEEP)
        try:
            while line := child.line():
                what, more = line.split()
                if what == "acknowledged":
                    self.acknowledged.add(name)
                elif what == "points":
                    self.came_by[name] = more.split(",")
        finally:
            child.end()
        assert child.process.returncode in (0, -signal.SIGKILL), f"{name} failed"
        self.kills[story, at] += child.process.returncode != 0


@pytest.mark.timeout(240 * LONG)
def test_a_process_that_is_killed_at_any_point_loses_and_doubles_nothing(url: str, ledger: Ledger) -> None:
    """SIGKILL before and after every durable write, every request and every answer of a cancel, and of an orphan's
    making: what is on record is finished by another process, once, with the outcome that the server knows to be true;
    what had been acknowledged is on record."""
    began = time.monotonic()
    with FakeProcess(rate=50, tokens=100_000) as server:
        client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
        client.runs.policy = deadstop.CancelPolicy(timeout=10.0, recheck=0)
        member = client.runs._registry.keeper.member
        sweep = Sweep(url, server.base_url)

        def finish() -> None:
            """Another process does what there is to do."""
            member.read(member.read_again)

        sweep.run([(story, "nowhere") for story in STORIES], finish)
        points = [(sweep.stories[name], at) for name, said in sweep.came_by.items() for at in sorted(said)]
        assert {story for story, _ in points} == set(STORIES)
        wanted = KILLS[url.partition(":")[0]] * LONG
        while sum(sweep.kills.values()) < wanted:
            before = sum(sweep.kills.values())
            turn = points[: wanted - before]
            sweep.run(turn, finish)
            assert sum(sweep.kills.values()) > before + len(turn) / 2
            until(lambda: finished(member, ledger), "what was left to be finished")
        truth, requests = server.runs(), {each.id: each.model for each in server.records()}
        for name in sweep.stories:
            judge(ledger, sweep, name, [each for each in truth if requests[each.request] == name])
        client.close()
    seconds = time.monotonic() - began
    print(f"{sum(sweep.kills.values())} kills at {len(+sweep.kills)} points of {len(STORIES)} stories, {seconds:.0f} s")
    for story in STORIES[:3]:
        needed = {"record_intent-after:1", "POST-before:1", "POST-left-after:1", "settle-before:1"}
        assert needed <= {at for each, at in +sweep.kills if each == story}


def finished(member: Member, ledger: Ledger) -> bool:
    """Look once more at what there is to do; whether it is nothing."""
    member.read(member.read_again)
    member.reads.drain(5.0)
    return not ledger.open_intents() and not ledger.orphans(silent=0.0, now=time.time())


def judge(ledger: Ledger, sweep: Sweep, name: str, truth: list[RunRecord]) -> None:
    """What is on record of a trial against what the server did."""
    story, told = sweep.stories[name], f"{name}: {sweep.stories[name]} at {sweep.points[name]}"
    names = [f"response:{each.id}" for each in truth] if story == "address" else [name]
    for run in names:
        wanted = ledger.intent(run)
        assert wanted is not None or name not in sweep.acknowledged, f"lost: {told}"
        known = {each.ref: each for each in ledger.remotes(run, 1)}
        if wanted is None:
            assert story != "orphan" or not known or sweep.points[name] == "nowhere", f"lost: {told}"
            continue
        assert known, told
        for each in truth:
            kept = known.get(f"response:{each.id}")
            if kept is not None or name in sweep.acknowledged:
                assert (each.truth, each.cancels, each.most_cancels) == ("cancelled", 1, 1), f"{told}: {each}"
                assert kept is not None, told
                assert kept.terminal, told
        (outcome,) = ledger.receipts(run)
        actor: Optional[str] = None if story == "orphan" else "sweep"
        assert (outcome.outcome, outcome.receipt.actor) == ("cancelled", actor), told
