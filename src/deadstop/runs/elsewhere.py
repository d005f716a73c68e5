"""A cancel of a run that this process does not hold: put on record, signalled, and waited for.

Nothing here waits. A shell waits for `done`, looks at the record now and then, and takes the answer.
"""

from __future__ import annotations

import threading
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls import timers
from deadstop.calls.completion import Completion
from deadstop.core.diagnosis import Facts, diagnose
from deadstop.core.model import CancelReceipt, Evidence, Intent, Level, Outcome
from deadstop.errors import CancelRefusedError, LedgerError, LedgerUnavailable
from deadstop.fleet.exchange import BUS
from deadstop.fleet.holder import question_of
from deadstop.ledger import rows
from deadstop.ledger.facts import IntentRecord, Opening
from deadstop.runs.checks import checked_for_others
from deadstop.runs.kept import unix
from deadstop.runs.waiting import Terms

if TYPE_CHECKING:
    from deadstop.fleet.member import Message
    from deadstop.runs.keeper import Keeper

__all__ = ["Elsewhere"]

PARK = 3600.0
"""How long (seconds) a cancel waits for a run of that name to be opened."""

AGAIN = 1.0
"""How often (seconds) the bus is asked again where no answer came, and how long its absence is no proof of anything."""

LINGER = 5.0
"""How long (seconds) the answer of a bus is waited for by one who has told his asker already."""

DIED = "Its process ended, and its connections with it."
CUT_OFF = "Its process has ended, or is cut off from the ledger: then it cancels the run once it is back."
GONE = "Its holder took it up, and can't be reached over the bus any more."
ABROAD = "A process with a ledger of its own holds the run, and was told."
ENDS = (Outcome.CANCELLED, Outcome.FINISHED_FIRST, Outcome.UNCONFIRMED, Outcome.PARKED)


