"""A cancel from another process: how soon the caller is free, beside the bare signal on the same machine.

Process A holds a run with a streamed call under way; process B cancels it by name. `released` is from the start of B's
`runs.cancel()` to A's caller being back, `receipt` until B has its receipt, `bare` one signal from B to A and nothing
else: a datagram, or one NOTIFY to a LISTEN of a Postgres that waits for its disk.
Run it with `python bench/signals.py [TIMES] [postgres]`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable

import deadstop
from deadstop.testing import FakeProcess

CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def hold(base_url: str, times: int, bare: str, url: str) -> None:
    """Process A."""
    listen = notified if url.startswith("postgres") else datagrams
    threading.Thread(target=listen, args=(bare,), daemon=True).start()
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


def datagrams(bare: str) -> None:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(bare)
    while True:
        sent = float(heard.recv(100))
        print("bare", time.monotonic() - sent, flush=True)


def notified(bare: str) -> None:
    import psycopg

    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute("LISTEN bare")
        for each in connection.notifies():
            print("bare", time.monotonic() - float(each.payload), flush=True)


def show(what: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    at = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 for share in (0.5, 0.9, 0.99)]
    print(f"{what:9} p50 {at[0]:7.2f} ms   p90 {at[1]:7.2f} ms   p99 {at[2]:7.2f} ms   ({len(ordered)} times)")


def bare_sender(url: str, bare: str) -> Callable[[str], object]:
    if not url.startswith("postgres"):
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        return lambda word: sender.sendto(word.encode(), bare)
    import psycopg

    connection = psycopg.connect(url, autocommit=True)
    return lambda word: connection.execute("SELECT pg_notify('bare', %s)", [word])


def measure(url: str, times: int, bare: str) -> None:
    """Process B."""
    released, receipts, signals = [], [], []
    with FakeProcess(rate=200, tokens=1_000_000) as server:
        command = [sys.executable, __file__, "hold", server.base_url, str(times), bare, url]
        client = deadstop.OpenAI(api_key="k", base_url=server.base_url, runs_url=url)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            send: Any = None
            for number in range(times):
                assert holder.stdout.readline() == "ready\n"
                send = send or bare_sender(url, bare)
                time.sleep(0.02)  # until the second stream flows
                send(str(time.monotonic()))
                signals.append(float(holder.stdout.readline().split()[1]))
                began = time.monotonic()
                receipt = client.runs.cancel(f"chat-{number}", reason="stop")
                receipts.append(time.monotonic() - began)
                assert receipt.outcome == "cancelled", receipt
                released.append(float(holder.stdout.readline().split()[1]) - began)
                holder.stdin.write("\n")
    client.close()
    print(url.partition(":")[0])
    for what, seconds in (("bare", signals), ("released", released), ("receipt", receipts)):
        show(what, seconds)


def main(times: int, more: list[str]) -> None:
    """Every sort of ledger that was asked for, one after the other."""
    state = tempfile.mkdtemp(prefix="ds-")
    os.environ["XDG_STATE_HOME"] = state
    measure("sqlite:", times, f"{state}/bare")
    if "postgres" in more:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from ledger_postgres import Server

        url = Server(fsync="on").schema()
        measure(url, times, url)
    shutil.rmtree(state)


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        hold(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 200, sys.argv[2:])
