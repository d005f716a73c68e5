"""Hosts with a ledger each and a bus between them, for the tests of what they finish for each other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Optional

from fleet_homes import SOURCES, Child
from nursery import popen

import deadstop
from deadstop import CancelPolicy
from deadstop.fleet.job import Job
from deadstop.fleet.stream import Stream
from deadstop.ledger import connect
from deadstop.testing import FakeOpenAI

HOLDER = str(Path(__file__).with_name("fleet_jobs_child.py"))


def at(url: str, host: str) -> str:
    """The file of another host."""
    return url.replace("a.db", f"{host}.db")


def client_at(server: FakeOpenAI, url: str) -> Any:
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    client.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
    return client


def jobs_of(client: Any) -> Any:
    return client.runs._registry.keeper.member.jobs


def holder(child: Any, url: str, base_url: str, count: int = 1, stuck: str = "before") -> Child:
    """A process that has cancelled its runs, and got stuck."""
    one: Child = child(url, base_url, str(count), stuck, script=HOLDER)
    assert one.line() == "ready"
    one.say("cancel")
    assert one.line() == "kept"
    return one


def outcomes(url: str) -> list[str]:
    with connect(url) as ledger:
        return [str(each.outcome.value) for each in ledger.receipts(limit=1000)]


def found(bus: str) -> dict[str, Job]:
    """The jobs that are in the stream."""
    return asyncio.run(_found(bus))


async def _found(bus: str) -> dict[str, Job]:
    from nats.aio.client import Client

    address, _, space = bus.rpartition("/")
    client = Client()
    await client.connect(address)

    async def ask(subject: str, data: bytes, headers: Optional[dict[str, str]] = None) -> bytes:
        return bytes((await client.request(subject, data, timeout=5.0, headers=headers)).data)

    stream, number, all_of_them = Stream(ask, space), 1, dict[str, Job]()
    while True:
        entry = await stream.read(number, f"deadstop.{space}.job.>")
        if entry is None:
            await client.close()
            return all_of_them
        number = entry.number + 1
        job = Job.load(entry.data)
        all_of_them[job.intent.run] = job


class Worker:
    """`deadstop reconcile` on a host of its own, as it is."""

    def __init__(self, url: str, base_url: str, *options: str) -> None:
        path = os.pathsep.join(filter(None, [SOURCES, os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "OPENAI_API_KEY": "k", "OPENAI_BASE_URL": base_url}
        self.url = url
        self.process = popen(
            ["-m", "deadstop", "reconcile", "--url", url, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
        )

    def ready(self) -> Worker:
        assert self._line().startswith("Reconciling")
        return self

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> str:
        """It is asked to end, and does. What it says last."""
        self.signal(signal.SIGTERM)
        return self.last()

    def last(self) -> str:
        """What it says last. It ends by itself."""
        last = self._line()
        assert self.process.wait(20.0) == 0
        return last

    def end(self) -> None:
        self.process.kill()
        self.process.wait(20.0)
        assert self.process.stdout is not None
        self.process.stdout.close()


def hands(bus: str, workers: list[Worker]) -> list[tuple[Worker, set[str]]]:
    """The workers that have jobs in hand, and which."""
    names: dict[str, set[str]] = {}
    for name, job in found(bus).items():
        if job.worker:
            names.setdefault(job.worker.split(":")[1], set()).add(name)
    pids = {str(each.process.pid): each for each in workers}
    return [(pids[pid], jobs) for pid, jobs in names.items() if pid in pids]


def left(bus: str, tokens: dict[str, str]) -> bool:
    """Whether a job is still under one of these claims."""
    return any(tokens.get(name) == job.worker for name, job in found(bus).items())
