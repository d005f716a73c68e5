"""Samples that were taken side by side, and what they come to."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Callable, NamedTuple, Optional

SEED = 20_240_229


class Spent(NamedTuple):
    """What one sample took, in seconds: on the clock, and of this thread's processor time."""

    wall: float
    cpu: float


@dataclass
class Measure:
    """One thing measured on several sides, in interleaved rounds.

    `sides` holds the samples (seconds) by side; sample number k of every side is from round k. Ratios are to
    the side `baseline`. `aim` is the ratio of medians that the sides in `aimed` want to stay within,
    `aim_p99` the 99th percentile (seconds); both are reported, never asserted.
    """

    section: str
    name: str
    sides: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    baseline: str = ""
    aim: Optional[float] = None
    aim_p99: Optional[float] = None
    aimed: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def add(self, spent: Mapping[str, Spent], per: int = 1) -> None:
        """One round; `per` is how many units of work each sample did."""
        for side, each in spent.items():
            self.sides.setdefault(side, []).append(each.wall / per)
            self.cpu.setdefault(side, []).append(each.cpu / per)


def shuffled(names: Mapping[str, object], rng: random.Random) -> list[str]:
    """The sides in the order of this round."""
    order = list(names)
    rng.shuffle(order)
    return order


def rounds(count: int, warm_up: int, sides: Mapping[str, Callable[[], object]], measure: Measure, per: int = 1) -> None:
    """Run every side once per round, in random order, and keep what each took, but for the first rounds."""
    rng = random.Random(SEED)
    for number in range(warm_up + count):
        spent = {}
        for side in shuffled(sides, rng):
            work = sides[side]
            cpu, wall = time.thread_time(), time.perf_counter()
            work()
            spent[side] = Spent(time.perf_counter() - wall, time.thread_time() - cpu)
        if number >= warm_up:
            measure.add({side: spent[side] for side in sides}, per)


async def rounds_async(
    count: int,
    warm_up: int,
    sides: Mapping[str, Callable[[], Awaitable[object]]],
    measure: Measure,
    per: int = 1,
) -> None:
    """`rounds` in a task."""
    rng = random.Random(SEED)
    for number in range(warm_up + count):
        spent = {}
        for side in shuffled(sides, rng):
            work = sides[side]
            cpu, wall = time.thread_time(), time.perf_counter()
            await work()
            spent[side] = Spent(time.perf_counter() - wall, time.thread_time() - cpu)
        if number >= warm_up:
            measure.add({side: spent[side] for side in sides}, per)


def percentile(samples: list[float], percent: float) -> float:
    """The nearest-rank percentile."""
    return sorted(samples)[max(math.ceil(len(samples) * percent / 100) - 1, 0)]


def ratio(samples: list[float], baseline: list[float]) -> float:
    """The ratio of the medians."""
    return statistics.median(samples) / statistics.median(baseline)


def interval(samples: list[float], baseline: list[float], draws: int = 300) -> tuple[float, float]:
    """The 95 % bootstrap interval of the ratio of medians. Rounds are drawn whole, with their noise."""
    rng = random.Random(SEED)
    pairs = list(zip(samples, baseline))
    found = []
    for _ in range(draws):
        ours, theirs = zip(*rng.choices(pairs, k=len(pairs)))
        found.append(statistics.median(ours) / statistics.median(theirs))
    found.sort()
    return found[int(draws * 0.025)], found[int(draws * 0.975)]
