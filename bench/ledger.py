"""Durable intents: two processes of sixteen threads on one SQLite file, beside bare sqlite3 with the same inserts.

Bare is what one writes first: a connection for each process, a lock around it, a transaction for each intent; WAL, and
a sync at every commit. Its file has the ledger's schema, so its inserts pass the same checks, indexes and triggers.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from bench.sampling import SEED, Measure, shuffled
from deadstop.core.model import Intent
from deadstop.ledger import connect, rows
from deadstop.ledger.facts import Opening, Process
from deadstop.ledger.queries import queries

PROCESSES = 2
THREADS = 16
BARE = "bare sqlite3"
OURS = "the ledger"
SIDES = {BARE: "bare", OURS: "ledger"}

Record = Callable[[str], None]


def measure_ledger(quick: bool) -> Iterator[Measure]:
    """Seconds per durable intent, over both processes: the ratio is that of throughputs, turned round."""
    each, times = (40, 3) if quick else (80, 9)
    count = PROCESSES * THREADS * each
    measure = Measure(
        "Durable intents", f"{PROCESSES} x {THREADS} threads, {count} a round", baseline=BARE, aim=2.0, aimed=(OURS,)
    )
    where = tempfile.mkdtemp(prefix="deadstop-bench-")
    workers: dict[str, list[subprocess.Popen[str]]] = {}
    try:
        for side, word in SIDES.items():
            path = f"{where}/{word}.db"
            connect(f"sqlite:///{path}").close()
            workers[side] = [_start(word, path, number) for number in range(PROCESSES)]
        rng = random.Random(SEED)
        for number in range(times + 1):
            for side in shuffled(SIDES, rng):
                took = _round(workers[side], f"{number} {each}")
                if number:  # the first one warms up
                    measure.sides.setdefault(side, []).append(took / count)
        for side, word in SIDES.items():
            kept = _count(f"{where}/{word}.db")
            assert kept == count * (times + 1), f"{side} kept {kept}"
    finally:
        for each_side in workers.values():
            for worker in each_side:
                worker.communicate()
        shutil.rmtree(where)
    measure.notes = [
        f"{side}: {1 / sorted(spent)[len(spent) // 2]:.0f} a second" for side, spent in measure.sides.items()
    ]
    yield measure


def _start(word: str, path: str, number: int) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "bench.ledger", word, path, str(number)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=env)


def _round(workers: list[subprocess.Popen[str]], order: str) -> float:
    began = time.perf_counter()
    for each in workers:
        assert each.stdin is not None
        each.stdin.write(order + "\n")
    for each in workers:
        assert each.stdout is not None
        assert each.stdout.readline() == "done\n"
    return time.perf_counter() - began


def _count(path: str) -> int:
    connection = sqlite3.connect(path)
    try:
        number: int = connection.execute("SELECT count(*) FROM deadstop_cancels").fetchone()[0]
        return number
    finally:
        connection.close()


# In the processes


def _bare(path: str, by: Process) -> Record:
    connection = sqlite3.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    texts, lock = queries("sqlite"), threading.Lock()

    def record(run: str) -> None:
        now = time.time()
        where = {"run": run, "epoch": 1}
        opened = {**rows.opened(Opening(run, by, now)), "epoch": 1}
        asked = {"request_id": run, **rows.asked(Intent(run, reason="stop", at=now), by), **where}
        with lock:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(texts["insert_run"], opened)
            connection.execute(texts["insert_intent"], {**asked, "parked_until": None})
            connection.execute(texts["insert_cancel"], asked)
            connection.execute("COMMIT")

    return record


def _ledger(path: str, by: Process) -> Record:
    ledger = connect(f"sqlite:///{path}", patience=60.0)

    def record(run: str) -> None:
        now = time.time()
        ledger.record_intent(
            Intent(run, reason="stop", at=now, request_id=run), by, opening=Opening(run, by, now), now=now
        )

    return record


def _work(word: str, path: str, number: str) -> None:
    by = Process(f"bench:{number}", "bench", os.getpid())
    record = {"bare": _bare, "ledger": _ledger}[word](path, by)

    def thread(tag: str, each: int) -> None:
        for count in range(each):
            record(f"{tag}-{count}")

    for line in sys.stdin:
        turn, each = line.split()
        threads = [
            threading.Thread(target=thread, args=(f"{number}-{turn}-{one}", int(each))) for one in range(THREADS)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        print("done", flush=True)


if __name__ == "__main__":
    _work(*sys.argv[1:])
