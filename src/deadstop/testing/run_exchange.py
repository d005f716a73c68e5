"""One request about remote runs being answered: its faults, what is done to the run, what is said of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from deadstop.testing import render_other, render_runs
from deadstop.testing.exchange import Exchange
from deadstop.testing.faults.base import overrides
from deadstop.testing.reply import Event, Reply
from deadstop.testing.routes import AT_ONCE
from deadstop.testing.run_kinds import RunRequest
from deadstop.testing.runs import RemoteRun, RunStore
from deadstop.testing.sse import DONE, encode_event

_GLANCE = 0.002
"""How long (seconds) a stream waits before it looks at its run again."""

_STREAMING = ("response", "thread_run")


class RunExchange(Exchange):
    """What a fault may look at and do, further to an Exchange.

    `asked` says what is asked of which run; `run` is the run, None where there is none (yet). `runs` are all runs.
    """

    def __init__(self, asked: RunRequest, runs: RunStore, record: Any, faults: Any, **shared: Any) -> None:
        super().__init__(record, AT_ONCE, faults, **shared)
        self.asked = asked
        self.runs = runs
        self.run_now: RemoteRun | None = None
        self.reply = Reply()
        self._before = [fault for fault in self._faults if overrides(fault, "before_run")]
        self._after = [fault for fault in self._faults if overrides(fault, "after_run")]
        self._stream_from = _number(record.query, "starting_after")
        self.streamed = asked.kind.name in _STREAMING and (
            (asked.action == "create" and self.body.get("stream") is True)
            or (asked.action == "read" and "stream=true" in record.query)
        )

    @property
    def run_here(self) -> RemoteRun:
        """The run that is asked about. Only where there is one."""
        assert self.run_now is not None
        return self.run_now

    def say(self, run: RemoteRun, status: str | None = None) -> dict[str, Any]:
        """The run's object, with the status that it says, or with this one."""
        return run.kind.render(run, status or run.status(time.monotonic()), self.reply)

    # -- the work

    def _run_whole(self) -> None:
        self.answer(*self._work())

    def _work(self) -> tuple[int, Any]:
        """Do what is asked; the answer's status and JSON."""
        kind, action, ids = self.asked
        if action == "list":
            return 200, {"object": "list", "data": [self.say(run) for run in self.runs.all(kind)], "has_more": False}
        if action == "create":
            self._lock_thread(ids)
        else:
            self.run_now = self.runs.get(kind, ids)
        self._count(1)
        try:
            for fault in self._before:
                fault.before_run(self)
            if action == "create":
                total = min(self.reply.count(), int(self.body.get("max_output_tokens") or self.reply.count()))
                self.run_now = self.runs.create(kind, ids, dict(self.body), self._script.rate, total)
            elif self.run_now is None:
                return 404, render_other.error(f"No {kind.name} found with id '{ids[-1]}'.", code="not_found")
            answer = self._do(action)
            self.runs.touch()
            for fault in self._after:
                fault.after_run(self)
            return answer
        finally:
            self._count(-1)

    def _do(self, action: str) -> tuple[int, Any]:
        run, now = self.run_here, time.monotonic()
        if action == "read":
            run.reads += 1
        if action == "complete":
            run.complete(now)
        if action == "cancel":
            said = run.status(now)
            if run.is_over(now) and not (run.kind.again and said == run.kind.cancelled):
                refusal = run.kind.refusal.format(name=run.kind.name.replace("_", " "), status=said)
                return run.kind.refusal_status, render_other.error(refusal)
            if not run.is_over(now):
                run.cancel(now)
            if run.acknowledged_at is None:
                run.acknowledged_at = now
        return 200, self.say(run)

    def _lock_thread(self, ids: tuple[str, ...]) -> None:
        if self.asked.kind.name != "thread_run" or not ids:
            return
        now = time.monotonic()
        active = next(
            (run for run in self.runs.all(self.asked.kind) if run.ids[0] == ids[0] and not run.is_over(now)), None
        )
        if active is not None:
            self.answer(400, render_other.error(f"Thread {ids[0]} already has an active run {active.id}."))

    def _count(self, change: int) -> None:
        """Keep count of the cancel requests that are under way."""
        run = self.run_now
        if run is None or self.asked.action != "cancel":
            return
        with self.runs.changed:
            run.cancels_now += change
            if change > 0:
                run.cancels += 1
                run.most_cancels = max(run.most_cancels, run.cancels_now)
                if run.first_cancel_at is None:
                    run.first_cancel_at = time.monotonic()
        self.runs.touch()

    # -- streams

    def _run_streamed(self) -> None:
        self._work()
        self._open_stream()
        for event in self._events():
            self._hold(self._frame(encode_event(event)), event.tokens)
        done = b"event: done\n" + DONE if self.asked.kind.name == "thread_run" else b""
        self._hold(self._frame(done) + self._end(), 0)
        self._flush()

    def _events(self) -> Iterator[Event]:
        run, reply = self.run_here, self.reply
        render = render_runs.response_events if run.kind.name == "response" else render_runs.thread_events
        number = 0
        for number, event in enumerate(render(run, reply)):
            if event.tokens:
                due = run.created_at + (self.record.tokens_generated + 1) / run.rate if run.rate > 0 else 0.0
                if not self._until(run, due):
                    break
                self.record.tokens_generated += 1
            if self._stream_from is None or number > self._stream_from:
                yield event
        else:
            return
        status = run.status(time.monotonic())
        if run.kind.name == "thread_run":
            yield render_runs.thread_status(run, status, reply)
        else:
            yield render_runs.response_end(run, status, reply, number)

    def _until(self, run: RemoteRun, due: float) -> bool:
        """Wait until the next token is due; whether the run gets that far. What it says of itself counts."""
        self._flush()
        while True:
            now = time.monotonic()
            if run.status(now) in (run.kind.cancelled, *run.kind.other_ends):
                return False
            if now >= due:
                return True
            self._look(min(due, now + _GLANCE))


def _number(query: str, name: str) -> int | None:
    for part in query.split("&"):
        key, _, value = part.partition("=")
        if key == name and value.isdigit():
            return int(value)
    return None
