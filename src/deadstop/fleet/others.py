"""The other processes of a ledger, as one of them finds them: who is there, and how they are told."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Callable, Optional, Union

from deadstop.fleet.addresses import OVER_BUS
from deadstop.fleet.holder import Message
from deadstop.fleet.places import exists, place
from deadstop.fleet.post import Post, Sent
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Process

if TYPE_CHECKING:
    from deadstop.fleet.exchange import Exchange
    from deadstop.fleet.wire import Wire

__all__ = ["Others"]

SILENT = 20.0
"""How long (seconds) without a sign of life before a process of another host is taken for dead."""


class Others:
    """What a member knows of the others, and says to them."""

    ledger: Ledger
    process: Process
    post: Union[Post, Wire, None]
    wire: Optional[Wire]
    exchange: Optional[Exchange]

    def alive(self, owner: str) -> bool:
        """Whether a process is there. One of this host that is not is put on record as gone. Uses the ledger."""
        if owner == self.process.owner:
            return True
        known = next((each for each in self.ledger.processes() if each.owner == owner), None)
        if known is None:
            # It has left; or the record is a new one (SQLite's file was taken away), and it has not been there yet.
            pid = _pid_here(owner)
            return pid is not None and exists(pid) and not self.ledger.has_left(owner)
        if self.wire is not None:
            dead = bool(self._buried([known]))
        elif known.host != self.process.host:
            if self.exchange is not None:
                return self.exchange.alive(known, SILENT)
            return known.seen_at + SILENT > time.time()
        elif known.address is not None and self.post is not None:
            dead = self.post.send(known.address, {"do": "ping"}) is Sent.DEAD
        else:
            dead = not exists(known.pid)
        if dead:
            self.ledger.leave(known.owner, now=time.time())
        return not dead

    def ended(self, owner: str) -> bool:
        """Whether a process that is not `alive` has ended for sure, and its connections with it. Over a database or a
        bus it may be cut off as well: then that is known of a process of this machine alone."""
        if self.wire is None:
            return owner.split(":", maxsplit=1)[0] == self.process.host
        pid = _pid_here(owner)
        return pid is not None and not exists(pid)

    def _buried(self, known: list[Process]) -> set[str]:
        """Those of these processes that are gone, put on record as such."""
        assert self.wire is not None
        gone = self.wire.missing(known)
        for each in gone:
            self.ledger.leave(each, now=time.time())
        return gone

    def signal(self, message: Message) -> tuple[set[str], bool]:
        """Send a message to every other process. Uses the ledger.

        Returns who has taken it, and will answer, and whether there are others, who may say nothing.
        """
        taken, others, known = set(), False, self.ledger.processes()
        if self.wire is not None:
            gone = self._buried(known)
            self.wire.ask(message)
            found = {each.owner for each in known if each.owner != self.process.owner}
            # A cancel was announced with its record: one that is gone by now may have died of it, having answered.
            return (set(), bool(found)) if message["do"] == "cancel" else (found - gone, False)
        for each in known:
            if each.owner == self.process.owner:
                continue
            if each.host != self.process.host or each.address is None or self.post is None:
                others = others or self.alive(each.owner)
                continue
            sent = self.post.send(each.address, message)
            if sent is Sent.DEAD:
                self.ledger.leave(each.owner, now=time.time())
            else:
                taken.add(each.owner)
        return taken, others

    def address_of(self, asker: Process) -> Optional[str]:
        """Where a process whose token is on record can be told something. Uses the ledger."""
        if self.wire is not None:
            return self.wire.address_of(asker.owner)
        return next((each.address for each in self.ledger.processes() if each.owner == asker.owner), None)

    def answer(self, address: Optional[str], message: Message, then: Callable[[], None] = lambda: None) -> None:
        """Answer a question, if its asker still listens, and do `then` as soon as that is out. Blocks only
        where the ledger is a database."""
        message = {**message, "owner": self.process.owner}
        if self.exchange is not None and address and address.startswith(OVER_BUS):
            self.exchange.answer(address, message, then)
            return
        if self.wire is not None and address:
            self.wire.send(address, message, then)
            return
        if self.post is not None and address:
            self.post.send(address, message)
        then()


def _pid_here(owner: str) -> Optional[int]:
    """The number of the process whose token that is, if it means anything here: on this machine, since its start."""
    _, pid, _, where = [*owner.split(":"), "", "", "", ""][:4]
    return int(pid) if where and where == place() else None
