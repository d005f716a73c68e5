"""Thousands of drawn schedules: every invariant that a chase can hold, judged by the server's own truth."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from simulated import FAULTS, VirtualClock, Wire, server_run

from deadstop.core.diagnosis import diagnose
from deadstop.core.machine import CancelRequested, Replied
from deadstop.core.model import Cause, Evidence, Intent, Level, Outcome, RunStatus
from deadstop.core.policy import CancelPolicy
from deadstop.kinds import register as kinds
from deadstop.kinds.base import Ref
from deadstop.runs import rationing
from deadstop.runs.chase import Chase
from deadstop.runs.receipts import evidence_on
from deadstop.runs.remote import Remote

SCHEDULES = 6_000
LYING = ("runs_on", "revives", "completes_later")


def play(seed: int, faults: Sequence[str] = FAULTS, *, calm: bool = False) -> dict[str, Any]:
    """One schedule, checked. What came of it. `calm`: a kind that can be read, and time enough for each request."""
    draw = random.Random(seed)
    random.seed(seed)  # the jitter
    clock = VirtualClock()
    fault = draw.choice(faults)
    server = server_run(draw, clock, fault, readable=calm)
    kind = kinds.kind(server.kind.name)
    wire = Wire(clock, server, fault, draw, f"seed://{seed}")
    ref = Ref(kind.name, server.ids)
    unborn = draw.random() < 0.3
    remote = Remote(kind, wire, None if unborn else ref, clock)
    if not unborn and draw.random() < 0.5:
        remote.known_at = 0.0
    policy = CancelPolicy(
        timeout=draw.uniform(0.2, 6), attempt_timeout=draw.uniform(0.5 if calm else 0.05, 2), grace=1.0
    )
    settled: list[tuple[float, Outcome, str]] = []

    def note(one: Chase) -> None:
        settled.append((clock.now(), one.machine.outcome, server.truth(clock.now())))
        if one.machine.outcome is Outcome.UNCONFIRMED and remote.ref is not None and not one.hopeless:
            # As the reconciler does: it goes on at once, behind the back of whoever gave up.
            onward = Chase(
                remote, policy.replace(timeout=20.0), settled=background.append, let_go=clock.now, clock=clock
            )
            onward.begin(Intent(run=str(ref), reason="first", at=clock.now()))

    background: list[Chase] = []
    chase = Chase(remote, policy, settled=note, let_go=clock.now, clock=clock)
    asked = draw.uniform(0, 1.5)
    first = Intent(run=str(ref), reason="first", cause=Cause.USER, at=asked, request_id="one")
    clock.at(asked, partial(chase.begin, first))
    deadlines = [asked + policy.timeout]
    for number in range(draw.randrange(4)):  # others want the same; some of them twice
        at, bound = asked + draw.uniform(0, 2), draw.uniform(0.2, 5)
        again = draw.random() < 0.2
        later = Intent(
            run=str(ref),
            reason=f"later {number}",
            deadline=float("inf") if again else at + bound,
            level=draw.choice(list(Level)),
            at=at,
            request_id="one" if again else f"id {number}",
        )
        clock.at(at, partial(chase.feed, CancelRequested(at=at, intent=later)))
        if not again:
            clock.at(at + bound, chase.deadline_passed)
            deadlines.append(at + bound)
    never_ran = lost = False
    if unborn:
        fate, at = draw.random(), draw.uniform(0, 2.5)
        never_ran, lost = fate < 0.2, 0.2 <= fate < 0.4
        learn = partial(remote.born, ref) if fate >= 0.4 else partial(remote.unborn, never_ran, None)
        clock.at(at, learn)
    if draw.random() < 0.3:  # its event stream is open, and tells
        clock.at(draw.uniform(0, 4), lambda: overhear(remote, server, clock, wire, fault))
    clock.run(min(deadlines) + 1e-6)
    where = f"seed {seed}: {fault}, {chase.machine.state}, {settled}, {wire.said}"

    assert settled, f"I1 {where}"
    clock.run(60.0)
    check(where, settled, chase, wire, server, fault, never_ran=never_ran, ref=ref)
    if lost and settled[0][0] < asked + 2.6:
        assert settled[0][1] in (Outcome.UNCONFIRMED, Outcome.CANCELLED), where
    rationing._budgets.clear()
    return {"fault": fault, "outcome": settled[0][1], "cancels": wire.cancels, "most": wire.most}


def overhear(remote: Remote, server: Any, clock: VirtualClock, wire: Wire, fault: str) -> None:
    """An event of the run's own stream tells its status, where the stream tells the truth."""
    if remote.ref is not None and fault != "prefix":
        word = server.status(clock.now())
        wire.said.append(word)
        remote.observe(word, Evidence.EVENTS)


