"""A world without time, threads or sockets: a virtual clock, a network that loses things, a server that misbehaves.

The chase under test is the real one, and so is the server's model of a run: only the clock and the wire are made up.
What happens is drawn from a seed, and replays exactly.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Callable, Optional

from deadstop.calls.errand import Result
from deadstop.core.model import Attempt, Phase
from deadstop.kinds.base import Request
from deadstop.testing.run_kinds import KINDS
from deadstop.testing.runs import RemoteRun

FAULTS = (
    *("none", "none", "none", "loses", "slow", "false_conflict", "young", "overloaded", "stays_cancelling"),
    *("completes_first", "ignores", "revives", "completes_later", "runs_on", "prefix", "refused", "forgets"),
)


class Timer:
    def __init__(self, work: Callable[[], None]) -> None:
        self.work: Optional[Callable[[], None]] = work

    def stop(self) -> None:
        self.work = None


class VirtualClock:
    """Time that passes when somebody says so."""

    def __init__(self) -> None:
        self.time = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self.time

    def at(self, due: float, work: Callable[[], None]) -> Timer:
        timer = Timer(work)
        heapq.heappush(self._heap, (due, next(self._order), timer))
        return timer

    def run(self, until: float) -> None:
        """Let time pass until then, and everything happen that is due."""
        while self._heap and self._heap[0][0] <= until:
            due, _, timer = heapq.heappop(self._heap)
            self.time = max(self.time, due)
            work, timer.work = timer.work, None
            if work is not None:
                work()
        self.time = until


@dataclass
class Wire:
    """The network and the server behind it: what the chase sends goes through here, and nothing else.

    `said` are the statuses that reached the client, `on_the_way` the cancel requests that are under way.
    """

    clock: VirtualClock
    run: RemoteRun
    fault: str
    draw: random.Random
    base_url: str
    said: list[str] = field(default_factory=list)
    requests: list[tuple[float, Request]] = field(default_factory=list)
    on_the_way: int = 0
    most: int = 0
    cancels: int = 0

    def spawn(self, work: Callable[[], None]) -> bool:
        work()
        return True

    def send(
        self, request: Request, number: int, timeout: float, left: Callable[[], None], done: Callable[[Result], None]
    ) -> SimpleNamespace:
        began, ended = self.clock.now(), [False]
        self.requests.append((began, request))
        cancel = request.method == "POST"
        self.cancels += cancel
        self.on_the_way += cancel
        self.most = max(self.most, self.on_the_way)

        def end(status: Optional[int], data: Any, wait: Optional[float], sent: bool, error: Optional[str]) -> None:
            if not ended[0]:
                ended[0] = True
                self.on_the_way -= cancel
                attempt = Attempt(number, began, self.clock.now(), connect=0.001, status=status, error=error)
                done(Result(attempt, status, data, wait, sent, Phase.WAITING_FOR_HEADERS if sent else Phase.CONNECTING))

        there, back = self.draw.uniform(0.0005, 0.03), self.draw.uniform(0.0005, 0.03)
        if self.fault == "slow":
            back += self.draw.uniform(0, 2)

        def abandon() -> None:  # takes effect when whoever is at it notices
            self.clock.at(self.clock.now() + 0.02, lambda: end(None, None, None, True, "abandoned"))

        def so_far() -> Result:
            return Result(Attempt(number, began, self.clock.now(), connect=0.001, error="under way"))

        out = SimpleNamespace(abandon=abandon, so_far=so_far)
        loses = self.draw.random() if self.fault == "loses" else 1.0
        self.clock.at(began + timeout, lambda: end(None, None, None, loses > 0.3, "timed out"))
        if loses < 0.3:
            if loses < 0.15:
                self.clock.at(began + there, lambda: end(None, None, None, False, "refused"))
            return out
        self.clock.at(began + there / 2, left)

        def arrive() -> None:
            answer = self._answer(request, cancel)
            if loses > 0.6 or self.fault != "loses":
                self.clock.at(self.clock.now() + back, lambda: self._deliver(end, *answer))

        self.clock.at(began + there, arrive)
        return out

    def _deliver(self, end: Any, status: int, data: Any, wait: Optional[float]) -> None:
        if isinstance(data, dict) and "status" in data:
            self.said.append(data["status"])
        end(status, data, wait, True, None)

    # The server

    def _answer(self, request: Request, cancel: bool) -> tuple[int, Any, Optional[float]]:
        run, now, fault = self.run, self.clock.now(), self.fault
        refusal = {"error": {"message": "no"}}
        if fault == "forgets" or (fault == "young" and now < run.created_at + 0.4):
            return 404, refusal, None
        if fault == "overloaded" and self.draw.random() < 0.6:
            return self.draw.choice([429, 500, 503]), refusal, self.draw.choice([None, 0.05, 0.5])
        if fault == "refused":
            return 401, refusal, None
        if not cancel:
            return 200, self._object(), None
        if fault == "false_conflict" and self.draw.random() < 0.5:
            return 409, refusal, None
        if fault == "completes_first":
            run.complete(now)
        if fault == "ignores":
            return 200, self._object(), None
        if run.is_over(now) and not (run.kind.again and run.status(now) == run.kind.cancelled):
            return run.kind.refusal_status, refusal, None
        if fault in ("runs_on", "revives", "completes_later") and not run.told:
            run.tell(run.kind.cancelled, now)
            if fault == "revives":
                run.tell(run.kind.active, now + 0.3)
            if fault == "completes_later":
                run.done_at = now + 0.3
                run.tell(run.kind.completed, now + 0.3)
        elif not run.is_over(now):
            run.cancel(now)
        return 200, self._object(), None

    def _object(self) -> dict[str, Any]:
        run = self.run
        names = {"thread_run": "thread_id", "vector_store_file_batch": "vector_store_id", "eval_run": "eval_id"}
        outer = {names[run.kind.name]: run.ids[0]} if run.kind.name in names else {}
        run_id = run.id + "9" if self.fault == "prefix" else run.id
        return {"id": run_id, **outer, "status": run.status(self.clock.now())}


def server_run(draw: random.Random, clock: VirtualClock, fault: str, *, readable: bool = False) -> RemoteRun:
    """A run of some kind that ends by itself after a while, or not."""
    kind = draw.choice([each for each in KINDS if each.readable or not readable])
    ids = tuple(prefix + str(draw.randrange(1000)) for prefix in kind.prefixes)
    run = RemoteRun(kind, ids, {}, 1, rate=100.0, total=draw.choice([1, 50, 200, 10**6]), created_at=clock.now())
    if fault == "stays_cancelling":
        run.cancelling_for = draw.choice([0.3, 1.0, float("inf")])
    return run
