"""One request about remote runs being answered: its faults, what is done to the run, what is said of it."""

from __future__ import annotations

import re
import time
from typing import Any
from urllib.parse import parse_qs

from deadstop.testing import render_other, render_responses, render_runs
from deadstop.testing.exchange import Exchange
from deadstop.testing.faults.base import overrides
from deadstop.testing.reply import Reply, Stamp
from deadstop.testing.routes import AT_ONCE
from deadstop.testing.run_kinds import RunRequest
from deadstop.testing.run_stream import RunStream
from deadstop.testing.runs import RemoteRun, RunStore
from deadstop.testing.sse import DONE, encode_event

_STREAMING = ("response", "thread_run")
_FOREGROUND = re.compile(r"resp_fake(\d+)")


class RunExchange(Exchange):
    """What a fault may look at and do, further to an Exchange.

    `asked` says what is asked of which run; `run_now` is the run, None where there is none (yet). `runs` are all runs.
    Before the run, `queued_for` may be set, and `handled`: a fault has done what was asked in its own way, and the run
    is said as it is. `by_truth` makes a stream of events follow what is true of the run, not what it says.
    """

    def __init__(self, asked: RunRequest, runs: RunStore, record: Any, faults: Any, **shared: Any) -> None:
        super().__init__(record, AT_ONCE, faults, **shared)
        self.asked = asked
        self.runs = runs
        self.run_now: RemoteRun | None = None
        self.queued_for = 0.0
        self.handled = False
        self.by_truth = False
        self._counted: RemoteRun | None = None
        self._here = self._wire.is_there
        self._query = {key: values[-1] for key, values in parse_qs(record.query).items()}
        self.streamed = asked.kind.name in _STREAMING and (
            (asked.action == "create" and self.body.get("stream") is True)
            or (asked.action == "read" and self._query.get("stream") == "true")
        )

    @property
    def run_here(self) -> RemoteRun:
        """The run that is asked about. Only where there is one."""
        assert self.run_now is not None
        return self.run_now

    def take(self, run: RemoteRun | None) -> None:
        """This is the run that is asked about."""
        self.run_now = run
        if run is not None and self.asked.action == "cancel":
            with self.runs.changed:
                run.arrived(time.monotonic(), self._here)
                self._counted = run
                self.runs.touch()

    def say(self, run: RemoteRun, status: str | None = None) -> dict[str, Any]:
        """The run's object, with the status that it says, or with this one."""
        return run.kind.render(run, status or run.status(time.monotonic()))

    # -- the work

    def _find_reply(self) -> Reply:
        # A cancel or a read says nothing that a reply could be made from: a run keeps that of its create.
        return super()._find_reply() if self.asked.action == "create" else Reply()

    def _run_whole(self) -> None:
        self.answer(*self._work())

    def _work(self) -> tuple[int, Any]:
        """Do what is asked; the answer's status and JSON."""
        kind, action, ids = self.asked
        if action == "list":
            return 200, self._list()
        try:
            if action != "create":
                self.take(self.runs.get(kind, ids))
            for fault in self._faults:
                if overrides(fault, "before_run"):
                    fault.before_run(self)
            with self.runs.changed:
                status, answer = self._create() if action == "create" else self._do(action)
                self.runs.touch()
            for fault in self._faults:
                if overrides(fault, "after_run"):
                    fault.after_run(self)
            if action == "cancel" and status == 200:
                self._acknowledge()
            return status, answer
        finally:
            # Before the answer goes out: whoever has it may send the next one at once.
            if self._counted is not None:
                with self.runs.changed:
                    self._counted.answered(self._here)
                    self.runs.touch()

    def _create(self) -> tuple[int, Any]:
        kind, _, within = self.asked
        if self.record.bytes_in and not isinstance(self.record.body, dict):
            return 400, render_other.error("The body of the request is not a JSON object.")
        if kind.name == "thread_run" and within:
            now = time.monotonic()
            active = next((run for run in self.runs.all(kind, within) if not run.is_over(now)), None)
            if active is not None:
                return 400, render_other.error(f"Thread {within[0]} already has an active run {active.id}.")
        body = dict(self.body)
        self.run_now = self.runs.create(
            kind,
            within,
            body,
            self.record.id,
            rate=self._script.rate,
            total=kind.tokens(self.reply, body),
            reply=self.reply,
            queued_for=self.queued_for,
        )
        return 200, self.say(self.run_now)

    def _do(self, action: str) -> tuple[int, Any]:
        run, now = self.run_now, time.monotonic()
        if run is None:
            return self._unknown()
        said, over = run.status(now), run.is_over(now)
        if action == "read":
            run.reads += 1
        elif self.handled:
            pass
        elif over and not (action == "cancel" and run.kind.again and said == run.kind.cancelled):
            verb = "complete" if action == "complete" else "cancel"
            refusal = run.kind.refusal.format(name=run.kind.name.replace("_", " "), status=said)
            return run.kind.refusal_status, render_other.error(refusal.replace("cancel", verb, 1))
        elif action == "complete":
            run.complete(now)
        elif not over:
            run.cancel(now)
        return 200, self.say(run, run.status(now))

    def _unknown(self) -> tuple[int, Any]:
        """A run that is not there. It may be a response that was no run, but made in the foreground."""
        kind, action, ids = self.asked
        match = _FOREGROUND.fullmatch(ids[-1]) if kind.name == "response" else None
        made = self._book.find(int(match[1])) if match else None
        if made is not None and made.method == "POST" and made.path.endswith("/responses") and made.status == 200:
            if action == "cancel":
                return 400, render_other.error("Cannot cancel a synchronous response.")
            if made.state == "completed":
                reply = self._script.reply_to(made.body)
                return 200, render_responses.response(reply, made.body, Stamp(made.id, render_runs.CREATED))
        return 404, render_other.error(f"No {kind.name} found with id '{ids[-1]}'.", code="not_found")

    def _acknowledge(self) -> None:
        with self.runs.changed:
            if self.run_here.acknowledged_at is None:
                self.run_here.acknowledged_at = time.monotonic()
            self.runs.touch()

    def _list(self) -> dict[str, Any]:
        """The newest first, as many as are asked for, after the one that is named."""
        runs = self.runs.all(self.asked.kind, self.asked.ids)[::-1]
        after = next((at + 1 for at, run in enumerate(runs) if run.id == self._query.get("after")), 0)
        limit = int(self._query["limit"]) if self._query.get("limit", "").isdigit() else 20
        page = runs[after : after + limit]
        return {
            "object": "list",
            "data": [self.say(run) for run in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": after + limit < len(runs),
        }

    # -- streams

    def _run_streamed(self) -> None:
        status, answer = self._work()
        if status != 200 or self.run_now is None:
            self.answer(status, answer)
        self._open_stream()
        after = self._query.get("starting_after", "")
        stream = RunStream(self, self.run_here, int(after) if after.isdigit() else None)
        for event in stream.events():
            self._hold(self._frame(encode_event(event)), event.tokens)
        done = b"event: done\n" + DONE if self.asked.kind.name == "thread_run" else b""
        self._hold(self._frame(done) + self._end(), 0)
        self._flush()

    def glance(self, until: float) -> None:
        """Send what is ready, and wait till then. Notices the peer's leaving."""
        self._flush()
        self._look(until)

    def reach(self, index: int) -> None:
        """Token number `index` comes next: the faults that wait for it."""
        self._reach(index)

    def lets_end(self, status: str) -> bool:
        """The end of a run that is `status` is about to be told: its faults; whether it is told."""
        return all(fault.before_end(self, status) for fault in self._faults if overrides(fault, "before_end"))