def check(
    where: str, settled: list[Any], chase: Chase, wire: Wire, server: Any, fault: str, *, never_ran: bool, ref: Ref
) -> None:
    outcomes = [outcome for _, outcome, _ in settled]
    machine = chase.machine
    # I5, I6: one outcome; an unconfirmed one may be refined, once.
    assert len(outcomes) == 1 or (len(outcomes) == 2 and outcomes[0] is Outcome.UNCONFIRMED), f"I6 {where}"
    # I2: no confirm without evidence, nor against the truth.
    if outcomes[-1] is Outcome.CANCELLED:
        assert server.kind.cancelled in wire.said or never_ran, f"I2 {where}"
        if fault not in LYING and not never_ran:
            assert settled[-1][2] == "cancelled", f"I2 {where}"
    # I18: what has finished is not said to be cancelled.
    if outcomes[-1] is Outcome.FINISHED_FIRST:
        assert server.kind.completed in wire.said, f"I18 {where}"
    # I7: one at a time.
    assert wire.most <= 1, f"I7 {where}"
    # I9: nothing but this run's own paths.
    kind = kinds.kind(ref.kind)
    allowed = {kind.to_cancel(ref).path, kind.to_read(ref).path}
    assert {request.path for _, request in wire.requests} <= allowed, f"I9 {where}"
    if fault == "prefix" and not never_ran:
        assert outcomes[-1] is Outcome.UNCONFIRMED, f"I9 {where}"
    # I10: the first cause sticks; I8: a repeated request adds nothing.
    assert machine.intent is not None
    assert machine.intent.reason == "first", f"I10 {where}"
    ids = [each.request_id for each in machine.later]
    assert len(ids) == len(set(ids)), f"I8 {where}"
    assert "one" not in ids, f"I8 {where}"
    # I17: an unconfirmed one says why.
    if outcomes[-1] is Outcome.UNCONFIRMED:
        assert diagnose(evidence_on(chase)).klass, f"I17 {where}"
    # Nothing is sent for a run that is known to be over.
    last = settled[-1][0]
    if outcomes[-1] is not Outcome.UNCONFIRMED:
        assert all(at <= last for at, _ in wire.requests), f"S8 {where}"


@pytest.mark.timeout(240)  # it computes, and nothing else: seconds, or on a busy machine a minute
def test_drawn_schedules_hold_every_invariant() -> None:
    """No false confirm, no double flight, no unbounded wait, in thousands of drawn schedules."""
    seen = play_all()
    assert seen[Outcome.CANCELLED] > SCHEDULES / 4
    assert seen[Outcome.FINISHED_FIRST] > SCHEDULES / 50
    assert seen[Outcome.UNCONFIRMED] > SCHEDULES / 20


@pytest.mark.parametrize(
    ("fault", "most"), [("none", 1), ("completes_first", 1), ("stays_cancelling", 2), ("ignores", 2), ("runs_on", 1)]
)
def test_no_cancel_too_many(fault: str, most: int) -> None:
    """Where no answer is lost, a run gets one cancel request, however many want it cancelled.

    A second one comes only from the reconciler, of a run that goes on working after a cancel that was taken.
    """
    assert {play(seed, [fault], calm=True)["cancels"] for seed in range(300)} == set(range(most + 1))


def believes_any_object(self: Chase, result: Any) -> Any:
    """Looks at the status, and not at whose it is."""
    word = result.data.get("status") if isinstance(result.data, dict) else None
    return self.remote.kind.read(word), word


def takes_404_for_done(self: Chase, number: int, result: Any) -> None:
    """A run that can't be found must be gone."""
    if result.status == 404:
        self._saw(number, RunStatus.CANCELLED, None)
    else:
        was_read(self, number, result)


def takes_2xx_for_done(self: Chase, number: int, result: Any) -> None:
    """The server has said yes."""
    if result.status == 200:
        self._heard = (RunStatus.CANCELLED, None)
        self.feed(Replied(at=self.clock.now(), attempt=number, status=200, run=RunStatus.CANCELLED))
    else:
        replied(self, number, result)


def sends_at_once(self: Remote, send: Any) -> None:
    """Does not wait for its turn."""
    send(lambda: None)


def waits_for_ever(self: Chase) -> None:
    """Does not mind the deadline."""


def play_all() -> Counter[Outcome]:
    """Every schedule; how often each outcome came."""
    return Counter(play(seed)["outcome"] for seed in range(SCHEDULES))


was_read, replied = Chase._was_read, Chase._replied


@pytest.mark.parametrize(
    ("owner", "name", "mutant", "invariant"),
    [
        (Chase, "_status_in", believes_any_object, "I9|I2"),
        (Chase, "_was_read", takes_404_for_done, "I2"),
        (Chase, "_replied", takes_2xx_for_done, "I2"),
        (Remote, "in_turn", sends_at_once, "I7"),
        (Chase, "deadline_passed", waits_for_ever, "I1"),
    ],
)
def test_known_bugs_are_caught(
    owner: Any, name: str, mutant: Any, invariant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bugs that others have had, built into the chase, break the invariant that forbids them."""
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises(AssertionError, match=invariant):
        play_all()
