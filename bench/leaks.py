"""Many cancels at random moments from random threads, and what they leave behind."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import deadstop
from bench import census
from bench.leaks_async import stress_tasks
from bench.sampling import SEED
from bench.trial import EXACT, MESSAGES, RATE, TEXT, TIMEOUT, TOKENS, Tally, Trial, draw, sent_again
from deadstop.testing import FakeProcess

WORKERS = 10
NEIGHBOURS = 2
CONNECTIONS = 8  # fewer than callers: some wait for the pool
WAYS = ("name", "run", "soon", "stream", "twice", "deadline", "parent")


def measure_leaks(quick: bool) -> Iterator[tuple[str, Tally]]:
    """Half of the cancels in threads, half in tasks. The garbage collector is off: nothing may need it."""
    half = 150 if quick else 1000
    gc.collect()
    gc.disable()
    try:
        yield "threads", _stress_threads(half)
        gc.collect()
        yield "tasks", stress_tasks(half)
    finally:
        gc.enable()


def _stress_threads(cancels: int) -> Tally:
    tally = Tally()
    with FakeProcess(rate=RATE, tokens=TOKENS) as server:
        client = deadstop.OpenAI(base_url=server.base_url, api_key="bench", timeout=TIMEOUT)
        http: Any = client._client
        http._transport._pool._max_connections = CONNECTIONS
        client.models.list()  # whatever is made once is made now
        before = census.take((client,))
        numbers = itertools.count(1)
        done = threading.Event()
        workers = [
            threading.Thread(target=_work, args=(client, numbers, cancels, random.Random(SEED + each), tally))
            for each in range(WORKERS)
        ]
        neighbours = [
            threading.Thread(target=_live_next_door, args=(client, each, done, tally)) for each in range(NEIGHBOURS)
        ]
        for thread in (*workers, *neighbours):
            thread.start()
        for thread in workers:
            thread.join()
        done.set()
        for thread in neighbours:
            thread.join()
        census.wait_until(lambda: census.is_clean(before, census.take((client,))))
        tally.leaked = census.leaked(before, census.take((client,)))
        gc.collect()
        tally.leaked_after_collection = census.leaked(before, census.take((client,)))
        tally.sent_again = sent_again(server.records(), tally)
        client.close()
    return tally


def _work(client: Any, numbers: Iterator[int], cancels: int, rng: random.Random, tally: Tally) -> None:
    while True:
        number = next(numbers)
        if number > cancels or tally.is_hopeless:
            return
        _try(client, draw(rng, number, WAYS, tally.pace), tally)


def _try(client: Any, trial: Trial, tally: Tally) -> None:
    timeout = trial.delay + 1e-4 if trial.way == "deadline" else None
    parent = client.runs.open(f"parent of {trial.name}") if trial.way == "parent" else None
    if parent is not None:
        parent.__enter__()
    cancellers: list[threading.Timer] = []
    try:
        with client.runs.open(trial.name, timeout=timeout, streamed_inside=trial.shape == "inside") as run:
            if trial.way != "stream":
                run.on_cancel(trial.fence)
            for _ in range({"twice": 2, "deadline": 0}.get(trial.way, 1)):
                canceller = threading.Timer(trial.delay, _cancel, (client, run, parent, trial, tally))
                canceller.start()
                cancellers.append(canceller)
            tally.count(cancels=1)
            _call(client, trial, tally)
            trial.stream = None
        for canceller in cancellers:
            canceller.join()
        if run.receipt is not None and trial.way == "deadline":
            tally.receipt(run.receipt)
    finally:
        if parent is not None:
            parent.__exit__(None, None, None)


def _cancel(client: Any, run: Any, parent: Any, trial: Trial, tally: Tally) -> None:
    try:
        if trial.way == "soon":
            run.cancel_soon()
            trial.fence()
            receipt = client.runs.wait(run, 5)
        elif trial.way == "run":
            receipt = run.cancel()
        elif trial.way == "parent":
            receipt = parent.cancel()
        elif trial.way == "stream":
            receipt = client.runs.cancel(trial.stream or run)
        else:
            receipt = client.runs.cancel(trial.name)
        if receipt.outcome != "finished_first":
            trial.fence()
        tally.receipt(receipt)
    except BaseException as error:
        tally.surprise(f"cancel by {trial.way}", error)


def _call(client: Any, trial: Trial, tally: Tally) -> None:
    tally.count(calls=1)
    try:
        _consume(client, trial, tally)
    except deadstop.RunCancelledError:
        pass
    except BaseException as error:
        tally.surprise(f"{trial.shape} cancelled by {trial.way}", error)


def _consume(client: Any, trial: Trial, tally: Tally) -> None:
    before = trial.fenced
    if not trial.streamed:
        client.chat.completions.create(model=trial.model, messages=MESSAGES)
        if before:
            tally.count(delivered=1)
        return
    trial.stream = client.chat.completions.create(model=trial.model, messages=MESSAGES, stream=True)
    events = 0
    for _ in trial.stream:  # no `enumerate`: it would stand between the fence and the next line
        late = trial.fenced  # no call in it either: see EXACT
        events = events + 1
        if before or (late and EXACT):
            tally.count(delivered=1)
        if trial.shape == "left early" and events == 3:
            trial.stream = None
            break
        before = trial.fenced


def _live_next_door(client: Any, number: int, done: threading.Event, tally: Tally) -> None:
    """Make calls that nobody cancels, on the same client, until the others are through."""
    for turn in itertools.count():
        if done.is_set() or tally.is_hopeless:
            return
        model, began = f"neighbour-{number}-{turn}", time.monotonic()
        try:
            if turn % 2:
                answer = client.chat.completions.create(model=model, messages=MESSAGES)
                text = answer.choices[0].message.content
            else:
                stream = client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
                text = "".join(event.choices[0].delta.content or "" for event in stream)
            tally.neighbour(text == TEXT, time.monotonic() - began)
        except BaseException as error:
            tally.neighbour(False, time.monotonic() - began)
            tally.surprise("neighbour", error)
