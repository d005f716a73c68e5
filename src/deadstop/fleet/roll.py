"""Asking the other processes of this host which runs they hold: most are not on record, since nobody cancels them."""

from __future__ import annotations

import threading
import uuid
from typing import Any, NamedTuple

from deadstop.fleet.member import Member, Message

__all__ = ["Held", "roll_call"]


class Held(NamedTuple):
    """A run that a process holds. ``age`` is in seconds, ``epoch`` 0 where it is not on record."""

    run: str
    epoch: int
    state: str
    age: float
    calls: int
    named: bool
    owner: str


def roll_call(member: Member, timeout: float = 0.5) -> list[Held]:
    """The runs of every other process of this host that answers within ``timeout`` seconds. Uses the ledger."""
    asked, found = uuid.uuid4().hex, list[Held]()
    ended, told = set[str](), set[str]()
    done, ready = threading.Event(), threading.Event()

    def hear(message: Message) -> None:
        owner = str(message.get("owner"))
        found.extend(_held(each, owner) for each in message.get("runs", ()))
        if message.get("end"):
            ended.add(owner)
            if ready.is_set() and told <= ended:
                done.set()

    if member.post is None:
        return []
    member.waiting[asked] = hear
    try:
        taken, _ = member.signal({"do": "list", "id": asked, "reply": member.post.address})
        told |= taken
        ready.set()
        if not told <= ended:
            done.wait(timeout)
    finally:
        member.waiting.pop(asked, None)
    return list(found)


def _held(facts: Any, owner: str) -> Held:
    run, epoch, state, age, calls, named = facts
    return Held(str(run), int(epoch), str(state), float(age), int(calls), bool(named), owner)
