"""A process that forks one child for each trial of the crash sweep: ``python fleet_sweep_child.py URL BASE_URL``.

A line ``NAME STORY POINT`` on standard input starts a trial: a child that lives through that story (``STORIES``) and
kills itself at that point: before or after a durable write, a request, its answer. ``settle-before:2`` is the second
time that it comes by. A trial that lives says which points it came by. A few trials are under way at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections import Counter
from typing import Any, Callable, Dict  # noqa: UP035

import openai

import deadstop
from deadstop.clients.channel import Channel
from deadstop.fleet.member import Member

AT_ONCE = 3
WRITES = (
    *("enter", "open_run", "close_run", "record_remote", "remote_status"),
    *("record_intent", "take_off", "begin_attempt", "record_attempt", "land", "settle", "leave"),
)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Trial:
    """Counts the points, and dies at one."""

    def __init__(self, name: str, at: str) -> None:
        self._name = name
        self.at = at
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def point(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1
            if f"{what}:{self.seen[what]}" == self.at:
                say("killed", self._name, self.at)
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

        def sending(channel: Any, request: Any, number: int, timeout: float, left: Any, done: Any, *may: Any) -> Any:
            method = request.method
            self.point(f"{method}-before")
            left, done = self.around(f"{method}-left", left), self.around(f"{method}-answer", done)
            return send(channel, request, number, timeout, left, done, *may)

        Member.__init__ = init  # type: ignore[method-assign]
        Channel.send = sending  # type: ignore[method-assign]


def begin(client: Any, name: str) -> Any:
    """A remote run whose model tells the server's record which trial it is of."""
    body: Any = {"model": name, "input": "hi", "background": True}
    return client.post("/responses", body=body, cast_to=Dict[str, object])  # noqa: UP006


def scope(client: Any, name: str) -> Any:
    """A scope with one remote run is left, and cancelled by its name."""
    with client.runs.open(name):
        begin(client, name)
    return client.runs.cancel(name, **WHY)


def pair(client: Any, name: str) -> Any:
    """A scope with two remote runs is cancelled while it is open."""
    with client.runs.open(name) as run:
        for _ in range(2):
            begin(client, name)
        return run.cancel(**WHY)


def address(client: Any, name: str) -> Any:
    """A remote run of no scope is cancelled by its address."""
    return client.runs.cancel(f"response:{begin(client, name)['id']}", **WHY)


def orphan(client: Any, name: str) -> None:
    """A scope whose remote run is to be cancelled should its process die; and it does."""
    with client.runs.open(name, orphans="cancel"):
        begin(client, name)
        client.runs._registry.keeper.member.writes.drain(10.0)


STORIES: dict[str, Callable[[Any, str], Any]] = {each.__name__: each for each in (scope, pair, address, orphan)}
WHY: Any = {"reason": "stop", "actor": "sweep", "timeout": 10.0}


def trial(url: str, base_url: str, http_client: Any, name: str, story: str, at: str) -> None:
    this = Trial(name, at)
    this.watch()
    client = deadstop.OpenAI(api_key="k", base_url=base_url, http_client=http_client, runs_url=url, max_retries=0)
    receipt = STORIES[story](client, name)
    if receipt is not None:
        say("acknowledged", name, receipt.outcome)
    client.close()
    client.runs._registry.keeper.member.close(10.0)
    say("points", name, ",".join(f"{what}:{nth + 1}" for what, times in this.seen.items() for nth in range(times)))


_kept: list[Any] = []


def warm_up(base_url: str) -> Any:
    """Import all that a forked child needs. Returns an HTTP client that has no connection yet, for the children to
    share: most of what a client's making takes is to read the certificates."""
    warm = openai.OpenAI(api_key="k", base_url=base_url, max_retries=0)
    with contextlib.suppress(openai.APIError):
        warm.post("/nowhere", body={}, cast_to=Dict[str, object])  # noqa: UP006
    warm.close()
    for name in ("runs.pickup", "runs.keeper", "clients.channel", "runs.blocking", "ledger.sqlite"):
        __import__(f"deadstop.{name}")
    owner = openai.OpenAI(api_key="k", base_url=base_url)
    _kept.append(owner)  # the first releases of the SDK close the HTTP client when its owner is collected
    return owner._client


def main(url: str, base_url: str) -> None:
    http_client = warm_up(base_url)
    running: dict[int, str] = {}

    def reap() -> None:
        pid, status = os.wait()
        say("over", running.pop(pid), os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))

    say("ready")
    for line in sys.stdin:
        name, story, at = line.split()
        if at == "end":
            while running:
                reap()
            continue
        while len(running) >= AT_ONCE:
            reap()
        pid = os.fork()
        if pid == 0:
            try:
                trial(url, base_url, http_client, name, story, at)
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        running[pid] = name


if __name__ == "__main__":
    main(*sys.argv[1:])
