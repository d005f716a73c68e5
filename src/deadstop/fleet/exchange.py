"""What a process does over its bus, where it has one, beside what it does on its host and in the record."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Callable, Optional

from deadstop.errors import LedgerUnavailable, LedgerUrlError
from deadstop.fleet.addresses import BusAddress

if TYPE_CHECKING:
    from deadstop.fleet.bus import Bus
    from deadstop.fleet.jobs import Jobs
    from deadstop.fleet.member import Member
    from deadstop.ledger.facts import Process

__all__ = ["BUS", "Exchange"]

log = logging.getLogger("deadstop")

BUS = "the bus"
"""Who stands in for the processes that are asked over the bus, until one of them, or the server, has answered."""

MISSED = 8.0
"""How long (seconds) without a sign of life in the record before a process is taken for dead that the bus does not know
either. Longer than a connection to the bus takes to be made again; see ``BEAT``."""

GREETING = 2.0
"""How long (seconds) a signal waits for a bus that this process is just about to reach: for the first time, or again
where there is nothing but the bus."""

PARTING = 0.5
"""How long (seconds) the end of the process waits until others know what is settled."""

Message = dict[str, Any]


class Exchange:
    """The bus of a member. Raises LedgerUrlError if its extra is missing, or credentials can't be used; that it is down
    is no error."""

    def __init__(self, member: Member, address: BusAddress) -> None:
        try:
            from deadstop.fleet.bus import Bus
            from deadstop.fleet.jobs import Jobs
            from deadstop.fleet.need_nats import options
        except ModuleNotFoundError as error:
            raise LedgerUrlError(f"{str(error).rstrip('.')}.") from error
        options(address)
        self._make: Callable[[], Bus] = lambda: Bus(
            address, member.process.owner, member._heard, member._read_again, self.jobs
        )
        self._new_jobs: Callable[[], Jobs] = lambda: Jobs(member.read)
        self._member = member
        self._shown = address.shown
        self.bus: Optional[Bus] = None
        self.jobs: Optional[Jobs] = None
        """What hosts with a ledger of their own finish for each other. A record that they share does that itself."""

    def begin(self) -> None:
        """The process is there."""
        if self.jobs is None and self._member.wire is None:
            self.jobs = self._new_jobs()
        if self.jobs is not None:
            self.jobs.begin(self._member.process.owner)
        self.bus = self._make()
        if self.jobs is not None:
            self.jobs.bus = self.bus

    def forked(self) -> None:
        """This is a child now."""
        if self.bus is not None:
            self.bus.disown()
        self.bus = None
        if self.jobs is not None:
            self.jobs.bus = None

    def close(self) -> None:
        """Nobody can be heard any more."""
        if self.jobs is not None:
            self.jobs.flush(PARTING)
        if self.bus is not None:
            self.bus.close()

    # Holders. Nothing of it blocks.

    def listen(self, run: str) -> None:
        """A run of that name is held here, and can be cancelled by it."""
        self._member.awake()  # a forked child is to be heard of
        if self.bus is not None:
            self.bus.listen(run)

    def forget(self, run: str) -> None:
        """It is not, any more."""
        if self.bus is not None:
            self.bus.forget(run)

    def answer(self, to: str, message: Message, then: Callable[[], None]) -> None:
        """Answer, and do `then` once that is on its way; also if it can't be."""
        if self.bus is None:
            then()
        else:
            self.bus.answer(to, message, _guarded(then))

    # Who asks. It may block, and uses the ledger.

    def signal(self, message: Message) -> set[str]:
        """Have a message heard by the run's holder, or, if it is no cancel, by every process. Who stands for them.

        Raises LedgerUnavailable where there is nothing but a bus, and it is down.
        """
        if self.bus is not None and self.bus.ready(GREETING, patient=self._member.private):
            self._send(self.bus, message)
            return {BUS}
        if self._member.private:
            raise LedgerUnavailable(f"The bus {self._shown} can't be reached now.")
        return set()

    def again(self, message: Message, holder: Optional[str] = None) -> bool:
        """Once more: the question, or its answer, may have been lost. False: the bus is down now."""
        if self.bus is None or not self.bus.up:
            return False
        self._send(self.bus, message, holder)
        return True

    @staticmethod
    def _send(bus: Bus, message: Message, holder: Optional[str] = None) -> None:
        if message["do"] == "cancel":
            bus.ask(message["run"], message, holder)
        else:
            bus.call(message)

    def unsure(self) -> bool:
        """Whether a holder may be on its way back to the bus: that nobody holds a run is to be asked again then."""
        return self.bus is not None and self.bus.just_back

    def there(self, owner: str) -> Optional[bool]:
        """Whether that process is on the bus. None: it can't be told."""
        return None if self.bus is None else self.bus.there(owner)

    def alive(self, known: Process, silent: float) -> bool:
        """Whether a process of another host is there, which is taken for dead after `silent` seconds otherwise.

        That it is not on the bus is no proof: its connection may be down. If it is dead to the record, too, it is.
        """
        there = self.there(known.owner)
        return there or known.seen_at + (silent if there is None else min(silent, MISSED)) > time.time()

    def unreached(self, asked: set[str]) -> bool:
        """Whether somebody lives who was not asked and is not on the bus: he reads the record on his own."""
        asked = asked | {self._member.process.owner}
        others = [each.owner for each in self._member.ledger.processes() if each.owner not in asked]
        return any(not self.there(each) and self._member.alive(each) for each in others)

    def knows(self, owner: str) -> bool:
        """Whether that process uses the same ledger."""
        return not self._member.private and any(each.owner == owner for each in self._member.ledger.processes())


def _guarded(then: Callable[[], None]) -> Callable[[], None]:
    """A callback of the user's may mean to leave, in a thread that is not theirs: the bus goes on."""

    def do() -> None:
        try:
            then()
        except BaseException:
            log.exception("A cancel that came over the bus failed unexpectedly.")

    return do
