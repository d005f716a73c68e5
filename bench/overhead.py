"""What a call and a streamed event cost through deadstop, against the plain SDK on the same server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import openai

import deadstop
from bench.sampling import Measure, rounds, rounds_async
from deadstop.testing import FakeProcess

PLAIN = "plain SDK"
AGAIN = "plain SDK, again"
ANONYMOUS = "deadstop"
SCOPE = "deadstop, in a scope"
INSIDE = "deadstop, streamed inside"

ASK: dict[str, Any] = {"model": "bench", "messages": [{"role": "user", "content": "Say something short."}]}
TOKENS = 8
CALL_AIM = EVENT_AIM = 1.05


def measure_calls(quick: bool) -> Iterator[Measure]:
    """The time of one non-streamed call over a kept connection, at a server that answers at once."""
    count, warm_up = (150, 20) if quick else (1000, 50)
    with FakeProcess(rate=0, tokens=TOKENS) as server:
        yield _sync_calls(server.base_url, count, warm_up)
        yield asyncio.run(_async_calls(server.base_url, count, warm_up))


def measure_events(quick: bool) -> Iterator[Measure]:
    """The time per event of a long stream that the server sends as fast as it can.

    With one event per write the client mostly reads them one by one, as from a real server, and often waits
    for the next: there the processor time says more. With many per write the client sets the pace.
    """
    count, events = (10, 200) if quick else (40, 300)
    for burst in (1, 32):
        with FakeProcess(rate=0, tokens=events, burst=burst) as server:
            yield _sync_events(server.base_url, count, events, burst)
            yield asyncio.run(_async_events(server.base_url, count, events, burst))


def _calls(world: str) -> Measure:
    aimed = (ANONYMOUS, SCOPE)
    return Measure("Per non-streamed call", world, baseline=PLAIN, aim=CALL_AIM, aimed=aimed)


def _events(world: str, burst: int) -> Measure:
    name = f"{world}, {burst} event{'s' if burst > 1 else ''} per write"
    return Measure("Per streamed event", name, baseline=PLAIN, aim=EVENT_AIM, aimed=(ANONYMOUS, SCOPE))


def _options(url: str) -> dict[str, Any]:
    return {"base_url": url, "api_key": "bench"}


def _sync_calls(url: str, count: int, warm_up: int) -> Measure:
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(openai.OpenAI(**_options(url)))
        again = stack.enter_context(openai.OpenAI(**_options(url)))
        anonymous, scope, inside = (stack.enter_context(deadstop.OpenAI(**_options(url))) for _ in range(3))

        def scoped(client: deadstop.OpenAI, streamed_inside: bool) -> None:
            with client.runs.open(streamed_inside=streamed_inside):
                client.chat.completions.create(**ASK)

        sides = {
            PLAIN: lambda: plain.chat.completions.create(**ASK),
            AGAIN: lambda: again.chat.completions.create(**ASK),
            ANONYMOUS: lambda: anonymous.chat.completions.create(**ASK),
            SCOPE: lambda: scoped(scope, False),
            INSIDE: lambda: scoped(inside, True),
        }
        measure = _calls("sync")
        rounds(count, warm_up, sides, measure)
    return measure


async def _async_calls(url: str, count: int, warm_up: int) -> Measure:
    async with contextlib.AsyncExitStack() as stack:
        plain, again = [await stack.enter_async_context(openai.AsyncOpenAI(**_options(url))) for _ in range(2)]
        anonymous, scope, inside = [
            await stack.enter_async_context(deadstop.AsyncOpenAI(**_options(url))) for _ in range(3)
        ]

        async def scoped(client: deadstop.AsyncOpenAI, streamed_inside: bool) -> None:
            async with client.runs.open(streamed_inside=streamed_inside):
                await client.chat.completions.create(**ASK)

        sides = {
            PLAIN: lambda: plain.chat.completions.create(**ASK),
            AGAIN: lambda: again.chat.completions.create(**ASK),
            ANONYMOUS: lambda: anonymous.chat.completions.create(**ASK),
            SCOPE: lambda: scoped(scope, False),
            INSIDE: lambda: scoped(inside, True),
        }
        measure = _calls("async")
        await rounds_async(count, warm_up, sides, measure)
    return measure


def _sync_events(url: str, count: int, events: int, burst: int) -> Measure:
    with contextlib.ExitStack() as stack:
        plain, again = (stack.enter_context(openai.OpenAI(**_options(url))) for _ in range(2))
        ours, scope = (stack.enter_context(deadstop.OpenAI(**_options(url))) for _ in range(2))

        def drain(client: Any) -> None:
            for _ in client.chat.completions.create(stream=True, **ASK):
                pass

        def scoped() -> None:
            with scope.runs.open():
                drain(scope)

        sides = {
            PLAIN: lambda: drain(plain),
            AGAIN: lambda: drain(again),
            ANONYMOUS: lambda: drain(ours),
            SCOPE: scoped,
        }
        measure = _events("sync", burst)
        rounds(count, 3, sides, measure, per=events)
    return measure


async def _async_events(url: str, count: int, events: int, burst: int) -> Measure:
    async with contextlib.AsyncExitStack() as stack:
        plain, again = [await stack.enter_async_context(openai.AsyncOpenAI(**_options(url))) for _ in range(2)]
        ours, scope = [await stack.enter_async_context(deadstop.AsyncOpenAI(**_options(url))) for _ in range(2)]

        async def drain(client: Any) -> None:
            async for _ in await client.chat.completions.create(stream=True, **ASK):
                pass

        async def scoped() -> None:
            async with scope.runs.open():
                await drain(scope)

        sides = {
            PLAIN: lambda: drain(plain),
            AGAIN: lambda: drain(again),
            ANONYMOUS: lambda: drain(ours),
            SCOPE: scoped,
        }
        measure = _events("async", burst)
        await rounds_async(count, 3, sides, measure, per=events)
    return measure