class Elsewhere:
    """One cancel by name. `park`: whether it waits for the run to be opened, should nobody hold it.

    Raises UsageError for a name that no run can have.
    """

    def __init__(self, keeper: Keeper, name: str, asked: Terms, facts: dict[str, Any], *, park: bool) -> None:
        checked_for_others(name)
        self.done = Completion()
        self.error: Optional[BaseException] = None
        self._keeper = keeper
        self._member = keeper.member
        self._asked = asked
        self._park = park
        self._began = time.monotonic()
        request = facts.pop("request_id", None) or uuid.uuid4().hex
        self._id = question_of(name, request)
        self._intent = Intent(name, level=asked.level, request_id=request, **facts)
        self._record: Optional[IntentRecord] = None
        # When it was asked for first, if it was before: runs since then are not meant (I8).
        self._before: Optional[float] = None
        self._receipt: Optional[CancelReceipt] = None
        self._asking: set[str] = set()  # processes that were told
        self._answered: set[str] = set()
        self._others = False
        self._held = False  # somebody has said that it is theirs
        self._accepted: Optional[bool] = None  # as its holder would tell; None: it is of a version that does not
        self._signalled = False
        self._holder: Optional[str] = None
        self._message: dict[str, Any] = {}
        self._asked_at = 0.0
        self._abroad: Optional[bool] = None  # its holder has a ledger of its own: what it tells is all that is known
        self._told: Optional[CancelReceipt] = None
        self._missed: Optional[float] = None  # since when such a holder is not on the bus
        self._unheld = False  # as far as the bus knows
        self._unkept: Optional[LedgerUnavailable] = None  # the ledger is down, and the bus may do without
        self._left = False  # nobody waits any more
        self._closing = threading.Lock()
        self._closed = False
        self._retracting = False

    def begin(self) -> None:
        """Put it on record and signal. Never blocks."""
        self._member.hear(self._id, self._heard)
        if self._park:
            self._member.write(self._keep, self._kept)
        else:
            self._member.read(self._ask, self._kept)

    def end(self) -> None:
        """Nobody waits any more."""
        self._left = True
        if BUS in self._asking - self._answered or (self._member.exchange is not None and not self._signalled):
            # A holder with a ledger of its own may take it up; then nothing must stay parked in ours.
            timers.at(time.monotonic() + LINGER, self._deaf)
            return
        self._deaf()
        if self._abroad and self._receipt is None:
            self._member.write(self._withdraw)

    def _deaf(self) -> None:
        self._member.deaf(self._id, self._heard)

    # In the threads of the ledger

    def _keep(self) -> None:
        try:
            self._put_on_record(PARK)
        except LedgerUnavailable as error:
            if self._member.exchange is None:
                raise
            self._unkept = error
        self._signal()

    def _ask(self) -> None:
        """Ask without a record, which would have the next run of that name born cancelled; but other hosts read it."""
        self._signal()
        if self._others and not self._held:
            self._put_on_record(self._member.across + 1.0)

    def _put_on_record(self, park: float) -> None:
        now = time.time()
        asked = Intent(**{**vars(self._intent), "deadline": unix(self._asked.deadline), "at": unix(self._began)})
        found = self._member.ledger.record_intent(asked, self._member.process, park_until=now + park, now=now)
        self._record = found.intent
        cancels = (found.intent.intent, *found.intent.later)
        self._before = next((e.at for e in cancels if found.repeated and e.request_id == asked.request_id), None)

    def _signal(self) -> None:
        intent, record = self._intent, self._record
        self._asked_at = time.monotonic()
        self._message = {
            "do": "cancel",
            "id": self._id,
            "run": intent.run,
            "epoch": 0 if record is None or record.parked_until is not None else record.epoch,
            "cause": intent.cause.value,
            "reason": intent.reason,
            "actor": intent.actor,
            "level": intent.level.value,
            "request": intent.request_id,
            "left": self._asked.deadline - self._asked_at,
            "reply": None if self._member.post is None else self._member.post.address,
        }
        if self._before is not None:
            self._message["at"] = self._before
        # Answers come while this is still sending, so they are kept apart from what was asked.
        exchange = self._member.exchange
        over_bus = set[str]() if exchange is None else exchange.signal(self._message)
        if self._unkept is not None:
            if not over_bus:
                raise self._unkept
            self._asking = over_bus
        else:
            asking, self._others = self._member.signal(self._message)
            self._asking = asking | over_bus
        self._signalled = True
        if self._unheld:
            self._nobody()
        self._weigh()
        if record is not None and record.open:
            self._keeper.pick_up([record])  # its holder may be dead

    def _kept(self, _: object, error: Optional[Exception]) -> None:
        if error is not None:
            self.error = error
            self.done.set()
        elif self._asked.level is Level.SENT and self._record is not None and self._park:
            self.done.set()
        elif not self.done.is_set():
            self._look()

    def look(self) -> None:
        """Read the record again. Never blocks."""
        self._weigh()
        self._member.read(self._look, lambda _, error: None)

    def _look(self) -> None:
        if self._unkept is not None:
            self._abroad = True
        if self._abroad:
            self._look_abroad()
            return
        intent, now = self._intent, time.monotonic()
        if BUS in self._asking - self._answered and now > self._asked_at + AGAIN:
            self._ask_again()
        epoch = self._record.epoch if self._record is not None else 0
        found = self._member.ledger.intent(intent.run, epoch)
        silent = self._asking - self._answered - {BUS}
        if silent:
            self._answered |= {each for each in silent if not self._member.alive(each)}
            self._weigh()
        if found is None or intent.request_id not in [each.request_id for each in (found.intent, *found.later)]:
            return
        self._record = found
        taken = self._holder if found.parked_until is not None and self._abroad is False else None
        if taken is not None and not self._member.alive(taken):
            self._died()
        if found.open:
            self._keeper.pick_up([found])  # should its holder have died
        if found.parked_until is None and found.outcome is not None:
            receipts = self._member.ledger.receipts(intent.run)
            self._receipt = next((each.receipt for each in receipts if each.epoch == found.epoch), None)
            going_on = found.left and found.outcome is Outcome.UNCONFIRMED  # its holder has not, so somebody else may
            if self._receipt is not None and not going_on:
                self.done.set()

    def _ask_again(self) -> None:
        self._asked_at = time.monotonic()
        exchange = self._member.exchange
        message = {**self._message, "left": self._asked.deadline - self._asked_at}
        if exchange is None or not exchange.again(message, self._holder):
            self._others = self._unkept is None  # the bus is down: whoever has this ledger reads it
            self._answered.add(BUS)
            if self._member.private:
                self.error = LedgerUnavailable("The bus was lost before anybody answered.")
                self.done.set()

    def _nobody(self) -> None:
        """The bus knows no holder."""
        self._unheld = True
        if self._held or not self._signalled:
            return
        exchange = self._member.exchange
        if exchange is not None and exchange.unsure():
            return
        if self._others and exchange is not None:
            self._others = exchange.unreached(self._asking)
        self._answered.add(BUS)
        self._weigh()

    def _have(self, holder: str) -> None:
        """Somebody has taken it up, and told so over the bus."""
        if self._abroad is None:
            self._look()  # one that has settled it and left is none of another ledger
            parked = self._record is None or self._record.parked_until is not None
            self._abroad = parked and self._member.exchange is not None and not self._member.exchange.knows(holder)
        if self._abroad and self._left and self._receipt is None:
            self._withdraw()
        elif self._abroad:
            self._look_abroad()

    def _look_abroad(self) -> None:
        now = time.monotonic()
        if self._told is not None:
            if self._receipt is None:
                self._receipt = self._told
                self._close(self._told)
            self.done.set()
        elif self._holder is None and now > self._asked_at + AGAIN:
            self._ask_again()
        elif self._holder is not None and self._member.exchange is not None and now > self._asked_at + AGAIN:
            there = self._member.exchange.there(self._holder)
            if there:
                self._ask_again()  # its answer may have been lost
            self._missed = None if there is not False else self._missed or now
            if self._missed is not None and now > self._missed + AGAIN:
                self.done.set()

    def _withdraw(self) -> None:
        """A holder with a ledger of its own has taken it up: the next run of that name here is not meant."""
        self._close(self._make(Outcome.PARKED, note=ABROAD))

    def _close(self, receipt: CancelReceipt) -> None:
        ledger, by, now = self._member.ledger, self._member.process, time.time()
        if self._record is None or self._record.parked_until is None or receipt.outcome not in ENDS:
            return
        with self._closing:  # two lanes may come by
            if not self._closed:
                opened = ledger.open_run(Opening(self._intent.run, by, now))
                ledger.settle(receipt, opened.epoch, by=by.owner, now=now)
                ledger.close_run(self._intent.run, opened.epoch, now=now)
                self._closed = True

    def _died(self) -> None:
        """Its holder has taken it up and ended, with all that it had under way, before it could put it on record."""
        if self._holder is not None and self._member.ended(self._holder):
            receipt = self._make(Outcome.CANCELLED, evidence=Evidence.TRANSPORT, note=DIED)
        else:
            receipt = self._make(Outcome.UNCONFIRMED, diagnosis=diagnose(Facts()), note=CUT_OFF)
        self._close(receipt)
        self._receipt = receipt
        self.done.set()

    # In the threads that hear signals

    def _heard(self, message: Message) -> None:
        over_bus = "via" in message
        if message["do"] == "settled":
            if over_bus and isinstance(message.get("receipt"), dict):
                self._told = rows.receipt(message["receipt"])
            self._member.read(self._look, lambda _, error: None)
            return
        if message["do"] == "nobody":
            self._member.read(self._nobody, lambda _, error: None)
            return
        if message["do"] == "refused":
            who = self._intent.actor or "An actor without a name"
            run = self._intent.run
            self.error = CancelRefusedError(f"{who} may not cancel run {run!r}.", run=run, actor=self._intent.actor)
            self.done.set()
        if message["do"] in ("have", "accepted"):
            self._held, self._holder = True, str(message.get("owner"))
            if message.get("accepted") is not None:
                self._accepted = self._accepted or bool(message["accepted"])
            if not over_bus:
                self._abroad = False
            else:
                self._member.read(partial(self._have, self._holder), lambda _, error: None)
            if self._asked.level is not Level.CONFIRMED and not self._awaits():
                self.done.set()
        self._answered |= {str(message.get("owner")), *([BUS] if over_bus else [])}
        self._weigh()

    def _awaits(self) -> bool:
        """Whether its holder is still to say that it has come as far as that."""
        return self._asked.level is Level.ACCEPTED and self._accepted is False

    def _weigh(self) -> None:
        """Whether there is anything left to wait for: nobody holds it, so it is parked, or unknown."""
        parked = self._record is None or self._record.parked_until is not None
        if not self._signalled or self._held or not parked or self._asking - self._answered:
            return
        if self._others and time.monotonic() < self._began + self._member.across:
            return
        if self._park or self._record is None:
            self.done.set()
        elif not self._retracting:
            self._retracting = True
            self._member.write(self._retract, self._retracted)

    def _retract(self) -> bool:
        """It only asked whether somebody holds the run: the next one of that name is not meant.

        Whether it is gone. If not, a run has been opened meanwhile and has taken it up: that one's end is the answer.
        """
        record = self._record
        return record is None or self._member.ledger.retract(
            record.intent.run, record.epoch, str(record.intent.request_id)
        )

    def _retracted(self, gone: Optional[bool], error: Optional[Exception]) -> None:
        if error is not None or (gone and not self._held):  # or somebody has taken it up meanwhile
            self.done.set()

    # The answer

    @property
    def nobody(self) -> bool:
        """Whether the cancel goes to this process: nobody else holds the run, or can be asked, and it ended here."""
        taken_up = self._record is not None and self._record.parked_until is None
        if self._park or self._held or taken_up or self._receipt is not None:
            return False
        ended_here = self._intent.run in self._keeper.registry._ended
        if not ended_here and BUS in self._asking - self._answered:
            return False  # that no answer came proves nothing
        return self.error is None or (ended_here and isinstance(self.error, LedgerError))

    def receipt(self) -> CancelReceipt:
        """What is known now. Raises what went wrong: CancelRefusedError, LedgerError."""
        if self.error is not None:
            raise self.error
        if self._receipt is not None:
            return self._receipt
        if self._told is not None:  # its holder can't put it on record now
            return self._told
        if self._unkept is not None and not self._held:
            raise self._unkept
        make, record = self._make, self._record
        if not self._held and record is not None and record.parked_until is not None:
            left = record.parked_until - time.time()
            return make(Outcome.PARKED, note=f"Nobody holds it. If it is opened within {left:.0f} s, it is cancelled.")
        if self._asked.level is not Level.CONFIRMED and not self._awaits():
            return make(Outcome.ACCEPTED if self._accepted and self._asked.level is Level.ACCEPTED else Outcome.SENT)
        note = "No answer came." if record is None else "It is on record; nobody has taken it up."
        if self._held:
            note = GONE if self._missed is not None else "Its holder was told, and has not settled it."
        return make(Outcome.UNCONFIRMED, diagnosis=diagnose(Facts()), note=note)

    def _make(self, outcome: Outcome, **more: Any) -> CancelReceipt:
        intent = self._intent
        return CancelReceipt(
            intent.run,
            outcome,
            reason=intent.reason,
            actor=intent.actor,
            cause=intent.cause,
            level=intent.level,
            elapsed=time.monotonic() - self._began,
            request_id=intent.request_id,
            **more,
        )
