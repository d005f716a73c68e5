"""The moments at which a cancel is measured, and how the server holds a call there."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from bench.sampling import SEED, Measure
from deadstop.testing import FakeProcess, RequestRecord, faults

RELEASED = "Cancel to caller released"
GONE = "Cancel to the server's end-of-file"
AIM = 1.5
AIM_P99 = 0.010

HELD = "held"  # the model that the server does not finish
QUICK = "quick"
MESSAGES: Any = [{"role": "user", "content": "Count."}]
TOKENS = 3  # sent before the server falls silent in the middle of an answer
OPENING = 1  # the event before the first token

_rng = random.Random(SEED)


@dataclass(frozen=True)
class Phase:
    """Where the call is when it is cancelled.

    `inside`: deadstop streams the call inside, and the plain SDK, which can't, is measured on a stream: the
    state of the socket is the same.
    """

    name: str
    fault: faults.Fault
    tokens: int = 0
    reused: bool = False
    streamed: bool = False
    inside: bool = False


PHASES = (
    Phase("waiting for headers, fresh connection", faults.LostHeaders()),
    Phase("waiting for headers, reused connection", faults.LostHeaders(), reused=True),
    Phase("between the events of a stream", faults.StallAfter(TOKENS), TOKENS, streamed=True),
    Phase("inside a call streamed inside", faults.StallAfter(TOKENS), TOKENS, inside=True),
)


class Sample(NamedTuple):
    """Seconds from the moment right before the cancel; `note` is anything that was not as it should be."""

    released: float
    gone: float
    note: Optional[str] = None


def measures(world: str, phase: Phase, baseline: str, ours: str) -> dict[str, Measure]:
    """The two measures of a phase, by what they measure."""
    found = {}
    for section in (RELEASED, GONE):
        found[section] = Measure(
            section, f"{world}: {phase.name}", baseline=baseline, aim=AIM, aim_p99=AIM_P99, aimed=(ours,)
        )
    return found


def keep(taken: dict[str, Sample], into: dict[str, Measure]) -> None:
    """Add one round of samples to a phase's measures."""
    for side, sample in taken.items():
        into[RELEASED].sides.setdefault(side, []).append(sample.released)
        into[GONE].sides.setdefault(side, []).append(sample.gone)
        if sample.note is not None:
            into[RELEASED].notes.append(f"{side}: {sample.note}")


def hold(server: FakeProcess, phase: Phase) -> None:
    """From now on the server holds calls for the model HELD in this phase; older records are forgotten."""
    server.reset()
    server.add(phase.fault, model=HELD)


def wait_until_held(server: FakeProcess, phase: Phase) -> RequestRecord:
    """Block until the server holds the call, and has sent what it will send. Its record."""
    records = server.wait("generating", tokens=phase.tokens)
    return next(record for record in records if record.model == HELD)


def settle_for() -> float:
    """How long (seconds) the client has to get back to its socket; random, to beat in time with nothing."""
    return _rng.uniform(0.003, 0.008)


def sample(server: FakeProcess, phase: Phase, held: RequestRecord, began: float, released: Optional[float]) -> Sample:
    """What came of a cancel that began at `began` (monotonic seconds), by the server's own record."""
    note = None
    records = server.wait("disconnected", id=held.id)
    (record,) = (record for record in records if record.id == held.id)
    nth = 2 if phase.reused else 1
    if record.nth_on_connection != nth:
        note = f"the call was number {record.nth_on_connection} on its connection, not {nth}"
    if len([each for each in records if each.model == HELD]) != 1:
        note = "the request was sent more than once"
    if released is None:
        note = "the caller was not released within 5 s"
    gone = record.peer_gone_at
    assert gone is not None
    return Sample(released - began if released is not None else 5.0, gone - began, note)


def now() -> float:
    """The clock that this process and the server's share."""
    return time.monotonic()
