"""Remote runs on the fake server: what each is doing by the clock, what it says of itself, and what is true.

A run costs nothing while it works: where it stands is worked out from the time whenever somebody looks.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deadstop.testing.reply import Reply
from deadstop.testing.run_kinds import RunKind

_TOKEN_PAUSE = 0.005
"""At least so long (seconds) those who wait do not look for new tokens. All else is seen at once."""


@dataclass(frozen=True)
class RunRecord:
    """One remote run, as the server knows it: the ground truth. Times are `time.monotonic()` seconds.

    `status` is what the server says, and `history` all that it has been saying, each with the time from when on.
    `truth` is `active`, `cancelled`, `completed` or `failed`, whatever the server says. `tokens` have been generated so
    far: `tokens_after_request` of them after the first cancel request arrived, `tokens_after_cancel` after the first
    one was acknowledged (a 2xx went out). `cancels` cancel requests have arrived, and `most_cancels` is the largest
    number of them that were under way at once, each with a client that still waited. `request` is the number of the
    create's RequestRecord; each create that is not refused makes a run of its own.
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
    tokens_after_request: int
    history: tuple[tuple[float, str], ...]
    request: int

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
    """A run on the server. Faults change it by its methods; `told` holds what it will say from when on.

    Whatever it has said stays said: `told` only grows, and a word of None is the truth again.
    """

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
    told: list[tuple[float, str | None]] = field(default_factory=list)
    cancels: int = 0
    most_cancels: int = 0
    reads: int = 0
    first_cancel_at: float | None = None
    acknowledged_at: float | None = None
    reply: Reply = field(default_factory=Reply)
    queued_for: float = 0.0
    """How long (seconds) it waits before it works."""
    cancelling_at: float = math.inf
    """When a cancel was begun, in truth."""
    ends_as: str = "completed"
    """What becomes of it at `done_at`, in truth: completed or failed."""
    under_way: list[Callable[[], bool]] = field(default_factory=list)
    """For each cancel request that is being answered, whether its client is still there."""

    def __post_init__(self) -> None:
        if not self.kind.works:
            self.total = 0
        work = self.total / self.rate if 0 < self.rate < math.inf else 0.0
        self.worked_at = self.starts_at + work
        """When all of its tokens are generated, if nothing comes between."""
        if self.kind.works:
            self.done_at = self.worked_at

    @property
    def id(self) -> str:
        return self.ids[-1]

    @property
    def starts_at(self) -> float:
        """When its work begins."""
        return self.created_at + self.queued_for

    @property
    def ends_at(self) -> float:
        """When it is over in truth, as far as is known."""
        return min(self.cancel_at, self.done_at)

    def truth(self, now: float) -> str:
        """What has really become of it."""
        if now >= self.ends_at:
            return "cancelled" if self.cancel_at < self.done_at else self.ends_as
        return "active"

    def status(self, now: float) -> str:
        """What it says of itself."""
        told = [word for at, word in self.told if at <= now]
        if told and told[-1] is not None:
            return told[-1]
        kind, truth = self.kind, self.truth(now)
        if truth != "active":
            return {"cancelled": kind.cancelled, "completed": kind.completed}.get(truth, kind.failed)
        working = kind.queued or kind.active if now < self.starts_at else kind.active
        return kind.cancelling or working if now >= self.cancelling_at else working

    def history(self, now: float) -> list[tuple[float, str]]:
        """What it has been saying, each with the time from when on."""
        times = {self.created_at, self.starts_at, self.cancelling_at, self.ends_at, *(at for at, _ in self.told)}
        said: list[tuple[float, str]] = []
        for at in sorted(at for at in times if self.created_at <= at <= now):
            word = self.status(at)
            if not said or said[-1][1] != word:
                said.append((at, word))
        return said

    def is_end(self, word: str) -> bool:
        """Whether this word of its kind says that it is over."""
        return word in (self.kind.cancelled, self.kind.completed, *self.kind.other_ends)

    def is_over(self, now: float) -> bool:
        """Whether it says that it is over."""
        return self.is_end(self.status(now))

    def over_since(self, now: float) -> float | None:
        """Since when it says that it is over; None while it does not."""
        since = None
        for at, word in reversed(self.history(now)):
            if not self.is_end(word):
                break
            since = at
        return since

    def next_change(self, now: float) -> float:
        """When it will say something else, or something else will be true, if nothing comes between."""
        times = (self.starts_at, self.cancel_at, self.done_at, *(at for at, _ in self.told))
        return min((at for at in times if at > now), default=math.inf)

    def next_token(self, now: float) -> float:
        """When it will have generated one more, if nothing comes between."""
        return self.due(self.tokens(now)) if self.truth(now) == "active" and self.tokens(now) < self.total else math.inf

    def cancel(self, now: float) -> None:
        """Begin to cancel it, in truth."""
        wait = self.kind.cancelling_for if self.cancelling_for is None else self.cancelling_for
        self.cancelling_at = min(self.cancelling_at, now)
        if self.cancel_at == math.inf:
            self.cancel_at = now + wait

    def complete(self, at: float) -> None:
        """It finishes then, unless it is over before."""
        self.done_at = min(self.done_at, at)

    def fail(self, at: float) -> None:
        """It fails then, unless it is over before."""
        if at < self.ends_at:
            self.done_at, self.ends_as = at, "failed"

    def hang(self, now: float) -> None:
        """It never ends any more, unless it has already."""
        if self.truth(now) == "active":
            self.cancel_at = self.done_at = math.inf

    def tell(self, word: str | None, at: float) -> None:
        """From `at` on it says `word`, whatever is true; None: the truth again."""
        self.told = sorted([*self.told, (at, word)], key=lambda each: each[0])

    def due(self, index: int) -> float:
        """When it generates token number `index` (from 0), if nothing comes between."""
        return self.starts_at + (index + 1) / self.rate if 0 < self.rate < math.inf else self.starts_at

    def tokens(self, now: float) -> int:
        """How many tokens it has generated."""
        until = min(now, self.ends_at)
        if until < self.starts_at:
            return 0
        if until >= self.worked_at:
            return self.total
        return min(self.total, max(0, int((until - self.starts_at) * self.rate + 1e-9)))

    def arrived(self, now: float, present: Callable[[], bool]) -> None:
        """A cancel request of it has come. `present` tells whether its client still waits for the answer."""
        # One whose client has left is no longer under way, though the server may not have looked yet.
        self.under_way = [*(each for each in self.under_way if each()), present]
        self.cancels += 1
        self.most_cancels = max(self.most_cancels, len(self.under_way))
        if self.first_cancel_at is None:
            self.first_cancel_at = now

    def answered(self, present: Callable[[], bool]) -> None:
        """That cancel request will be answered now, or never."""
        self.under_way = [each for each in self.under_way if each is not present]

    def record(self) -> RunRecord:
        """How it stands now."""
        now = time.monotonic()
        truth, tokens = self.truth(now), self.tokens(now)
        return RunRecord(
            kind=self.kind.name,
            ids=self.ids,
            created_at=self.created_at,
            status=self.status(now),
            truth=truth,
            ended_at=None if truth == "active" else self.ends_at,
            tokens=tokens,
            tokens_after_cancel=0 if self.acknowledged_at is None else tokens - self.tokens(self.acknowledged_at),
            cancels=self.cancels,
            most_cancels=self.most_cancels,
            reads=self.reads,
            first_cancel_at=self.first_cancel_at,
            acknowledged_at=self.acknowledged_at,
            tokens_after_request=0 if self.first_cancel_at is None else tokens - self.tokens(self.first_cancel_at),
            history=tuple(self.history(now)),
            request=self.serial,
        )


