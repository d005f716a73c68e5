"""What a client's runs put on record. Only for clients that use a ledger; what they hear of others: ``hearing.py``.

Nothing here waits, and nothing uses the ledger but in the threads of ``fleet``: a cancel closes its fence and
interrupts its calls first, in a signal handler, too, and is put on record after.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional

from deadstop.calls.completion import Completion
from deadstop.calls.workers import Workers
from deadstop.core.model import CancelReceipt, Cause, Intent, Outcome
from deadstop.errors import CancelRefusedError, LedgerUnavailable
from deadstop.fleet.addresses import OVER_BUS
from deadstop.fleet.member import Member
from deadstop.ledger.facts import IntentRecord, Opening, Orphans, RemoteRun
from deadstop.runs.abroad import offer, withdraw
from deadstop.runs.authority import is_refused
from deadstop.runs.chased import Chased, bound, late
from deadstop.runs.family import goes_on
from deadstop.runs.flights import Flights
from deadstop.runs.hearing import Hearing
from deadstop.runs.keeping import Keeping
from deadstop.runs.kept import Kept, Recording, monotonic, recorded, unix
from deadstop.runs.limits import Line

if TYPE_CHECKING:
    from deadstop.runs.cancelling import Cancelling
    from deadstop.runs.registry import Registry
    from deadstop.runs.remote import Remote
    from deadstop.runs.run import BaseRun

__all__ = ["Keeper"]

log = logging.getLogger("deadstop")


class Keeper(Hearing):
    """Between the runs of one registry and the ledger."""

    def __init__(self, registry: Registry, member: Member) -> None:
        self.registry = registry
        self.member = member
        self.at_home: Callable[[Callable[[], Any]], bool] = lambda work: (work(), True)[1]
        self.at_work: Callable[[], bool] = lambda: True  # whether what is done at home is done now
        self.closed = False  # its client is
        self.pick_up: Callable[[list[IntentRecord]], None] = lambda wanted: None
        self._aside = Workers(limit=1)
        self._taken_up = {}
        self._lines: dict[str, Line] = {}
        self.flights = Flights(member)
        self._births, self._forgotten, self._shares = {}, {}, {}
        member.holders.add(self)

    def close(self) -> None:
        """The client is closed and sends nothing more. What it leaves unconfirmed is another's; that is on record."""
        self.closed = True
        if not self.member._unborn:
            self.member.write(self._leave)
            self.member.read(lambda: self.pick_up([]))

    def _leave(self) -> None:
        for run in list(self.registry._remotes.values()):
            if run.cancelled and run.remote is not None and not run.remote.over:
                # Under both: it may have been cancelled by its address before its scope was.
                for kept in (self.kept(self.owner(run)), self.kept(run)):
                    if kept.epoch:
                        self.member.give_up(kept.name, kept.epoch)

    # Runs

    def open(self, run: BaseRun, named: bool, orphans: str, orphan_grace: float) -> None:
        """A scope is opened; `named`: by a name that the user gave."""
        kept = run.kept = Kept(run.name, named=named)
        kept.orphans, kept.orphan_grace = Orphans(orphans), orphan_grace

    def kept(self, run: BaseRun) -> Kept:
        """What is kept of a run."""
        run.kept = run.kept or Kept(run.name)
        return run.kept

    def home(self, run: BaseRun) -> BaseRun:
        """The run that a remote run is on record under: its scope, if it has one."""
        above = run.parent
        if run.remote is None or above is None or above.registry.keeper is None:
            return run
        return above if above.registry.keeper.member is self.member else run

    def owner(self, run: BaseRun) -> BaseRun:
        """The run that the cancel of `run` is on record under: the one that it was cancelled with, or itself."""
        home = self.home(run)
        if not run.cancelled or home.cancelled:
            return home
        return run.struck_by or run  # not its own scope: one that finishes the cancel of a dead process

    def opening(self, run: BaseRun) -> Opening:
        kept = self.kept(run)
        return Opening(
            kept.name,
            self.member.process,
            unix(run.opened),
            cancellers=None if run.cancellers is None else tuple(sorted(filter(None, run.cancellers))),
            orphans=kept.orphans,
            orphan_grace=kept.orphan_grace,
        )

    def look(self, run: BaseRun) -> Optional[Completion]:
        """See whether a run that is being entered was cancelled before. None if there is nothing to wait for."""
        self.member.wake()
        if self.member.exchange is not None and run.kept is not None and run.kept.named and not run.kept.listening:
            run.kept.listening = True
            self.member.exchange.listen(run.name)  # first: a cancel is on record, or it is heard
        if run.kept is None or not run.kept.named or run.kept.epoch or run.cancelled:
            return None
        looked, ledger = Completion(), self.member.ledger
        unknown = run.cancellers is None and run.kept.orphans is Orphans.LEAVE

        def take() -> Optional[IntentRecord]:
            opening = self.opening(run)  # here: a forked child is another process by now
            if unknown:
                return ledger.take_tombstone(opening)
            self.kept(run).told = True
            record = ledger.open_run(opening)  # others have to know who may cancel it, and what becomes of it
            self.kept(run).epoch = record.epoch
            if run.ended:
                self._close(run)  # it was left before it was on record
            return record.intent

        def found(record: Optional[IntentRecord], error: Optional[Exception]) -> None:
            if error is not None:
                log.warning("Whether run %r was cancelled before it was opened is not known: %s", run.name, error)
            elif record is not None:
                self.kept(run).epoch = record.epoch
                self.strike(run, record.intent)
            looked.set()

        # In turn: the last run of that name may not be closed yet, and would be taken for this one.
        (self.member.read if unknown else self.member.write)(take, found)
        return looked

    def changed(self, run: BaseRun, remote: Remote) -> None:
        """Something was learned of a remote run."""
        kept = self.kept(run)
        if remote.ref is not None and remote.known_at is not None and not kept.born:
            kept.born = self.kept(self.home(run)).born = True
            if not kept.recordings and not kept.epoch:
                kept.name = run.name  # which is its address by now
            self._births[id(remote)] = (run, remote)
            self.member.write(self._bear)
        if remote.over and remote.ref is not None and not kept.over and (kept.born or kept.recordings):
            kept.over = True
            self.member.write(partial(self._end, run, remote))

    def _bear(self, wanted: Optional[BaseRun] = None) -> None:
        """Put on record the remote runs whose ids came to be known. Raises LedgerUnavailable where that has to wait,
        for those of the run `wanted` if one is given."""
        late: Optional[LedgerUnavailable] = None
        for key, (run, remote) in list(self._births.items()):
            try:
                self._birth(run, remote)
            except LedgerUnavailable as error:
                late = error if wanted is None or self.owner(run) is wanted else late
                continue
            except Exception as error:
                log.warning("Remote run %s is not on record: %s", remote.ref, error)
            self._births.pop(key, None)
        if late is not None:
            raise late

    def _birth(self, run: BaseRun, remote: Remote) -> None:
        owner = self.home(run)
        kept, now = self.kept(owner), time.time()
        asked = self.remote_record(remote, owner)
        found = self.member.ledger.record_remote(asked, None if kept.epoch else self.opening(owner), now=now)
        if found.run != kept.name:
            return  # it is on record under another run
        kept.epoch = found.epoch
        if owner.ended:
            self._close(owner)
        wanted = self.member.ledger.intent(kept.name, kept.epoch)
        if wanted is not None and wanted.open and not owner.cancelled:
            self.strike(owner, wanted.intent)
        offer(self, owner, wanted)

    def remote_record(self, remote: Remote, owner: BaseRun) -> RemoteRun:
        return recorded(remote, self.kept(owner), self.member.process.owner)

    def _end(self, run: BaseRun, remote: Remote) -> None:
        asked = self.remote_record(remote, self.owner(run))
        self.member.ledger.remote_status(asked, remote.word, terminal=True, now=time.time())

    def ended(self, run: BaseRun) -> None:
        """A scope was left; or it was left before, and something in it has come to its end."""
        kept = run.kept
        if self.member.exchange is not None and kept is not None and kept.listening:
            kept.listening = False
            self.member.exchange.forget(run.name)
        if kept is not None and (kept.epoch or kept.born or kept.recordings):
            self.member.write(partial(self._close, run))

    def _close(self, run: BaseRun) -> None:
        kept = self.kept(run)
        if kept.epoch and not kept.lent and not goes_on(run):
            self.member.ledger.close_run(kept.name, kept.epoch, now=time.time())

    def revived(self, run: BaseRun) -> None:
        """A remote run that was read as cancelled is at work."""
        remote, owner = run.remote, self.owner(run)
        if remote is None or remote.ref is None or self.kept(owner).recording is None:
            return
        self.kept(run).over = False
        asked, by = self.remote_record(remote, owner), self.member.process.owner
        self.member.write(lambda: self.member.ledger.record_revival(asked, remote.word, by=by, now=time.time()))

    # Cancels

    def cancelled(self, cancelling: Cancelling) -> None:
        """A run's fence is closed and its calls are interrupted: put it on record."""
        run = cancelling.run
        if not cancelling.finished_before and (cancelling.intent.cause is not Cause.PARENT or run.remote is not None):
            self.recording(self.owner(run))

    def recording(self, run: BaseRun) -> Recording:
        """The record of a run's cancel, begun if need be. Never blocks; in signal handlers, too."""
        kept, mine = self.kept(run), Recording()
        recording = kept.recordings.setdefault("it", mine)
        cancelling = run.cancelling
        if recording is mine and cancelling is not None:
            self.member.write(partial(self._record, run, cancelling.intent, mine))
            # Elsewhere: starting a timer takes locks.
            self._aside.submit(partial(bound, mine))
        return recording

    def joined(self, run: BaseRun, intent: Intent) -> None:
        """Somebody else wants the same."""
        if self.kept(run).recording is not None:
            self.member.write(partial(self._record, run, intent, None))

    def _record(self, run: BaseRun, intent: Intent, recording: Optional[Recording]) -> None:
        kept, ledger = self.kept(run), self.member.ledger
        asked = replace(intent, run=kept.name, epoch=kept.epoch, deadline=unix(intent.deadline), at=unix(intent.at))
        try:
            if kept.lent or is_refused(self, run, intent, recording):
                return
            self._bear(run)  # first: a cancel without its remote runs would be confirmed by the end of this process
            if not kept.epoch and run.remote is not None and run.remote.ref is not None:
                # First: an intent that is found without its remote run is of no use to anybody.
                found = ledger.record_remote(self.remote_record(run.remote, run), self.opening(run), now=time.time())
                kept.epoch = found.epoch if found.run == kept.name else 0
            if not kept.epoch and intent.request_id is not None:
                # It may have come from elsewhere, and wait as a tombstone for this run to be opened.
                kept.epoch = ledger.open_run(self.opening(run)).epoch
            asked = replace(asked, epoch=kept.epoch)
            opening = None if kept.epoch else self.opening(run)
            record = ledger.record_intent(asked, self.member.process, opening=opening, now=time.time()).intent
            if kept.epoch and record.epoch != kept.epoch:  # that id is an earlier life's
                if any(each.request_id == asked.request_id for each in ledger.refusals(kept.name)):
                    return  # or a tombstone's: it was refused when the run was opened, and the signal of it was slow
                asked = replace(asked, request_id=None)
                record = ledger.record_intent(asked, self.member.process, now=time.time()).intent
            kept.epoch = record.epoch
            if recording is not None:
                recording.kept = True
                recording.done.set()
            offer(self, run, record)
            if run.ended:
                self._close(run)
        except CancelRefusedError as error:
            log.warning("Refused, and on record: %s", error)
            if not kept.epoch and not kept.named:  # nothing but the refusal is
                ledger.close_run(kept.name, ledger.open_run(self.opening(run)).epoch, now=time.time())
        except Exception as error:
            log.warning("The cancel of run %r is not on record: %s", kept.name, error)
            if recording is not None:
                recording.error = str(error)
        finally:
            if recording is not None:
                recording.done.set()

    def keeping(self, run: BaseRun) -> Keeping:
        """How the chase after `run` is put on record."""
        return Chased(self, run)

    def line(self, base_url: str) -> Line:
        """Who waits here for the limits of that server."""
        return self._lines.get(base_url) or self._lines.setdefault(base_url, Line(self.member, base_url))

    def settled(self, run: BaseRun, receipt: CancelReceipt) -> None:
        """A cancel has an outcome."""
        if run.kept is not None and run.kept.recording is not None:
            self.member.write(partial(self._settle, run, receipt))
            if self.member.exchange is not None:
                self._aside.submit(partial(late, partial(self._tell_anyway, run.kept, receipt)))

    def _settle(self, run: BaseRun, receipt: CancelReceipt) -> None:
        kept = self.kept(run)
        if kept.lent or (kept.claim is not None and not kept.claim.held):
            return  # it is another process's to settle
        if kept.claim is not None and self.closed and receipt.outcome is Outcome.UNCONFIRMED:
            kept.claim.release()  # it could send nothing more: for whoever goes on nothing has come of it yet
            return
        recording, cancelling = kept.recording, run.cancelling
        told = kept.receipt = replace(receipt, run=kept.name)
        if recording is not None and not recording.kept and cancelling is not None:
            self._record(run, cancelling.intent, recording)  # the ledger was down: it may be there again
        try:
            if kept.epoch and recording is not None and recording.kept and not kept.part:
                self.member.ledger.settle(told, kept.epoch, by=self.member.process.owner, now=time.time())
                withdraw(self, kept, told)
        finally:
            claim, kept.claim = kept.claim, None
            if claim is not None:
                claim.release()
            self._reply(kept)
        if self.closed and told.outcome is Outcome.UNCONFIRMED and kept.epoch:
            self.member.give_up(kept.name, kept.epoch)

    def _tell_anyway(self, kept: Kept, receipt: CancelReceipt) -> None:
        """The ledger may be down, and somebody who asked over the bus may be content with the receipt."""
        if any(address.startswith(OVER_BUS) for address, _ in kept.replies):
            kept.receipt = kept.receipt or replace(receipt, run=kept.name)
            self._reply(kept)

    def _reply(self, kept: Kept) -> None:
        while kept.replies and kept.receipt is not None:
            address, asked = kept.replies.pop()
            told: dict[str, Any] = {"do": "settled", "id": asked}
            if address.startswith(OVER_BUS):  # its asker may have a ledger of its own
                told["receipt"] = kept.receipt.to_dict()
            self.member.answer(address, told)

    def strike(self, run: BaseRun, wanted: Intent, deadline: float = math.inf) -> None:
        """Cancel a run as somebody elsewhere wants it. Never blocks."""
        run.request_cancel(
            run.intent(
                reason=wanted.reason,
                actor=wanted.actor,
                cause=wanted.cause,
                deadline=min(deadline, monotonic(wanted.deadline)),
                level=wanted.level,
                request_id=wanted.request_id,
            )
        )
        if run.ended:
            self.recording(run)  # it is on record, so its outcome has to be, even if there is nothing to cancel
            if run.receipt is not None:
                self.settled(run, run.receipt)

    def read_again(self, wanted: list[IntentRecord], parked: list[IntentRecord]) -> None:
        """As `Hearing.read_again`; and what could not be put on record is tried again."""
        if self._forgotten:
            self.member.write(self._keep_again)
        elif self._births:
            self.member.write(self._bear)
        super().read_again(wanted, parked)

    def forgotten(self) -> None:
        registry = self.registry
        known = list(registry._live.values()) + list(registry._ended.values()) + list(registry._remotes.values())
        for run in [*known, *(each.parent for each in known)]:
            kept = None if run is None else run.kept
            if run is None or kept is None:
                continue
            kept.epoch, kept.numbers = 0, {}  # those of the record that is gone
            if kept.recordings or kept.told:
                self._forgotten[id(run)] = run
            if run.remote is not None and run.remote.ref is not None and kept.born and not run.remote.over:
                self._births[id(run.remote)] = (run, run.remote)
        self.member.write(self._keep_again)

    def _keep_again(self) -> None:
        self._bear()
        for key, run in list(self._forgotten.items()):
            kept, cancelling = self.kept(run), run.cancelling
            known = kept.epoch and self.member.ledger.intent(kept.name, kept.epoch) is not None  # asked for since
            final = run.receipt is not None and run.receipt.outcome is not Outcome.UNCONFIRMED
            if cancelling is not None and kept.recordings and not final and not known:
                again = Recording()
                self._record(run, cancelling.intent, again)
                if again.error is not None:
                    continue  # until the record is read again
                if run.receipt is not None:
                    self._settle(run, run.receipt)
            elif cancelling is None and kept.told and not run.ended:
                record = self.member.ledger.open_run(self.opening(run))
                kept.epoch = record.epoch
                if record.intent is not None:
                    self.strike(run, record.intent.intent)
            self._forgotten.pop(key, None)

    def refused(self, run: BaseRun, wanted: Intent) -> None:
        """Somebody who may not cancel a run has tried to."""
        self.member.write(partial(self._record, run, wanted, None))
