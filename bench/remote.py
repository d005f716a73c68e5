"""Remote runs: how many can be cancelled at once, and how soon a cancel is known to have taken effect."""

from __future__ import annotations

import asyncio
import importlib
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import deadstop
from bench.sampling import Measure, Spent
from deadstop.calls.workers import LIMIT
from deadstop.testing import FakeProcess, faults

BARE = "bare HTTP client"
OURS = "deadstop cancel_all()"
ENDED = "the run ends on the server"
KNOWN = "deadstop has confirmed it"
JSON = Dict[str, object]  # noqa: UP006
BODY: dict[str, Any] = {"model": "m", "input": "x", "background": True}


def measure_remote(quick: bool) -> Iterator[Measure]:
    """Throughput against the bare HTTP client that sends the same requests; and the delay of a confirmation."""
    yield _throughput(300 if quick else 1000, 3 if quick else 5)
    yield _throughput_async(300 if quick else 1000, 3 if quick else 5)
    yield _confirmation(5 if quick else 15)


def _create(client: Any, count: int) -> list[str]:
    def one(_: int) -> str:
        made: Any = client.post("/responses", body=BODY, cast_to=JSON)
        return str(made["id"])

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(one, range(count)))


def _headers(server: FakeProcess) -> dict[str, str]:
    """The headers of our cancel requests: the bare client is to send the same requests."""
    plain = deadstop.OpenAI(api_key="k", base_url=server.base_url)
    (run,) = _create(plain, 1)
    plain.runs.cancel(f"response:{run}")
    plain.close()
    sent = [each for each in server.records() if each.path.endswith("/cancel")][-1]
    own = ("host", "content-length", "connection")
    return {name: value for name, value in sent.headers.items() if name.lower() not in own}


def _throughput(count: int, times: int) -> Measure:
    """The same requests, as many at once: by the client that deadstop rides on, in threads, and by `cancel_all()`."""
    # In requests per run the two are equal, so the ratio of times is that of throughputs, turned round.
    measure = Measure(
        "Cancelling many remote runs", f"sync, per run of {count}", baseline=BARE, aim=1 / 0.7, aimed=(OURS,)
    )
    with FakeProcess(rate=1, tokens=10**6) as server, deadstop.OpenAI(api_key="k", base_url=server.base_url) as client:
        httpx = importlib.import_module(type(client._client).__mro__[-2].__module__.partition(".")[0])
        limits = httpx.Limits(max_connections=LIMIT + 4, max_keepalive_connections=LIMIT + 4)
        options = {"base_url": server.base_url, "limits": limits, "headers": _headers(server)}
        with httpx.Client(**options) as bare, ThreadPoolExecutor(LIMIT) as threads:
            for number in range(times):
                plain = deadstop.OpenAI(api_key="k", base_url=server.base_url)
                ids = _create(plain, count)
                plain.close()
                began = time.perf_counter()
                list(threads.map(lambda each: bare.post(f"/responses/{each}/cancel").json(), ids))
                took = time.perf_counter() - began
                _create(client, count)
                if number == 0:
                    tracemalloc.start()
                began = time.perf_counter()
                receipts = client.runs.cancel_all(timeout=60)
                ours = time.perf_counter() - began
                if number == 0:
                    peak = tracemalloc.get_traced_memory()[1]
                    tracemalloc.stop()
                    measure.notes.append(f"{peak / 1e6:.1f} MB of extra memory at the peak of one cancel_all()")
                    continue  # traced, so slow
                measure.notes += _outcomes(receipts)
                measure.add({BARE: Spent(took, took), OURS: Spent(ours, ours)}, count)
    measure.cpu.clear()
    return measure


def _throughput_async(count: int, times: int) -> Measure:
    measure = Measure(
        "Cancelling many remote runs", f"async, per run of {count}", baseline=BARE, aim=1 / 0.7, aimed=(OURS,)
    )

    async def play(server: FakeProcess) -> None:
        async with deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url) as client:
            httpx = importlib.import_module(type(client._client).__mro__[-2].__module__.partition(".")[0])
            limits = httpx.Limits(max_connections=LIMIT + 4, max_keepalive_connections=LIMIT + 4)
            options = {"base_url": server.base_url, "limits": limits, "headers": _headers(server)}
            async with httpx.AsyncClient(**options) as bare:
                for _ in range(times):
                    plain = deadstop.OpenAI(api_key="k", base_url=server.base_url)
                    ids = await asyncio.to_thread(_create, plain, count)
                    plain.close()
                    turn = asyncio.Semaphore(LIMIT)

                    async def one(each: str, turn: asyncio.Semaphore = turn) -> None:
                        async with turn:
                            (await bare.post(f"/responses/{each}/cancel")).json()

                    began = time.perf_counter()
                    await asyncio.gather(*map(one, ids))
                    took = time.perf_counter() - began
                    for _ in range(count):
                        await client.post("/responses", body=BODY, cast_to=JSON)
                    began = time.perf_counter()
                    receipts = await client.runs.cancel_all(timeout=60)
                    ours = time.perf_counter() - began
                    measure.notes += _outcomes(receipts)
                    measure.add({BARE: Spent(took, took), OURS: Spent(ours, ours)}, count)

    with FakeProcess(rate=1, tokens=10**6) as server:
        asyncio.run(play(server))
    measure.cpu.clear()
    return measure


def _outcomes(receipts: Any) -> list[str]:
    found = Counter(str(each.outcome) for each in receipts)
    return [f"{number} {outcome}" for outcome, number in found.items() if outcome != "cancelled"]


def _confirmation(times: int) -> Measure:
    """From the cancel to the run's end, by the server's clock, and to our knowing it."""
    measure = Measure("Confirming a cancel", "runs that take 0.1 to 1.5 s", baseline=ENDED, aim=1.15, aimed=(KNOWN,))
    with FakeProcess(rate=1, tokens=10**6) as server, deadstop.OpenAI(api_key="k", base_url=server.base_url) as client:
        for number in range(times):
            (made,) = _create(client, 1)
            server.clear()
            server.add(faults.StaysCancelling(0.1 + 1.4 * number / max(times - 1, 1)), path="/cancel")
            began = time.monotonic()
            client.runs.cancel(f"response:{made}")
            known = time.monotonic()
            (run,) = [each for each in server.runs() if each.id == made]
            assert run.ended_at is not None
            ended = run.ended_at - began
            measure.add({ENDED: Spent(ended, 0.0), KNOWN: Spent(known - began, 0.0)})
            if known - began - ended > max(0.15 * ended, 0.05):
                measure.notes.append(f"{known - began - ended:.3f} s late, of {ended:.3f} s")
    measure.cpu.clear()
    return measure
