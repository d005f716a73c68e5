"""A cancel from another process: how soon the caller is free, beside the bare datagram on the same machine.

Process A holds a run with a streamed call under way; process B cancels it by name. `released` is from the start of B's
`runs.cancel()` to A's caller being back, `receipt` until B has its receipt, `bare` one datagram from B to A and nothing
else. Run it with `python bench/signals.py [TIMES]`.
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
from typing import Any

import deadstop
from deadstop.testing import FakeProcess

CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def hold(base_url: str, times: int, bare: str) -> None:
    """Process A."""
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(bare)

    def listen() -> None:
        while True:
            sent = float(heard.recv(100))
            print("bare", time.monotonic() - sent, flush=True)

    threading.Thread(target=listen, daemon=True).start()
    client = deadstop.OpenAI(api_key="k", base_url=base_url, max_retries=0, runs_url="sqlite:")
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


def show(what: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    at = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000 for share in (0.5, 0.9, 0.99)]
    print(f"{what:9} p50 {at[0]:7.2f} ms   p90 {at[1]:7.2f} ms   p99 {at[2]:7.2f} ms   ({len(ordered)} times)")


def main(times: int) -> None:
    """Process B."""
    state = tempfile.mkdtemp(prefix="ds-")
    os.environ["XDG_STATE_HOME"] = state
    bare, released, receipts, datagrams = f"{state}/bare", [], [], []
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with FakeProcess(rate=200, tokens=1_000_000) as server:
        command = [sys.executable, __file__, "hold", server.base_url, str(times), bare]
        client = deadstop.OpenAI(api_key="k", base_url=server.base_url, runs_url="sqlite:")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            for number in range(times):
                assert holder.stdout.readline() == "ready\n"
                time.sleep(0.02)  # until the second stream flows
                sender.sendto(str(time.monotonic()).encode(), bare)
                datagrams.append(float(holder.stdout.readline().split()[1]))
                began = time.monotonic()
                receipt = client.runs.cancel(f"chat-{number}", reason="stop")
                receipts.append(time.monotonic() - began)
                assert receipt.outcome == "cancelled", receipt
                released.append(float(holder.stdout.readline().split()[1]) - began)
                holder.stdin.write("\n")
    client.close()
    for what, seconds in (("bare", datagrams), ("released", released), ("receipt", receipts)):
        show(what, seconds)
    shutil.rmtree(state)


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        hold(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 200)
