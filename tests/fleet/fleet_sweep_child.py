"""A process that forks one child for each trial of the crash sweep: ``python fleet_sweep_child.py URL BASE_URL``.

A line ``NAME POINT`` on standard input starts a trial: the child starts a remote run in the scope NAME and cancels it,
and kills itself at that point: before or after a durable write, a request, its answer. ``settle-before:2`` is the
second time that it comes by. A trial that lives says which points it came by.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import Counter
from typing import Any, Callable, Dict  # noqa: UP035

import openai

import deadstop
from deadstop.clients.channel import Channel
from deadstop.fleet.member import Member

BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}
WRITES = (
    *("enter", "open_run", "close_run", "record_remote", "remote_status"),
    *("record_intent", "begin_attempt", "record_attempt", "settle", "leave"),
)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Trial:
    """Counts the points, and dies at one."""

    def __init__(self, name: str, at: str) -> None:
        self._name = name
        self._at = at
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def point(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1
            if f"{what}:{self.seen[what]}" == self._at:
                say("killed", self._name, self._at)
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, what: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **kwargs: Any) -> Any:
            self.point(f"{what}-before")
            value = work(*args, **kwargs)
            self.point(f"{what}-after")
            return value

        return around

    def watch(self) -> None:
        """From now on, in this process."""
        original, send = Member.__init__, Channel.send

        def init(member: Any, url: str) -> None:
            original(member, url)
            for each in WRITES:
                setattr(member.ledger, each, self.around(each, getattr(member.ledger, each)))

        def sending(channel: Any, request: Any, number: int, timeout: float, left: Any, done: Any) -> Any:
            method = request.method
            self.point(f"{method}-before")
            left, done = self.around(f"{method}-left", left), self.around(f"{method}-answer", done)
            return send(channel, request, number, timeout, left, done)

        Member.__init__ = init  # type: ignore[method-assign]
        Channel.send = sending  # type: ignore[method-assign]


def trial(url: str, base_url: str, name: str, at: str) -> None:
    this = Trial(name, at)
    this.watch()
    client = deadstop.OpenAI(api_key="k", base_url=base_url, runs_url=url, max_retries=0)
    with client.runs.open(name):
        client.post("/responses", body=BACKGROUND, cast_to=Dict[str, object])  # noqa: UP006
    receipt = client.runs.cancel(name, reason="stop", actor="sweep", timeout=10.0)
    say("acknowledged", name, receipt.outcome)
    client.close()
    client.runs._registry.keeper.member.close(10.0)
    say("points", name, ",".join(f"{what}:{nth + 1}" for what, times in this.seen.items() for nth in range(times)))


def main(url: str, base_url: str) -> None:
    # So that a forked child has all of it.
    warm = openai.OpenAI(api_key="k", base_url=base_url, max_retries=0)
    with contextlib.suppress(openai.APIError):
        warm.post("/nowhere", body={}, cast_to=Dict[str, object])  # noqa: UP006
    warm.close()
    for name in ("runs.pickup", "runs.keeper", "clients.channel", "runs.blocking", "ledger.sqlite"):
        __import__(f"deadstop.{name}")
    say("ready")
    for line in sys.stdin:
        name, at = line.split()
        pid = os.fork()
        if pid == 0:
            try:
                trial(url, base_url, name, at)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        say("over", name, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
