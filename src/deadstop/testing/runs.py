"""Remote runs on the fake server: what each is doing by the clock, what it says of itself, and what is true.

A run costs nothing while it works: where it stands is worked out from the time whenever somebody looks.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deadstop.testing.run_kinds import RunKind


@dataclass(frozen=True)
class RunRecord:
    """One remote run, as the server knows it: the ground truth. Times are `time.monotonic()` seconds.

    `status` is what the server says; `truth` is `active`, `cancelled` or `completed`, whatever it says. `tokens` have
    been generated so far, `tokens_after_cancel` of them after the first cancel request was acknowledged. `most_cancels`
    is the largest number of cancel requests that were under way at once.
    """

    kind: str
    ids: tuple[str, ...]
    created_at: float
    status: str
    truth: str
    ended_at: float | None
    tokens: int
    tokens_after_cancel: int
    cancels: int
    most_cancels: int
    reads: int
    first_cancel_at: float | None
    acknowledged_at: float | None

    @property
    def id(self) -> str:
        return self.ids[-1]

    def __str__(self) -> str:
        return (
            f"{self.kind}:{'/'.join(self.ids)} says {self.status}, is {self.truth} ({self.tokens} tokens, "
            f"{self.cancels} cancels, {self.reads} reads)"
        )


@dataclass
class RemoteRun:
    """A run on the server. Faults change it by its methods; `told` holds what it will say from when on."""

    kind: RunKind
    ids: tuple[str, ...]
    body: dict[str, Any]
    serial: int
    rate: float
    total: int
    created_at: float = field(default_factory=time.monotonic)
    cancelling_for: float | None = None
    """How long (seconds) it says `cancelling` before it is cancelled. None: the kind's own time; inf: for ever."""
    cancel_at: float = math.inf
    """When a cancel takes effect, in truth."""
    done_at: float = math.inf
    told: list[tuple[float, str]] = field(default_factory=list)
    cancels: int = 0
    cancels_now: int = 0
    most_cancels: int = 0
    reads: int = 0
    first_cancel_at: float | None = None
    acknowledged_at: float | None = None

    def __post_init__(self) -> None:
        work = self.total / self.rate if 0 < self.rate < math.inf else 0.0
        self.done_at = self.created_at + work

    @property
    def id(self) -> str:
        return self.ids[-1]

    def truth(self, now: float) -> str:
        """What has really become of it."""
        if now >= min(self.cancel_at, self.done_at):
            return "cancelled" if self.cancel_at < self.done_at else "completed"
        return "active"

    def status(self, now: float) -> str:
        """What it says of itself."""
        told = [word for at, word in self.told if at <= now]
        if told:
            return told[-1]
        truth = self.truth(now)
        if truth != "active":
            return self.kind.cancelled if truth == "cancelled" else self.kind.completed
        return self.kind.cancelling or self.kind.active if self.cancel_at < math.inf else self.kind.active

    def is_over(self, now: float) -> bool:
        """Whether it says that it is over."""
        return self.status(now) in (self.kind.cancelled, self.kind.completed, *self.kind.other_ends)

    def next_change(self, now: float) -> float:
        """When it will say something else by itself."""
        return min(
            (at for at in (self.cancel_at, self.done_at, *(at for at, _ in self.told)) if at > now), default=math.inf
        )

    def cancel(self, now: float) -> None:
        """Begin to cancel it, in truth."""
        wait = self.kind.cancelling_for if self.cancelling_for is None else self.cancelling_for
        if self.cancel_at == math.inf and wait != math.inf:
            self.cancel_at = now + wait
        elif wait == math.inf:
            self.tell(self.kind.cancelling or self.kind.active, now)

    def complete(self, now: float) -> None:
        """It finishes now."""
        self.done_at = min(self.done_at, now)

    def tell(self, word: str, at: float) -> None:
        """From `at` on it says `word`, whatever is true."""
        self.told = sorted([*self.told, (at, word)])

    def tokens(self, now: float) -> int:
        """How many tokens it has generated."""
        until = min(now, self.cancel_at, self.done_at)
        if not 0 < self.rate < math.inf:
            return self.total
        return min(self.total, max(0, int((until - self.created_at) * self.rate)))

    def record(self) -> RunRecord:
        """How it stands now."""
        now = time.monotonic()
        truth = self.truth(now)
        before = 0 if self.acknowledged_at is None else self.tokens(self.acknowledged_at)
        return RunRecord(
            kind=self.kind.name,
            ids=self.ids,
            created_at=self.created_at,
            status=self.status(now),
            truth=truth,
            ended_at=None if truth == "active" else min(self.cancel_at, self.done_at),
            tokens=self.tokens(now),
            tokens_after_cancel=0 if self.acknowledged_at is None else self.tokens(now) - before,
            cancels=self.cancels,
            most_cancels=self.most_cancels,
            reads=self.reads,
            first_cancel_at=self.first_cancel_at,
            acknowledged_at=self.acknowledged_at,
        )


class RunStore:
    """All runs of a server, and a way to wait for what they will be."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._runs: dict[tuple[str, tuple[str, ...]], RemoteRun] = {}
        self._serials = itertools.count(1)

    def create(
        self, kind: RunKind, within: tuple[str, ...], body: dict[str, Any], rate: float, total: int
    ) -> RemoteRun:
        """A new run. `within` are the ids that its path names."""
        with self.changed:
            serial = next(self._serials)
            ids = tuple(
                within[at] if at < len(within) else prefix + f"fake{serial}" for at, prefix in enumerate(kind.prefixes)
            )
            run = RemoteRun(kind, ids, body, serial, rate, total)
            self._runs[kind.name, ids] = run
            self.changed.notify_all()
            return run

    def get(self, kind: RunKind, ids: tuple[str, ...]) -> RemoteRun | None:
        """The run of these ids."""
        with self.changed:
            return self._runs.get((kind.name, ids))

    def like(self, kind: RunKind, ids: tuple[str, ...]) -> RemoteRun | None:
        """A run whose last id begins so. A server that looks runs up like this is broken; a fault does."""
        with self.changed:
            return next(
                (run for (name, _), run in self._runs.items() if name == kind.name and run.id.startswith(ids[-1])), None
            )

    def all(self, kind: RunKind | None = None) -> list[RemoteRun]:
        """Every run, oldest first."""
        with self.changed:
            return [run for run in self._runs.values() if kind is None or run.kind is kind]

    def records(self) -> list[RunRecord]:
        """How every run stands now."""
        return [run.record() for run in self.all()]

    def touch(self) -> None:
        """Tell those who wait that something changed."""
        with self.changed:
            self.changed.notify_all()

    def forget(self) -> None:
        """Forget all runs."""
        with self.changed:
            self._runs.clear()
            self.changed.notify_all()

    def wait_for(self, predicate: Callable[[list[RunRecord]], bool], timeout: float) -> None:
        """Block until `predicate(records)` holds. Raises TimeoutError, naming the runs."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while not predicate(self.records()):
                now = time.monotonic()
                if now >= deadline:
                    known = "; ".join(map(str, self.records())) or "none"
                    raise TimeoutError(f"What was waited for did not come true in {timeout:g} s. The runs: {known}.")
                change = min((run.next_change(now) for run in self.all()), default=math.inf)
                working = any(run.truth(now) == "active" for run in self.all())  # its tokens change, too
                self.changed.wait(min(deadline - now, change - now, 0.01 if working else math.inf))
