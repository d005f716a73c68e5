"""One call that is going to be cancelled at a random moment, what may come of it, and the tally of it all."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

RATE = 500.0  # tokens per second
TOKENS = 12
TEXT = "".join(f"t{number} " for number in range(TOKENS))
MESSAGES: Any = [{"role": "user", "content": "Count."}]

TIMEOUT = 10.0
"""How long (seconds) a call may wait for anything: in a pool whose slots are all lost, it would be for ever."""

SHAPES = ("value", "inside", "stream", "stream", "left early")
EXACT = sys.version_info >= (3, 12)
"""Whether a thread keeps its turn from the fence's last look to the caller's next line."""


@dataclass
class Trial:
    """What is going to happen to one call. `fenced` is set when the cancel is known to have taken hold."""

    name: str
    model: str
    shape: str
    way: str
    delay: float
    fenced: bool = False
    stream: Any = None

    @property
    def streamed(self) -> bool:
        return self.shape in ("stream", "left early")

    def fence(self, *_: Any) -> None:
        """From here on nothing may be delivered."""
        self.fenced = True


@dataclass
class Tally:
    """What came of all trials. Every count but the first four is a violation."""

    calls: int = 0
    cancels: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    broken: int = 0
    sent_again: int = 0
    unconfirmed: int = 0
    surprises: Counter[str] = field(default_factory=Counter)
    leaked: dict[str, int] = field(default_factory=dict)
    leaked_after_collection: dict[str, int] = field(default_factory=dict)
    neighbours: int = 0
    pace: float = 2 * TOKENS / RATE  # how long (seconds) a call takes that nobody cancels, here and now
    lock: threading.Lock = field(default_factory=threading.Lock)

    def surprise(self, where: str, error: BaseException) -> None:
        """Something was raised that should not have been."""
        with self.lock:
            self.surprises[f"{where}: {type(error).__name__}: {error}"[:160]] += 1

    def receipt(self, receipt: Any) -> None:
        """A cancel ended so."""
        with self.lock:
            self.outcomes[receipt.outcome.value] += 1
            self.unconfirmed += receipt.outcome == "unconfirmed"
            for call in receipt.calls:
                self.phases[call.phase.value] += 1

    def count(self, **counts: int) -> None:
        """Add to the counts."""
        with self.lock:
            for name, number in counts.items():
                setattr(self, name, getattr(self, name) + number)

    @property
    def is_hopeless(self) -> bool:
        """So much has gone wrong that to go on would tell nothing new."""
        return sum(self.surprises.values()) >= 10

    def neighbour(self, intact: bool, seconds: float) -> None:
        """A call that nobody cancelled has ended."""
        with self.lock:
            self.neighbours += 1
            self.broken += not intact
            self.pace += (seconds - self.pace) / 8

    def violations(self) -> dict[str, int]:
        """Everything that must be 0, by what it is."""
        return {
            **{f"leaked: {what}": max(number, 0) for what, number in self.leaked.items()},
            "delivered after a cancel": self.delivered,
            "requests sent again": self.sent_again,
            "healthy neighbours broken": self.broken,
            "cancels unconfirmed": self.unconfirmed,
            "unexpected errors": sum(self.surprises.values()),
        }


def draw(rng: random.Random, number: int, ways: tuple[str, ...], pace: float) -> Trial:
    """A trial whose cancel comes while it sets out, while it is answered, or when it is over."""
    delay = rng.choice((rng.uniform(0, pace / 8), rng.uniform(0, pace), rng.uniform(0, pace * 1.5)))
    return Trial(f"trial {number}", f"trial-{number}", rng.choice(SHAPES), rng.choice(ways), delay)


def sent_again(records: list[Any], tally: Tally) -> int:
    """How many requests the server saw beyond the first of each call; each call has a model of its own."""
    seen = Counter(record.model for record in records if record.model is not None)
    return sum(number - 1 for number in seen.values())
