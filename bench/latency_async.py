"""From the cancel to the waiting task's release, and to the server's end-of-file."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Iterator
from typing import Any, Callable, Optional

import openai

import deadstop
from bench import phases
from bench.phases import HELD, MESSAGES, OPENING, PHASES, QUICK, TOKENS, Phase, Sample
from bench.sampling import SEED, Measure, shuffled
from deadstop.testing import FakeProcess, RequestRecord

NATIVE = "task.cancel() under the plain SDK"
OURS = "deadstop"

_names = itertools.count(1)


def measure_latency_async(quick: bool) -> Iterator[Measure]:
    """Every phase on two sides: the plain SDK whose task is cancelled, deadstop."""
    yield from asyncio.run(_measure(*((25, 3) if quick else (250, 8))))


async def _measure(count: int, warm_up: int) -> list[Measure]:
    done: list[Measure] = []
    with FakeProcess(rate=0, tokens=TOKENS + 3) as server:
        options: dict[str, Any] = {"base_url": server.base_url, "api_key": "bench"}
        async with contextlib.AsyncExitStack() as stack:
            plain = await stack.enter_async_context(openai.AsyncOpenAI(max_retries=0, **options))
            ours = await stack.enter_async_context(deadstop.AsyncOpenAI(**options))
            sides: dict[str, Callable[[Phase], Awaitable[Sample]]] = {
                NATIVE: lambda phase: _native(server, phase, plain),
                OURS: lambda phase: _deadstop(server, phase, ours),
            }
            for phase in PHASES:
                rng = random.Random(SEED)
                found = phases.measures("async", phase, NATIVE, OURS)
                for number in range(warm_up + count):
                    taken = {side: await sides[side](phase) for side in shuffled(sides, rng)}
                    if number >= warm_up:
                        phases.keep({side: taken[side] for side in sides}, found)
                done += found.values()
    return done


class _Caller:
    """A task that makes one call and notes when it got control back."""

    def __init__(self, work: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        self.released: Optional[float] = None
        self._there = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(work))

    async def _run(self, work: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        try:
            await work(self._there.set)
        except (asyncio.CancelledError, Exception):
            self.released = phases.now()
        finally:
            self._there.set()

    async def wait_until_there(self) -> None:
        await asyncio.wait_for(self._there.wait(), 5)

    async def join(self) -> None:
        await asyncio.wait({self.task}, timeout=5)


async def _native(server: FakeProcess, phase: Phase, client: openai.AsyncOpenAI) -> Sample:
    if phase.reused:
        await client.chat.completions.create(model=QUICK, messages=MESSAGES)
    phases.hold(server, phase)
    caller = _Caller(lambda there: _call(client, there, streamed=phase.streamed or phase.inside))
    held = await asyncio.to_thread(phases.wait_until_held, server, phase)
    await caller.wait_until_there()
    await asyncio.sleep(phases.settle_for())
    began = phases.now()
    caller.task.cancel()
    await caller.join()
    return await _sample(server, phase, held, began, caller)


async def _deadstop(server: FakeProcess, phase: Phase, client: deadstop.AsyncOpenAI) -> Sample:
    name = f"run {next(_names)}"

    async def scoped(there: Callable[[], None]) -> None:
        async with client.runs.open(name, streamed_inside=phase.inside):
            await _call(client, there, streamed=phase.streamed)

    if phase.reused:
        await client.chat.completions.create(model=QUICK, messages=MESSAGES)
    phases.hold(server, phase)
    caller = _Caller(scoped)
    held = await asyncio.to_thread(phases.wait_until_held, server, phase)
    await caller.wait_until_there()
    await asyncio.sleep(phases.settle_for())
    began = phases.now()
    receipt = await client.runs.cancel(name)
    await caller.join()
    taken = await _sample(server, phase, held, began, caller)
    if receipt.outcome != "cancelled":
        taken = taken._replace(note=f"the receipt says {receipt.outcome.value}")
    return taken


async def _sample(server: FakeProcess, phase: Phase, held: RequestRecord, began: float, caller: _Caller) -> Sample:
    # In a thread: asyncio closes a socket one turn of the loop after it was told to.
    return await asyncio.to_thread(phases.sample, server, phase, held, began, caller.released)


async def _call(client: Any, there: Callable[[], None], streamed: bool) -> None:
    if not streamed:
        there()
        await client.chat.completions.create(model=HELD, messages=MESSAGES)
        return
    stream = await client.chat.completions.create(model=HELD, messages=MESSAGES, stream=True)
    number = 0
    async for _ in stream:
        number += 1
        if number == OPENING + TOKENS:
            there()
