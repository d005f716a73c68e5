"""Many cancels at random moments of calls in tasks, from tasks and threads, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable

import deadstop
from bench import census
from bench.sampling import SEED
from bench.trial import EXACT, MESSAGES, RATE, TEXT, TIMEOUT, TOKENS, Tally, Trial, draw, sent_again
from deadstop.testing import FakeProcess

WORKERS = 10
NEIGHBOURS = 2
CONNECTIONS = 8  # fewer than callers: some wait for the pool
WAYS = ("name", "run", "soon", "stream", "twice", "deadline", "parent", "from a thread", "native")


def stress_tasks(cancels: int) -> Tally:
    """So many calls in tasks, each cancelled once or more."""
    with FakeProcess(rate=RATE, tokens=TOKENS) as server:
        return asyncio.run(_stress(server, cancels))


async def _stress(server: FakeProcess, cancels: int) -> Tally:
    tally = Tally()
    client = deadstop.AsyncOpenAI(base_url=server.base_url, api_key="bench", timeout=TIMEOUT)
    http: Any = client._client
    http._transport._pool._max_connections = CONNECTIONS
    await client.models.list()  # whatever is made once is made now
    before, tasks = census.take((client,)), len(asyncio.all_tasks())
    numbers = itertools.count(1)
    done = asyncio.Event()
    neighbours = [asyncio.ensure_future(_live_next_door(client, each, done, tally)) for each in range(NEIGHBOURS)]
    await asyncio.gather(
        *(_work(client, numbers, cancels, random.Random(SEED - 1 - each), tally) for each in range(WORKERS))
    )
    done.set()
    await asyncio.gather(*neighbours)
    del neighbours

    def leaked() -> dict[str, int]:
        left = census.leaked(before, census.take((client,)))
        return {**left, "tasks": len(asyncio.all_tasks()) - tasks}

    await _until(lambda: not any(number > 0 for number in leaked().values()))
    tally.leaked = leaked()
    gc.collect()
    await asyncio.sleep(0.05)  # what the collector closes, the loop closes a turn later
    tally.leaked_after_collection = leaked()
    tally.sent_again = sent_again(server.records(), tally)
    await client.close()
    return tally


async def _work(client: Any, numbers: Iterator[int], cancels: int, rng: random.Random, tally: Tally) -> None:
    while True:
        number = next(numbers)
        if number > cancels or tally.is_hopeless:
            return
        trial = draw(rng, number, WAYS, tally.pace)
        # A task of its own: a native cancellation ends it, and not the worker.
        task = asyncio.ensure_future(_try(client, trial, tally))
        if trial.way == "native":
            await asyncio.sleep(trial.delay)
            task.cancel()
            tally.count(cancels=1)
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _try(client: Any, trial: Trial, tally: Tally) -> None:
    timeout = trial.delay + 1e-4 if trial.way == "deadline" else None
    async with contextlib.AsyncExitStack() as stack:
        parent = None
        if trial.way == "parent":
            parent = await stack.enter_async_context(client.runs.open(f"parent of {trial.name}"))
        cancellers: list[Any] = []
        inside = trial.shape == "inside"
        async with client.runs.open(trial.name, timeout=timeout, streamed_inside=inside) as run:
            if trial.way != "stream":
                run.on_cancel(trial.fence)
            if trial.way != "native":
                tally.count(cancels=1)
            if trial.way == "from a thread":
                timer = threading.Timer(trial.delay, run.cancel_soon)
                timer.start()
                cancellers.append(_until(lambda: not timer.is_alive()))
            times = {"twice": 2, "deadline": 0, "native": 0, "from a thread": 0}.get(trial.way, 1)
            cancellers += [asyncio.ensure_future(_cancel(client, run, parent, trial, tally)) for _ in range(times)]
            await _call(client, trial, tally)
            trial.stream = None
        await asyncio.gather(*cancellers)
        if run.receipt is not None and trial.way in ("deadline", "from a thread"):
            tally.receipt(run.receipt)


async def _until(condition: Callable[[], bool]) -> None:
    """Wait, at most as long as it may take, for what no event tells of."""
    for _ in range(int(census.QUIET / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)


async def _cancel(client: Any, run: Any, parent: Any, trial: Trial, tally: Tally) -> None:
    await asyncio.sleep(trial.delay)
    try:
        if trial.way == "soon":
            run.cancel_soon()
            trial.fence()
            receipt = await client.runs.wait(run, 5)
        elif trial.way == "run":
            receipt = await run.cancel()
        elif trial.way == "parent":
            receipt = await parent.cancel()
        elif trial.way == "stream":
            receipt = await client.runs.cancel(trial.stream or run)
        else:
            receipt = await client.runs.cancel(trial.name)
        if receipt.outcome != "finished_first":
            trial.fence()
        tally.receipt(receipt)
    except Exception as error:
        tally.surprise(f"cancel by {trial.way}", error)


async def _call(client: Any, trial: Trial, tally: Tally) -> None:
    tally.count(calls=1)
    try:
        await _consume(client, trial, tally)
    except deadstop.RunCancelledError:
        pass
    except asyncio.CancelledError as error:
        if trial.way != "native":
            tally.surprise(f"{trial.shape} cancelled by {trial.way}", error)
        raise
    except Exception as error:
        tally.surprise(f"{trial.shape} cancelled by {trial.way}", error)


async def _consume(client: Any, trial: Trial, tally: Tally) -> None:
    before = trial.fenced
    if not trial.streamed:
        await client.chat.completions.create(model=trial.model, messages=MESSAGES)
        if before:
            tally.count(delivered=1)
        return
    trial.stream = await client.chat.completions.create(model=trial.model, messages=MESSAGES, stream=True)
    events = 0
    async for _ in trial.stream:
        late = trial.fenced  # no call in it: see EXACT
        events += 1
        if before or (late and EXACT):
            tally.count(delivered=1)
        if trial.shape == "left early" and events == 3:
            trial.stream = None
            break
        before = trial.fenced


async def _live_next_door(client: Any, number: int, done: asyncio.Event, tally: Tally) -> None:
    """Make calls that nobody cancels, on the same client, until the others are through."""
    for turn in itertools.count():
        if done.is_set() or tally.is_hopeless:
            return
        model, began = f"neighbour-{number}-{turn}", time.monotonic()
        try:
            if turn % 2:
                answer = await client.chat.completions.create(model=model, messages=MESSAGES)
                text = answer.choices[0].message.content
            else:
                stream = await client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
                text = "".join([event.choices[0].delta.content or "" async for event in stream])
            tally.neighbour(text == TEXT, time.monotonic() - began)
        except Exception as error:
            tally.neighbour(False, time.monotonic() - began)
            tally.surprise("neighbour", error)
