"""A cancel of a run that this process does not hold: put on record, signalled, and waited for.

Nothing here waits. A shell waits for `done`, looks at the record now and then, and takes the answer.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls.completion import Completion
from deadstop.core.diagnosis import Facts, diagnose
from deadstop.core.model import CancelReceipt, Evidence, Intent, Level, Outcome
from deadstop.errors import CancelRefusedError
from deadstop.ledger.facts import IntentRecord, Opening
from deadstop.runs.kept import unix
from deadstop.runs.waiting import Terms

if TYPE_CHECKING:
    from deadstop.fleet.member import Message
    from deadstop.runs.keeper import Keeper

__all__ = ["Elsewhere"]

PARK = 3600.0
"""How long (seconds) a cancel waits for a run of that name to be opened."""

ACROSS = 3.5
"""How long (seconds) to wait for processes of other hosts, which read the record on their own, to take up a cancel."""

DIED = "Its process ended, and its connections with it."


class Elsewhere:
    """One cancel by name. `park`: whether it waits for the run to be opened, should nobody hold it."""

    def __init__(self, keeper: Keeper, name: str, asked: Terms, facts: dict[str, Any], *, park: bool) -> None:
        self.done = Completion()
        self.error: Optional[BaseException] = None
        self._keeper = keeper
        self._member = keeper.member
        self._asked = asked
        self._park = park
        self._began = time.monotonic()
        self._id = uuid.uuid4().hex
        request = facts.pop("request_id", None) or self._id
        self._intent = Intent(name, level=asked.level, request_id=request, **facts)
        self._record: Optional[IntentRecord] = None
        self._receipt: Optional[CancelReceipt] = None
        self._asking: set[str] = set()  # processes that were told
        self._answered: set[str] = set()
        self._others = False
        self._held = False  # somebody has said that it is theirs
        self._signalled = False
        self._holder: Optional[str] = None

    def begin(self) -> None:
        """Put it on record and signal. Never blocks."""
        self._member.waiting[self._id] = self._heard
        if self._park:
            self._member.write(self._keep, self._kept)
        else:
            self._member.read(self._ask, self._kept)

    def end(self) -> None:
        """Nobody waits any more."""
        self._member.waiting.pop(self._id, None)

    # In the threads of the ledger

    def _keep(self) -> None:
        self._put_on_record(PARK)
        self._signal()

    def _ask(self) -> None:
        """Ask without a record, which would have the next run of that name born cancelled; but other hosts read it."""
        self._signal()
        if self._others:
            self._put_on_record(ACROSS + 1.0)

    def _put_on_record(self, park: float) -> None:
        now = time.time()
        asked = Intent(**{**vars(self._intent), "deadline": unix(self._asked.deadline), "at": unix(self._began)})
        found = self._member.ledger.record_intent(asked, self._member.process, park_until=now + park, now=now)
        self._record = found.intent

    def _signal(self) -> None:
        intent, record = self._intent, self._record
        message = {
            "do": "cancel",
            "id": self._id,
            "run": intent.run,
            "epoch": 0 if record is None or record.parked_until is not None else record.epoch,
            "cause": intent.cause.value,
            "reason": intent.reason,
            "actor": intent.actor,
            "level": intent.level.value,
            "request": intent.request_id,
            "left": self._asked.deadline - time.monotonic(),
            "reply": None if self._member.post is None else self._member.post.address,
        }
        # Answers come while this is still sending, so they are kept apart from what was asked.
        self._asking, self._others = self._member.signal(message)
        self._signalled = True
        self._weigh()
        if record is not None and record.open:
            self._keeper.pick_up([record])  # its holder may be dead

    def _kept(self, _: object, error: Optional[Exception]) -> None:
        if error is not None:
            self.error = error
            self.done.set()
        elif self._asked.level is Level.SENT and self._record is not None:
            self.done.set()
        elif not self.done.is_set():
            self._look()

    def look(self) -> None:
        """Read the record again. Never blocks."""
        self._weigh()
        self._member.read(self._look, lambda _, error: None)

    def _look(self) -> None:
        intent = self._intent
        epoch = self._record.epoch if self._record is not None else 0
        found = self._member.ledger.intent(intent.run, epoch)
        silent = self._asking - self._answered
        if silent:
            self._answered |= {each for each in silent if not self._member.alive(each)}
            self._weigh()
        if found is None or intent.request_id not in [each.request_id for each in (found.intent, *found.later)]:
            return
        self._record = found
        if found.parked_until is not None and self._holder is not None and not self._member.alive(self._holder):
            self._died()
        if found.open:
            self._keeper.pick_up([found])  # should its holder have died
        if found.parked_until is None and found.outcome is not None:
            receipts = self._member.ledger.receipts(intent.run)
            self._receipt = next((each.receipt for each in receipts if each.epoch == found.epoch), None)
            if self._receipt is not None:
                self.done.set()

    def _died(self) -> None:
        """Its holder has taken it up and ended, with all that it had under way, before it could put it on record."""
        ledger, by, now = self._member.ledger, self._member.process, time.time()
        opened = ledger.open_run(Opening(self._intent.run, by, now))
        receipt = self._make(Outcome.CANCELLED, evidence=Evidence.TRANSPORT, note=DIED)
        ledger.settle(receipt, opened.epoch, by=by.owner, now=now)
        ledger.close_run(self._intent.run, opened.epoch, now=now)
        self._receipt = receipt
        self.done.set()

    # In the thread that hears signals

    def _heard(self, message: Message) -> None:
        if message["do"] == "settled":
            self._member.read(self._look, lambda _, error: None)
            return
        if message["do"] == "refused":
            who = self._intent.actor or "An actor without a name"
            run = self._intent.run
            self.error = CancelRefusedError(f"{who} may not cancel run {run!r}.", run=run, actor=self._intent.actor)
            self.done.set()
        if message["do"] == "have":
            self._held, self._holder = True, str(message.get("owner"))
            if self._asked.level is not Level.CONFIRMED:
                self.done.set()
        self._answered.add(str(message.get("owner")))
        self._weigh()

    def _weigh(self) -> None:
        """Whether there is anything left to wait for: nobody holds it, so it is parked, or unknown."""
        parked = self._record is None or self._record.parked_until is not None
        if not self._signalled or self._held or not parked or self._asking - self._answered:
            return
        if self._others and time.monotonic() < self._began + ACROSS:
            return
        self.done.set()

    # The answer

    @property
    def nobody(self) -> bool:
        """Whether it is known that nobody holds the run."""
        return not self._park and not self._held and self.error is None and self._receipt is None

    def receipt(self) -> CancelReceipt:
        """What is known now. Raises what went wrong: CancelRefusedError, LedgerError."""
        if self.error is not None:
            raise self.error
        if self._receipt is not None:
            return self._receipt
        make, record = self._make, self._record
        if not self._held and record is not None and record.parked_until is not None:
            left = record.parked_until - time.time()
            return make(Outcome.PARKED, note=f"Nobody holds it. If it is opened within {left:.0f} s, it is cancelled.")
        if self._asked.level is not Level.CONFIRMED:
            return make(Outcome.ACCEPTED if self._held else Outcome.SENT)
        note = (
            "Its holder was told, and has not settled it." if self._held else "It is on record; nobody has taken it up."
        )
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
