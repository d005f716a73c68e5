"""A process whose cancels get stuck: ``python fleet_jobs_child.py URL BASE_URL COUNT STUCK``.

It starts COUNT remote runs, each in a scope of its own (``chat-0`` and so on), and says ``ready``. With the next line
of input it cancels them, and says ``kept`` once that is on its record and on the bus. STUCK is ``before`` (its cancels
never leave) or ``after`` (they leave, and it never hears of them again).
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict  # noqa: UP035

import deadstop
from deadstop.clients.channel import Channel

BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def nothing(*what: object) -> None:
    pass


def get_stuck(when: str) -> None:
    """From now on, in this process."""
    send = Channel.send

    def sending(channel: Any, request: Any, number: int, timeout: float, left: Any, done: Any, *may: Any) -> Any:
        return nothing if when == "before" else send(channel, request, number, timeout, left, nothing, *may)

    Channel.send = sending  # type: ignore[method-assign]


def main(url: str, base_url: str, count: str, stuck: str) -> None:
    get_stuck(stuck)
    client = deadstop.OpenAI(api_key="k", base_url=base_url, runs_url=url, max_retries=0)
    member: Any = client.runs._registry.keeper.member  # type: ignore[union-attr]
    names = [f"chat-{number}" for number in range(int(count))]

    def start(name: str) -> None:
        with client.runs.open(name):
            client.post("/responses", body=BACKGROUND, cast_to=Dict[str, object])  # noqa: UP006

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, names))
    assert member.writes.drain(30.0)
    assert member.exchange.bus.ready(20.0, patient=True)
    assert member.jobs._looked.wait(20.0)
    say("ready")
    sys.stdin.readline()
    for name in names:
        client.runs.get(name).cancel_soon(reason="stop", actor="ann")
    assert member.writes.drain(30.0)
    member.jobs.flush(20.0)
    say("kept")
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
