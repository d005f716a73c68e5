"""Chaos on Postgres: workers that are killed and stopped at their work, and a database that is restarted (I3, I7)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from fleet_homes import LONG, SOURCES, Child
from ledger_postgres import server as database
from nursery import popen
from worlds import until

from deadstop.core.model import Intent
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Process
from deadstop.testing import FakeProcess
from deadstop.testing.faults import CancelReplySlow, StaysCancelling

pytest.importorskip("typer")
psycopg = pytest.importorskip("psycopg")

LEFT = str(Path(__file__).with_name("fleet_left_child.py"))

# The full size: `DEADSTOP_LONG=5 python -m pytest -n0 -s --timeout 600 tests/fleet -k chaos`.
INTENTS, ROUNDS = 40, 4  # a burst of cancels for each of the rounds, each of which ends somebody's work
TAKEOVER = 5.0
"""Within how many seconds others have to have taken over what a worker had in hand."""

ME = Process("test:1", "test", 1)


class Worker:
    """`deadstop reconcile`, which is killed or stopped at times."""

    def __init__(self, url: str, base_url: str) -> None:
        path = os.pathsep.join(filter(None, [SOURCES, os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": base_url}
        self.process = popen(
            ["-m", "deadstop", "reconcile", "--url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
        )
        self.stopped_at: Optional[float] = None

    def ready(self) -> Worker:
        assert self.process.stdout is not None
        assert b"Reconciling" in self.process.stdout.readline()
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)
        self.stopped_at = time.monotonic() if number == signal.SIGSTOP else None

    def end(self) -> None:
        self.process.kill()
        self.process.wait(20.0)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Chaos:
    """Three workers, one of whom at least is at work at any time."""

    def __init__(self, url: str, base_url: str, ledger: Ledger) -> None:
        self._where = (url, base_url)
        self._ledger = ledger
        self._dice = random.Random(7)
        self.takeovers: list[tuple[str, float]] = []
        self.done: Counter[str] = Counter()
        self.workers = [Worker(*self._where) for _ in range(3)]
        for each in self.workers:
            each.ready()

    def round(self, what: str) -> None:
        """Once a worker has something in hand, do that to it, and see how soon it is in other hands or settled."""
        self._done_with_stopped()
        if what == "restart":
            until(self._claimed, "somebody to be at work")
            database().tell("restart")
            self.done[what] += 1
            return
        able = [each for each in self.workers if each.stopped_at is None]
        self._dice.shuffle(able)
        found: list[Worker] = []
        until(lambda: found.extend(each for each in able if self._in_hand(each)) or found, "somebody to be at work")
        victim = found[0]
        victim.signal(signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        began, left = time.monotonic(), self._in_hand(victim)
        self.done[what] += 1
        while left:
            assert time.monotonic() < began + 20.0, f"nobody took over {left}"
            time.sleep(0.02)
            left = {run for run in left if self._still(run, victim)}
        self.takeovers.append((what, time.monotonic() - began))
        if what == "kill":
            victim.end()
            self.workers.remove(victim)
            self.workers.append(Worker(*self._where))

    def _done_with_stopped(self) -> None:
        """Who was stopped in the last round goes on, and finds that its work is another's."""
        for each in self.workers:
            if each.stopped_at is not None:
                each.signal(signal.SIGCONT)

    def _ask(self, query: str, *values: Any) -> list[Any]:
        with psycopg.connect(self._where[0], autocommit=True) as connection:
            found: list[Any] = connection.execute(query, values).fetchall()
            return found

    def _claimed(self) -> bool:
        return bool(self._ask("SELECT 1 FROM deadstop_claims WHERE expires_at > clock_timestamp()"))

    def _in_hand(self, worker: Worker) -> set[str]:
        query = "SELECT run FROM deadstop_claims WHERE expires_at > clock_timestamp() AND holder LIKE %s"
        return {run for (run,) in self._ask(query, f"%:{worker.process.pid}")}

    def _still(self, run: str, worker: Worker) -> bool:
        query = """SELECT 1 FROM deadstop_claims AS c JOIN deadstop_intents AS i USING (run)
            WHERE run = %s AND holder LIKE %s AND i.outcome IS NULL"""
        return bool(self._ask(query, run, f"%:{worker.process.pid}"))

    def end(self) -> None:
        for each in self.workers:
            each.end()


@pytest.fixture
def provider() -> Iterator[FakeProcess]:
    """One that takes its time to answer a cancel, and to cancel."""
    with FakeProcess(rate=50, tokens=100_000) as one:
        one.add(CancelReplySlow(0.3))
        one.add(StaysCancelling(0.5))
        yield one


@pytest.mark.timeout(120 * LONG)
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_whatever_happens_to_workers_and_database_every_run_is_cancelled_once_at_a_time(
    url: str, ledger: Ledger, provider: FakeProcess, child: Any
) -> None:
    """Cancels of the runs that a dead process left behind are finished by workers that are killed and stopped, over a
    restart of the database: all confirmed, never two requests for a run at once, each takeover within 5 seconds."""
    began, count = time.monotonic(), INTENTS * LONG
    holder: Child = child(url, provider.base_url, str(count), script=LEFT)
    assert holder.line() == "ready"
    holder.kill()
    chaos = Chaos(url, provider.base_url, ledger)
    try:
        rounds = ["kill", "stop", *(["kill", "stop"] * ROUNDS * LONG)][: ROUNDS * LONG]
        rounds[len(rounds) // 2] = "restart"
        for number, what in enumerate(rounds):
            bounds = (count * number // len(rounds), count * (number + 1) // len(rounds))
            record = threading.Thread(target=cancel, args=(ledger, *bounds))
            record.start()
            chaos.round(what)
            record.join()
        chaos._done_with_stopped()
        until(lambda: not ledger.open_intents(), "the last cancels")
    finally:
        chaos.end()
    truth = provider.runs()
    told = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in chaos.takeovers)
    requests = Counter(each.cancels for each in truth)
    print(f"{count} cancels, {dict(chaos.done)}; takeovers: {told}; requests for a run: {dict(requests)}; ", end="")
    print(f"{time.monotonic() - began:.0f} s")
    assert [each.truth for each in truth] == ["cancelled"] * count
    assert max(each.most_cancels for each in truth) == 1
    assert Counter(each.outcome for each in ledger.receipts(limit=10 * count)) == {"cancelled": count}
    assert all(seconds < TAKEOVER for _, seconds in chaos.takeovers), told


def cancel(ledger: Ledger, first: int, end: int) -> None:
    """Put cancels on record, as a process without a key does it; when the database is not there, again."""
    for number in range(first, end):
        intent = Intent(f"chat-{number}", reason="stop", actor="chaos", request_id=f"r-{number}", at=time.time())
        for _ in range(100):
            try:
                ledger.record_intent(intent, ME, now=time.time())
                break
            except Exception:
                time.sleep(0.1)
        else:
            raise AssertionError("the database did not come back")
