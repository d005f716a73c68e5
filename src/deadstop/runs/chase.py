"""The chase after one remote run: the core's machine, and the requests it asks for.

Nothing here waits. Events come from whoever has them (a worker or a task with an answer, a timer, a stream that is
read elsewhere, a canceller whose time is up); they are queued, and whoever gets the lock works the queue off.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Any, Callable, Optional, Union

from deadstop.calls.clock import REAL, Clock
from deadstop.calls.completion import Completion
from deadstop.calls.errand import Result
from deadstop.core.cancellation import Target
from deadstop.core.diagnosis import cut_short
from deadstop.core.machine import (
    AbandonWait,
    Answer,
    Cancellation,
    CancelRequested,
    DeadlinePassed,
    Effect,
    Event,
    GraceSpent,
    IdLearned,
    InterruptCall,
    NeverSent,
    PlanRetry,
    ReadFailed,
    ReadStatus,
    Record,
    Recorded,
    Replied,
    RequestLeft,
    SendCancel,
    SendFailed,
    Settle,
    StartTimer,
    StatusRead,
    TimerFired,
    step,
)
from deadstop.core.model import Attempt, Evidence, Intent, Level, Outcome, Phase, RunStatus
from deadstop.core.policy import CancelPolicy
from deadstop.kinds.servers import UNKNOWN, recognise
from deadstop.runs.asking import due
from deadstop.runs.inbox import make_way, work_off
from deadstop.runs.keeping import UNKEPT, Keeping
from deadstop.runs.rationing import plan_retry
from deadstop.runs.remote import Remote
from deadstop.runs.sending import Sending

__all__ = ["Chase"]

HOPELESS = 2
"""After how many status reads that can't succeed (401, 403, 404 of a run that is not young) a chase ends early."""


