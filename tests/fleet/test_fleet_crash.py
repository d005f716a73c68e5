"""The crash sweep: whatever a process is doing when it is killed, another one finishes its cancel (I3)."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

from fleet_homes import SWEEP, Child
from worlds import PATIENCE

import deadstop
from deadstop.ledger.base import Ledger
from deadstop.testing import FakeOpenAI

LONG = int(os.environ.get("DEADSTOP_LONG", "1"))
"""How many times the whole sweep is made. By hand: `DEADSTOP_LONG=20 pytest --timeout 3600 tests/fleet -k crash`."""


def test_a_process_that_is_killed_at_any_point_loses_and_doubles_nothing(
    url: str, ledger: Ledger, server: FakeOpenAI, child: Any
) -> None:
    """SIGKILL before and after every durable write, every request and every answer of a cancel: what is on record is
    finished by another process, once, with the outcome that the server knows to be true; what had been acknowledged
    is on record."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    client.runs.policy = deadstop.CancelPolicy(timeout=10.0, recheck=0)
    zygote: Child = child(url, server.base_url, script=SWEEP)
    assert zygote.line() == "ready"
    kills: Counter[str] = Counter()
    for turn in range(LONG):
        *_, said = one(zygote, f"chat-{turn}", "nowhere")
        for number, at in enumerate(sorted(said)):
            name = f"chat-{turn}-{number}"
            killed, acknowledged, _ = one(zygote, name, at)
            kills[at] += killed
            finish(client, ledger)
            judge(server, ledger, name, acknowledged, at)
    print(f"{sum(kills.values())} kills at {len(kills)} points")
    assert {"record_intent-after:1", "POST-before:1", "POST-left-after:1", "settle-before:1"} <= set(+kills)
    client.close()


def one(zygote: Child, name: str, at: str) -> tuple[bool, bool, list[str]]:
    """One trial: whether the process was killed, whether its cancel was acknowledged, the points that it came by."""
    zygote.say(f"{name} {at}")
    acknowledged, points = False, []
    while True:
        what, told, more = zygote.line().split()
        assert told == name
        if what == "over":
            return more != "0", acknowledged, points
        acknowledged = acknowledged or what == "acknowledged"
        points = more.split(",") if what == "points" else points


def finish(client: Any, ledger: Ledger) -> None:
    """Another process does what there is to do."""
    member, until_ = client.runs._registry.keeper.member, time.monotonic() + PATIENCE
    while ledger.open_intents():
        assert time.monotonic() < until_, "the cancel that was left was not finished"
        member.read(member.read_again)
        member.reads.drain(PATIENCE)


def judge(server: FakeOpenAI, ledger: Ledger, name: str, acknowledged: bool, point: str) -> None:
    """What is on record against what the server did."""
    wanted = ledger.intent(name)
    assert wanted is not None or not acknowledged, f"lost: {point}"
    known = {each.ref: each for each in (ledger.remotes(name, wanted.epoch) if wanted else [])}
    if wanted is None:
        return
    for run in (each for each in server.runs if f"response:{each.ids[0]}" in known):
        assert (run.truth, run.cancels, run.most_cancels) == ("cancelled", 1, 1), f"{point}: {run}"
        assert known[f"response:{run.ids[0]}"].terminal, point
    (outcome,) = ledger.receipts(name)
    assert (outcome.outcome, outcome.receipt.actor) == ("cancelled", "sweep"), point
    assert known, point
