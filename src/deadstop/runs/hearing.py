"""What a client's runs hear of other processes: the half of the keeper that answers for the runs that are held here."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Optional, Union, cast

from deadstop.core.model import Cause, Intent, Level, Outcome
from deadstop.errors import DeadstopError
from deadstop.fleet.holder import question_of
from deadstop.fleet.member import Member, Message
from deadstop.kinds import register as kinds
from deadstop.ledger.facts import IntentRecord
from deadstop.runs.elsewhere import Elsewhere
from deadstop.runs.family import at_work
from deadstop.runs.kept import Kept, asked_for, listed, unix
from deadstop.runs.waiting import Terms, reached

if TYPE_CHECKING:
    from deadstop.core.model import CancelReceipt
    from deadstop.runs.keeper import Keeper
    from deadstop.runs.registry import Registry
    from deadstop.runs.remote import Remote
    from deadstop.runs.run import BaseRun

__all__ = ["Hearing"]

log = logging.getLogger("deadstop")

REMEMBERED = 256
"""Of how many cancels by others it is known which run they were about, should they be asked again."""


class Hearing(ABC):
    """Nothing here waits, but what a `Holder` may use the ledger for."""

    registry: Registry
    member: Member
    pick_up: Callable[[list[IntentRecord]], None]
    _taken_up: dict[tuple[str, str], BaseRun]  # by the name and the id of the question
    _births: dict[int, tuple[BaseRun, Remote]]  # remote runs that are not on record yet
    _forgotten: dict[int, BaseRun]  # runs that are not on record any more
    _shares: dict[str, tuple[BaseRun, int]]  # a forked child's, by the name of its parent's run; and that one's epoch

    @abstractmethod
    def strike(self, run: BaseRun, wanted: Intent, deadline: float = math.inf) -> None:
        """Cancel a run as somebody elsewhere wants it. Never blocks."""

    @abstractmethod
    def refused(self, run: BaseRun, wanted: Intent) -> None:
        """Somebody who may not cancel a run has tried to."""

    @abstractmethod
    def settled(self, run: BaseRun, receipt: CancelReceipt) -> None:
        """A cancel has an outcome."""

    @abstractmethod
    def _reply(self, kept: Kept) -> None:
        """Tell whoever asked, if there is an outcome."""

    def holding(self) -> bool:
        return bool(self.registry._live or self.registry.outlasting)

    def knows(self, name: str) -> bool:
        """Whether a run of that name is, or was lately, held here."""
        return name in self.registry._live or name in self.registry._ended or name in self._shares

    def held(self, name: str) -> Optional[BaseRun]:
        """The run that other processes mean by that name, if it is held here: open, or left with something at work that
        no record leads to, such as a call, or a remote run of a scope inside."""
        run, last = self.registry._live.get(name), self.registry._ended.get(name)
        if run is None and last is not None and last.kept is not None and not last.kept.epoch and at_work(last):
            run = last
        return run if run is not None and run.kept is not None and run.kept.named else None

    def meant(self, name: str, epoch: int) -> Optional[BaseRun]:
        """That life of the run, if it is or was held here: a scope may have been left just after its cancel was put on
        record, and what it began goes on."""
        registry = self.registry
        seen = [registry._live.get(name), registry._ended.get(name)]
        seen += [each.parent for each in list(registry._remotes.values())]  # the name may have been given once more
        return next(
            (run for run in seen if run is not None and run.kept is not None and run.kept.is_life(name, epoch)), None
        )

    def today(self, name: str) -> Optional[BaseRun]:
        """The run of that name that is held here and not on record: who cancels by name means that one, too, though
        the record knows only an earlier life of the name, which was left behind."""
        run = self.held(name)
        return run if run is not None and run.kept is not None and not run.kept.epoch else None

    def took_up(self, message: Message) -> bool:
        """Whether that question was heard here before, and was about a run of this holder."""
        return (str(message.get("run")), str(message.get("id"))) in self._taken_up

    def heard(self, message: Message) -> bool:
        """A signal from another process. Whether it was for us."""
        if message["do"] == "list":
            self._list(message)
            return False
        name, epoch, asked = str(message.get("run")), int(message.get("epoch", 0)), str(message.get("id"))
        before = self._taken_up.get((name, asked))
        if before is not None and before.ended:
            self._tell_again(before, message)
            return True
        run = self.meant(name, epoch) if epoch else self.held(name)
        wanted, today = asked_for(name, message), self.today(name)
        if name in self._shares:
            self._strike_share(replace(wanted, at=float(message.get("at", math.inf))), epoch)
        if today is not None and (today is run or float(message.get("at", math.inf)) < unix(today.opened)):
            today = None
        if run is None:
            run, today, wanted = today, None, replace(wanted, request_id=None)  # that id is the other life's on record
        if run is None or run.kept is None:
            return False
        left = message.get("left")
        until = math.inf if left is None else time.monotonic() + float(left)
        if not self.may(run, wanted):
            self.member.answer(message.get("reply"), {"do": "refused", "id": message.get("id")})
            return True
        self._do(run, run.kept, wanted, until, message.get("reply"), asked, today)
        return True

    def _do(
        self,
        run: BaseRun,
        kept: Kept,
        wanted: Intent,
        until: float,
        reply: Optional[str],
        asked: str,
        today: Optional[BaseRun] = None,
    ) -> None:
        """Strike, and tell who has asked: that it is under way, and what came of it."""

        def strike() -> None:
            kept.replies.append((str(reply), asked))
            self._take_up((wanted.run, asked), run)
            self.strike(run, wanted, until)
            self._strike_today(today, wanted, until)
            self.member.write(lambda: self._reply(kept))  # should it be settled already
            self._tell_accepted(run, wanted.level, reply, asked)

        # The answer first: what is struck may end the whole process at once.
        self.member.answer(reply, {"do": "have", "id": asked, "accepted": not _awaits_servers(run)}, strike)

    def _tell_accepted(self, run: BaseRun, level: Level, reply: Optional[str], asked: str) -> None:
        """Tell who waits for no more, once it is, if that is not told yet. What it comes to is told anyway."""
        cancelling = run.cancelling
        if cancelling is None or level is not Level.ACCEPTED or not _awaits_servers(run):
            return

        def tell() -> None:
            if cancelling.refusal is None and cancelling.snapshot(level).outcome is not Outcome.UNCONFIRMED:
                self.member.answer(reply, {"do": "accepted", "id": asked, "accepted": True})

        reached(cancelling, level, lambda: self.member.read(tell))

    def _strike_today(self, run: Optional[BaseRun], one: Intent, deadline: float = math.inf) -> None:
        """Cancel the run of `today` with what the record has for an earlier life."""
        wish = replace(one, request_id=None)  # that id is the other life's on record
        if run is not None and not run.cancelled and self.may(run, wish):
            self.strike(run, wish, deadline)

    def _take_up(self, asked: tuple[str, str], run: BaseRun) -> None:
        self._taken_up[asked] = run
        with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # somebody else made room
            while len(self._taken_up) > REMEMBERED:
                self._taken_up.pop(next(iter(self._taken_up)))

    def _tell_again(self, run: BaseRun, message: Message) -> None:
        """What was asked was taken up, and the answer lost. By now the name may be that of another run, which nobody
        means."""
        kept = cast("Kept", run.kept)

        def tell() -> None:
            kept.replies.append((str(message.get("reply")), str(message.get("id"))))
            self.member.write(lambda: self._reply(kept))
            self._tell_accepted(run, asked_for(run.name, message).level, message.get("reply"), str(message.get("id")))

        have = {"do": "have", "id": message.get("id"), "accepted": not _awaits_servers(run)}
        self.member.answer(message.get("reply"), have, tell)

    def away(self, target: Any, asked: Terms, facts: dict[str, Any]) -> Union[BaseRun, Elsewhere, None]:
        """Where a cancel goes that is not for this registry: to a run of another client of this process, or elsewhere.

        None if it is for this one.
        """
        if not isinstance(target, str) or target in self.registry._live or not target.strip():
            return None
        for holder in list(self.member.holders):
            found = holder.held(target) if isinstance(holder, Hearing) else None
            if found is not None:
                return found
        if (self.member.private and self.member.exchange is None) or kinds.parse(target) is not None:
            return None
        ended = self.registry._ended.get(target)
        if ended is not None and self.member.wire is not None and at_work(ended):
            return None  # the record knows no other life of that name, so nobody else would take it up
        return Elsewhere(cast("Keeper", self), target, asked, facts, park=ended is None and not self.member.private)

    def may(self, run: BaseRun, wanted: Intent) -> bool:
        """Whether the actor may cancel the run (I19). If not, that is put on record."""
        if run.cancellers is None or wanted.cause is not Cause.USER or wanted.actor in run.cancellers:
            return True
        self.refused(run, replace(wanted, at=time.monotonic()))
        return False

    def forked(self) -> None:
        self._births.clear()
        self._forgotten.clear()
        self._taken_up.clear()

    def share(self, run: BaseRun, of: str, theirs: Optional[Kept]) -> None:
        """In a forked child: `run` is its share of the scope `of`, of which the ledger has `theirs`."""
        if theirs is not None:
            run.kept = Kept(run.name)
            run.kept.orphans, run.kept.orphan_grace = theirs.orphans, theirs.orphan_grace
            if theirs.named:
                self._shares[of] = (run, theirs.epoch)

    def _strike_share(self, wanted: Intent, epoch: int) -> None:
        """Who cancels a scope means what a forked child does in it as well; its answer is for the parent to give."""
        run, life = self._shares.get(wanted.run, (None, 0))
        if run is None or run.ended or run.cancelled or (epoch != life if life else wanted.at < unix(run.opened)):
            return
        if run.cancellers is None or wanted.cause is not Cause.USER or wanted.actor in run.cancellers:
            self.strike(run, replace(wanted, request_id=None))

    def _list(self, message: Message) -> None:
        found = listed(self.registry.live())
        for start in range(0, len(found), 50):
            part = found[start : start + 50]
            self.member.answer(message.get("reply"), {"do": "runs", "id": message.get("id"), "runs": part})

    def catch_up(self) -> None:
        """We were cut off from the ledger: see whether cancels of runs that are held here were settled by others."""
        for run in self.registry.live():
            if run.kept is not None and run.kept.epoch and not run.cancelled:
                found = self.member.ledger.intent(run.kept.name, run.kept.epoch)
                if found is not None:
                    self.strike(run, found.intent)

    def read_again(self, wanted: list[IntentRecord], parked: list[IntentRecord]) -> None:
        """The open intents and the tombstones, as they stand: what was not heard is made good."""
        for each in parked:
            run = self.held(each.run)
            if run is not None and not run.cancelled and self.may(run, each.intent):
                reply, asked = self.member.address_of(each.by), each.intent.request_id
                if run.kept is None or asked is None or reply is None:
                    self.strike(run, each.intent)
                else:
                    self._do(run, run.kept, each.intent, math.inf, reply, question_of(each.run, asked))
        for each in wanted:
            self._strike_share(each.intent, each.epoch)
            run = self.meant(each.run, each.epoch)
            unheard = run is not None and not run.cancelled and each.outcome is not Outcome.UNCONFIRMED
            if unheard or (run is None and each.outcome is None):
                today = self.today(each.run)
                if run is not None:
                    self.strike(run, each.intent)
                for one in () if today is None or today is run else (each.intent, *each.later):
                    if today is not None and one.at >= unix(today.opened):
                        self._strike_today(today, one)
            elif run is not None and run.receipt is not None and run.receipt.outcome is not (each.outcome or 0):
                self.settled(run, run.receipt)  # the ledger was down when there was an outcome
        try:
            self.pick_up(wanted)
        except DeadstopError as error:
            log.warning("What other processes left behind can't be looked after now: %s", error)


def _awaits_servers(run: BaseRun) -> bool:
    """Whether there are servers to accept its cancel. If not, to strike is enough, and may end this whole process."""
    return run.remote is not None or any(_awaits_servers(each) for each in list(run.children.values()))
