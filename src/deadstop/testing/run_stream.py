"""The events of a remote run, for one who listens: what has been is replayed at once, the rest comes as it happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deadstop.testing import render_runs
from deadstop.testing.reply import Event

if TYPE_CHECKING:
    from deadstop.testing.run_exchange import RunExchange
    from deadstop.testing.runs import RemoteRun

_GLANCE = 0.002
"""How long (seconds) a stream waits before it looks at its run again: a cancel comes on another connection."""


class RunStream:
    """One answer's way through the events of a run, from after number `after` on."""

    def __init__(self, exchange: RunExchange, run: RemoteRun, after: int | None) -> None:
        self._exchange, self._run, self._after = exchange, run, after
        self._threads = run.kind.name == "thread_run"

    def events(self) -> Iterator[Event]:
        """The events, each when it is due."""
        run, record = self._run, self._exchange.record
        number, told_cancelling = 0, False
        for number, event in enumerate(self._undisturbed()):
            due = run.due(record.tokens_generated) if event.tokens else run.starts_at if number else 0.0
            if event.tokens:
                self._exchange.reach(record.tokens_generated)
            for word in self._until(due):
                if word == run.kind.cancelling and self._threads and not told_cancelling:
                    told_cancelling = True
                    yield render_runs.thread_status(run, word)
                if run.is_end(word):
                    yield from self._end(number, word, told_cancelling)
                    return
            record.tokens_generated += event.tokens
            if self._after is None or number > self._after:
                yield event

    def _undisturbed(self) -> Iterator[Event]:
        """All that is said of a run to which nothing happens."""
        if not self._threads:
            return render_runs.response_events(self._run)
        return render_runs.thread_events(self._run, alone=bool(self._exchange.asked.ids))

    def _until(self, due: float) -> Iterator[str]:
        """Wait until then, and say meanwhile what the run says of itself; its end last, if it ends before."""
        run = self._run
        while True:
            now = time.monotonic()
            ended = self._ended(now)
            if ended is not None and ended < due:
                yield run.status(now) if not self._exchange.by_truth else self._truth(now)
                return
            if now >= due:
                return
            yield run.status(now) if ended is None and not run.is_over(now) else run.kind.active
            self._exchange.glance(min(due, now + _GLANCE))

    def _ended(self, now: float) -> float | None:
        if self._exchange.by_truth:
            return self._run.ends_at if now >= self._run.ends_at else None
        return self._run.over_since(now)

    def _truth(self, now: float) -> str:
        kind = self._run.kind
        return {"cancelled": kind.cancelled, "completed": kind.completed}.get(self._run.truth(now), kind.failed)

    def _end(self, number: int, word: str, told_cancelling: bool) -> Iterator[Event]:
        """The last events of a run that did not go its whole way."""
        run = self._run
        if not self._exchange.lets_end(word) or (self._after is not None and number <= self._after):
            return
        if not self._threads:
            yield render_runs.response_end(run, word, number)
            return
        if word == run.kind.cancelled and not told_cancelling:
            yield render_runs.thread_status(run, str(run.kind.cancelling))
        yield render_runs.thread_status(run, word)