class RunStore:
    """All runs of a server, and a way to wait for what they will be. `changed` guards every change of a run."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._runs: dict[tuple[str, tuple[str, ...]], RemoteRun] = {}

    def create(
        self, kind: RunKind, within: tuple[str, ...], body: dict[str, Any], serial: int, **more: Any
    ) -> RemoteRun:
        """A new run. `within` are the ids that its path names; its own is made of `serial`."""
        ids = tuple(
            within[at] if at < len(within) else f"{prefix}fake{serial}" for at, prefix in enumerate(kind.prefixes)
        )
        with self.changed:
            run = self._runs[kind.name, ids] = RemoteRun(kind, ids, body, serial, **more)
            self.changed.notify_all()
        return run

    def get(self, kind: RunKind, ids: tuple[str, ...]) -> RemoteRun | None:
        """The run of these ids."""
        with self.changed:
            return self._runs.get((kind.name, ids))

    def like(self, kind: RunKind, ids: tuple[str, ...]) -> RemoteRun | None:
        """A run whose last id begins so. A server that looks runs up like this is broken; a fault does."""
        return next((run for run in self.all(kind) if run.id.startswith(ids[-1])), None)

    def all(self, kind: RunKind | None = None, within: tuple[str, ...] = ()) -> list[RemoteRun]:
        """Every run, oldest first: of that kind, and whose outer ids are these."""
        with self.changed:
            runs = list(self._runs.values())
        return [run for run in runs if (kind is None or run.kind is kind) and run.ids[: len(within)] == within]

    def records(self) -> list[RunRecord]:
        """How every run stands now."""
        with self.changed:
            return [run.record() for run in self._runs.values()]

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
        """Block until `predicate(records)` holds: looked at anew when a run changes, or is due to by the clock.

        Raises TimeoutError, naming the runs.
        """
        deadline = time.monotonic() + timeout
        with self.changed:
            while True:
                now = time.monotonic()  # before the look: what changes during it is looked at again
                if predicate(self.records()):
                    return
                if now >= deadline:
                    known = "; ".join(map(str, self.records())) or "none"
                    raise TimeoutError(f"What was waited for did not come true in {timeout:g} s. The runs: {known}.")
                runs = list(self._runs.values())
                change = min((run.next_change(now) for run in runs), default=math.inf)
                token = min((run.next_token(now) for run in runs), default=math.inf)
                # With many runs at work a look takes long: a tenth of the time at most goes into looking.
                pause = max(_TOKEN_PAUSE, 10 * (time.monotonic() - now))
                self.changed.wait(min(deadline, change, max(token, now + pause)) - time.monotonic())