class Chase:
    """One cancellation of a remote run, until it is settled.

    `settled(chase)` is called at each outcome: the first, and the one that refines an unconfirmed one. `let_go()` is
    called when whoever waits for the run in this process is to be freed.
    """

    def __init__(
        self,
        remote: Remote,
        policy: CancelPolicy,
        *,
        settled: Callable[[Chase], None],
        let_go: Callable[[], None],
        keeping: Keeping = UNKEPT,
        clock: Clock = REAL,
    ) -> None:
        self.clock = clock
        self.keeping = keeping
        self.remote = remote
        self.policy = policy
        self.machine = Cancellation.new(Target.UNBORN if remote.ref is None else Target.REMOTE, poll=policy.poll)
        self.cancels: dict[float, Attempt] = {}  # by number,
        self.reads: dict[float, Attempt] = {}  # and those without one by when they were begun
        remote.cancels.append(self.cancels)
        remote.reads.append(self.reads)
        self.left = Completion()  # answers those who wait for `sent`
        self.accepted = Completion()  # `accepted`
        self.done = Completion()  # `confirmed`, or as near as it got
        self.settled_at: Optional[float] = None
        self.until = math.inf  # when whoever began it gives up; for the reconciler
        self._settled = settled
        self._let_go = let_go
        self._inbox: deque[Union[Event, Callable[[], None]]] = deque()
        self._once: dict[str, Any] = {}
        self._step: tuple[Any, ...] = (None,)  # the last event, and what it comes to
        self._bounds: list[Any] = []  # grace and deadline
        self._timers: list[Any] = []  # the last ones that the machine asked for
        self.under_way: Optional[Sending] = None  # or waits for its place
        self._heard: Optional[tuple[RunStatus, Optional[str]]] = None  # what the last answer to a cancel said
        self._hopeless = 0
        self.stopped = False
        self.wrong_target = False
        self.held_back = False
        self.phase = Phase.UNKNOWN  # that the last telling request was in, if it had no answer
        self.statuses: list[int] = []
        self.gone = False  # the last status read said that there is no such run
        if remote.status.is_over:
            self.feed(self._seen(0.0))
        remote.listen(self._changed)

    # What happened

    def begin(self, intent: Intent) -> None:
        """Somebody wants the run cancelled. `intent.deadline` may be infinite: the policy's timeout bounds it then."""
        deadline = due(intent, self.policy.timeout)
        grace = intent.at + self.policy.grace
        self.feed(CancelRequested(at=intent.at, intent=replace(intent, deadline=deadline)))
        self._changed(self.remote)  # what came to be known before anybody wanted it cancelled
        if not self.machine.ended and not self.stopped:
            self._bounds = [self.clock.at(deadline, self.deadline_passed)]
            if grace < deadline:
                self._bounds.append(self.clock.at(grace, self.grace_spent))
            if self.settled_at is not None or self.stopped:  # meanwhile; `done` is set too late to be looked at
                self._stop_timers()

    def grace_spent(self) -> None:
        """The gentle way had its time."""
        self.feed(GraceSpent(at=self.clock.now()))

    def deadline_passed(self) -> None:
        """Time is up: what is not known by now stays unconfirmed, until it is."""
        make_way(self._once)
        self.feed(DeadlinePassed(at=self.clock.now()))

    def stop(self) -> None:
        """Nobody wants to know any more: the client is closed."""
        self.stopped = True
        self.remote.leave(self._changed)
        self._stop_timers()
        if self.under_way is not None:
            self.under_way.abandon()

    def _changed(self, remote: Remote) -> None:
        now = self.clock.now()
        if remote.never_ran:
            self.feed(NeverSent(at=now))
        elif remote.lost:
            self.deadline_passed()  # there is no id to come, so there is nothing to wait for
        else:
            if not self.machine.known and remote.ref is not None:
                self.feed(IdLearned(at=now))
            if remote.status.is_over:
                self.feed(self._seen(now))

    def _seen(self, now: float) -> StatusRead:
        remote = self.remote
        return StatusRead(at=now, run=remote.status, word=remote.word, evidence=remote.evidence)

    # The machine

    def feed(self, event: Event) -> None:
        """Tell the machine, and do what it asks for. Never blocks; any thread."""
        self._inbox.append(event)
        work_off(self._once, self._inbox, self._work_off)

    def after(self, tell: Callable[[], None]) -> None:
        """Have `tell()` called when what has come by now is worked off, by whoever is at it. Never blocks."""
        self._inbox.append(tell)
        work_off(self._once, self._inbox, self._work_off)

    def _work_off(self) -> None:
        while self._inbox:
            event = self._inbox[0]
            if callable(event):
                event()
                del self._inbox[0]
                continue
            if self._step[0] is not event:  # or Ctrl-C came in the midst of it
                self._step = (event, *step(self.machine, event))
            _, self.machine, effects = self._step
            try:
                for effect in effects:
                    self._perform(effect)
            except Exception:  # of a kind of the user's own, say: what comes after it is worked off all the same
                del self._inbox[0]
                raise
            del self._inbox[0]

    def pick_up(self) -> None:
        """Go on with what Ctrl-C may have broken off."""
        make_way(self._once)
        work_off(self._once, self._inbox, self._work_off)

    def _perform(self, effect: Effect) -> None:
        now = self.clock.now()
        if isinstance(effect, SendCancel) and self.remote.status is RunStatus.CANCELLING:
            # Somebody's cancel was taken already. Another one does no good, and has been seen to wedge a server.
            taken = RunStatus.CANCELLING
            self._inbox.append(Replied(at=now, attempt=effect.attempt, status=202, run=taken, word=self.remote.word))
        elif isinstance(effect, SendCancel):
            request = self.remote.kind.to_cancel(self.ref)
            self._send(request, effect.attempt, partial(self._replied, effect.attempt), cancel=True)
        elif isinstance(effect, ReadStatus):
            self._read(effect.read)
        elif isinstance(effect, PlanRetry):
            self._inbox.append(
                plan_retry(self.remote.channel.base_url, effect, self.policy, self.machine.deadline, now)
            )
        elif isinstance(effect, StartTimer):
            event = TimerFired(at=now + effect.delay, timer=effect.timer)
            self._timers.append(self.clock.at(event.at, lambda: self.feed(event)))
            del self._timers[:-2]  # the machine waits for one at a time
        elif isinstance(effect, Record):
            self.keeping.recorded(lambda: self.feed(Recorded(at=self.clock.now())))
        elif isinstance(effect, (InterruptCall, AbandonWait)):
            self._let_go()
        elif isinstance(effect, Answer):
            self._answer(effect)
        elif isinstance(effect, Settle):
            self._settle()

    def _answer(self, answer: Answer) -> None:
        self.left.set()
        if answer.level is not Level.SENT:
            self.accepted.set()

    def _settle(self) -> None:
        if self.settled_at is None:
            self.settled_at = self.clock.now()
        if self.machine.outcome is not Outcome.UNCONFIRMED:
            self.remote.leave(self._changed)
        self._stop_timers()
        out = self.under_way
        if out is not None:
            out.note(self.machine.outcome is Outcome.UNCONFIRMED)
            out.abandon()
        self._let_go()
        self._settled(self)
        for each in (self.left, self.accepted, self.done):
            each.set()

    def _stop_timers(self) -> None:
        for each in [*self._bounds, *self._timers]:
            each.stop()

    # Requests

    @property
    def ref(self) -> Any:
        assert self.remote.ref is not None  # the machine sends nothing before the id is learned
        return self.remote.ref

    def time_left(self) -> float:
        bounds = [self.policy.attempt_timeout, self.keeping.left()]
        if self.machine.deadline is not None and not self.machine.ended:
            bounds.append(self.machine.deadline - self.clock.now())
        return max(min(bounds), 0.001)

    def _send(self, request: Any, number: int, done: Callable[[Result], None], *, cancel: bool) -> None:
        self.remote.in_turn(Sending(self, request, number, done, cancel=cancel).begin)

    def may(self) -> bool:
        """Whether this process may still act on the run."""
        return self.keeping.left() > 0.0

    def request_left(self, number: int) -> None:
        self.feed(RequestLeft(at=self.clock.now(), attempt=number))

    def _replied(self, number: int, result: Result) -> None:
        self.note(result, cancel=True)
        self.keeping.sent(result.attempt)
        now = self.clock.now()
        if result.status is None:
            self.feed(SendFailed(at=now, attempt=number, may_have_arrived=result.may_have_arrived))
            return
        status, word = self._status_in(result) if result.status < 400 else (RunStatus.UNKNOWN, None)
        self._heard = (status, word) if status.is_over else None
        self.feed(
            Replied(at=now, attempt=number, status=result.status, run=status, word=word, retry_after=result.retry_after)
        )

    def _read(self, number: int) -> None:
        heard, self._heard = self._heard, None
        if heard is not None:  # the answer to the cancel held the status: that was the read
            self._saw(number, *heard)
            return
        self._send(self.remote.kind.to_read(self.ref), number, partial(self._was_read, number), cancel=False)

    def _was_read(self, number: int, result: Result) -> None:
        self.note(result)
        now = self.clock.now()
        if result.status is not None:
            self.gone = result.status == 404
        if result.status is not None and result.status < 400:
            status, word = self._status_in(result)
            if word is None:
                self._lost_hope()
                self.feed(ReadFailed(at=now, read=number))
                return
            self._hopeless = 0
            self._saw(number, status, word)
            return
        if result.status is not None:
            self.statuses.append(result.status)
        if result.status == 404 and not self._is_young(now):
            self.feed(StatusRead(at=now, run=RunStatus.GONE, read=number))
        else:
            self.feed(ReadFailed(at=now, read=number, retry_after=result.retry_after))
        refused = result.status is not None and 400 <= result.status < 500
        if refused and result.status not in (408, 409, 425, 429) and not (result.status == 404 and self._is_young(now)):
            self._lost_hope()

    def _saw(self, number: int, status: RunStatus, word: Optional[str]) -> None:
        if word is not None:
            self.remote.observe(word, Evidence.STATUS)  # which settles it, if it is over
        self.feed(StatusRead(at=self.clock.now(), run=status, word=word, read=number))

    def _is_young(self, now: float) -> bool:
        return self.remote.known_at is not None and now - self.remote.known_at < self.machine.young

    @property
    def hopeless(self) -> bool:
        """Whether there is no point in going on: the server says that there is no such run, or that it is not ours."""
        return self._hopeless >= HOPELESS

    def _lost_hope(self) -> None:
        self._hopeless += 1
        if self.hopeless:
            self.deadline_passed()

    def _status_in(self, result: Result) -> tuple[RunStatus, Optional[str]]:
        """The status that an answer holds, if the answer is about this very run (I9)."""
        kind = self.remote.kind
        found = kind.find(result.data, within=self.ref.ids)
        if found is None and isinstance(result.data, dict):
            found = kind.take(result.data, within=self.ref.ids)
        if found is None:
            return RunStatus.UNKNOWN, None
        if found[0] != self.ref:
            self.wrong_target = True
            return RunStatus.UNKNOWN, None
        return kind.read(found[1]), found[1]

    def read_in(self, result: Result) -> Optional[str]:
        """The provider's word for the status that a status read told, if it told one."""
        self.note(result)
        return self._status_in(result)[1] if result.status is not None and result.status < 400 else None

    def note(self, result: Result, *, cancel: bool = False, under_way: bool = False) -> None:
        """Keep what came of a cancel request, or a status read, for receipts and diagnoses.

        `under_way`: it is not over, and what comes of it in the end, or has come just now, takes the place of this.
        """
        attempt, noted = result.attempt, self.cancels if cancel else self.reads
        key = attempt.number or attempt.started
        if not under_way:
            if attempt.status is None and key in noted and self.machine.outcome is not Outcome.UNCONFIRMED:
                return  # it was broken off because the run was over, as it says there
            noted[key] = attempt
        elif noted.setdefault(key, attempt) is not attempt:
            return
        requests = [*self.cancels.values(), *self.reads.values()]
        if result.status is not None:
            self.phase = Phase.UNKNOWN
        elif not cut_short(attempt, requests, self.machine.deadline):
            self.phase = result.phase
        if result.headers is not None and self.remote.server is UNKNOWN:
            self.remote.server = recognise(self.remote.channel.base_url, result.headers)

    # What is known

    @property
    def outcome(self) -> Optional[Outcome]:
        """What it has come to. A server's word that is not evidence enough for the policy confirms nothing (I2)."""
        outcome = self.machine.outcome
        return Outcome.UNCONFIRMED if outcome is Outcome.CANCELLED and self.doubtful else outcome

    @property
    def doubtful(self) -> bool:
        """Whether the server says that it is cancelled, and the policy wants to know more surely."""
        if self.machine.outcome is not Outcome.CANCELLED or self.remote.never_ran:
            return False
        found = max(self.machine.evidence, self.remote.server.word, key=lambda evidence: evidence.rank)
        return found.rank < self.policy.evidence.rank
