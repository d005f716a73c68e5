"""A process of its own for the tests: ``python fleet_child.py WORLD URL BASE_URL NAME WHAT...``. It answers in lines.

WHAT is ``call`` (a chat completion that does not end) or the kind of a remote run, which it starts and leaves running.
``die`` has it end when it is cancelled, ``fork`` has it start a child that lives as long as its input. It holds the
scope NAME until its standard input ends. In the environment HOST is the name of the host that it seems to be on; with
DEAF it does not look at the record on its own, with DOWN its ledger can't be written.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from typing import Any, Dict  # noqa: UP035

import deadstop
from deadstop.errors import LedgerUnavailable
from deadstop.fleet import member

CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def down(*args: object, **kwargs: object) -> None:
    raise LedgerUnavailable("The database is down.")


def be_there(client: Any) -> None:
    """Until others know of this process, and it hears them: what is true of a process that has run for a moment."""
    member = client.runs._registry.keeper.member
    assert member.writes.drain(20.0)
    assert member.wire is None or member.wire.listening.wait(20.0)


def told(error: Any) -> None:
    say("cancelled", error.run, error.reason, error.actor)


def threads(url: str, base_url: str, name: str, what: list[str]) -> None:
    client = deadstop.OpenAI(api_key="k", base_url=base_url, runs_url=url, max_retries=0)
    if os.environ.get("DOWN"):
        ledger: Any = client.runs._registry.keeper.member.ledger  # type: ignore[union-attr]
        for each in ("record_intent", "open_run", "settle"):
            setattr(ledger, each, down)
    cancellers, orphans = os.environ.get("CANCELLERS"), os.environ.get("ORPHANS", "leave")
    with client.runs.open(name, cancellers=cancellers and [cancellers], orphans=orphans) as run:
        be_there(client)
        for each in what:
            if each == "die":
                run.on_cancel(lambda _: os._exit(1))
                say("ready")
            elif each == "fork":
                if os.fork() == 0:
                    os.read(0, 1)
                    os._exit(0)
                say("ready")
            elif each == "call":
                threading.Thread(target=sys.stdin.read, daemon=True).start()
                say("ready")
                try:
                    client.chat.completions.create(**CHAT)
                except deadstop.RunCancelledError as error:
                    told(error)
            else:
                client.post("/responses", body=BACKGROUND, cast_to=Dict[str, object])  # noqa: UP006
                say("ready")
        sys.stdin.read()
        say("receipt", run.receipt and run.receipt.outcome)


async def tasks(url: str, base_url: str, name: str, what: list[str]) -> None:
    client = deadstop.AsyncOpenAI(api_key="k", base_url=base_url, runs_url=url, max_retries=0)
    async with client.runs.open(name) as run:
        be_there(client)
        for each in what:
            if each == "call":
                say("ready")
                try:
                    await client.chat.completions.create(**CHAT)
                except deadstop.RunCancelledError as error:
                    told(error)
            else:
                await client.post("/responses", body=BACKGROUND, cast_to=Dict[str, object])  # noqa: UP006
                say("ready")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        say("receipt", run.receipt and run.receipt.outcome)
    await client.close()


if __name__ == "__main__":
    world, url, base_url, name, *what = sys.argv[1:]
    host = os.environ.get("HOST") or socket.gethostname()
    socket.gethostname = lambda: host
    if "HOST" in os.environ:
        member.place = lambda: host  # type: ignore[assignment]
    if os.environ.get("DEAF"):
        member.TICK = member.RESTING = 3600.0
    if world == "threads":
        threads(url, base_url, name, what)
    else:
        asyncio.run(tasks(url, base_url, name, what))
