"""One trial of the crash sweep: ``python fleet_sweep_child.py URL BASE_URL NAME STORY POINT``.

It lives through that story (``STORIES``) and kills itself at that point: before or after a durable write, a request,
its answer. ``settle-before:2`` is the second time that it comes by. A trial that lives says which points it came by.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from typing import Any, Callable, Dict  # noqa: UP035

import deadstop
from deadstop.clients.channel import Channel
from deadstop.fleet.member import Member

WRITES = (
    *("enter", "open_run", "close_run", "record_remote", "remote_status"),
    *("record_intent", "take_off", "begin_attempt", "record_attempt", "land", "settle", "leave"),
)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Trial:
    """Counts the points, and dies at one."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def point(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1
            if f"{what}:{self.seen[what]}" == self.at:
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


def main(url: str, base_url: str, name: str, story: str, at: str) -> None:
    this = Trial(at)
    this.watch()
    client = deadstop.OpenAI(api_key="k", base_url=base_url, runs_url=url, max_retries=0)
    receipt = STORIES[story](client, name)
    if receipt is not None:
        say("acknowledged", receipt.outcome)
    client.close()
    client.runs._registry.keeper.member.close(10.0)
    say("points", ",".join(f"{what}:{nth + 1}" for what, times in this.seen.items() for nth in range(times)))


if __name__ == "__main__":
    main(*sys.argv[1:])
