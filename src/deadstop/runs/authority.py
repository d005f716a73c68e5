"""Who may cancel a remote run that is named by its address (I19): the record says in whose run it was started."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls.completion import Completion
from deadstop.core.model import Intent
from deadstop.errors import CancelRefusedError, DeadstopError
from deadstop.kinds.base import Ref
from deadstop.ledger.facts import RemoteRun
from deadstop.ledger.rows import bare
from deadstop.runs.keeping import PATIENCE

if TYPE_CHECKING:
    from deadstop.core.model import CancelReceipt
    from deadstop.runs.keeper import Keeper

__all__ = ["Authority"]

log = logging.getLogger("deadstop")


class Authority:
    """The question whether an actor may cancel a remote run that this process did not start, before anything is sent.

    To a shell it is like a cancel elsewhere: begun, waited for, and asked for its answer. A record that can't be read
    stops no cancel, and makes none wait for more than `PATIENCE` seconds.
    """

    nobody = True  # whom else the cancel goes to: it is for who has asked

    def __init__(self, keeper: Keeper, ref: Ref, facts: dict[str, Any]) -> None:
        self.done = Completion()
        self._keeper = keeper
        self._ref = ref
        self._server = bare(keeper.registry.channel_to().base_url)  # here: a task's client is asked in its task
        self._actor: Optional[str] = facts["actor"]
        self._reason: Optional[str] = facts["reason"]
        self._error: Optional[CancelRefusedError] = None
        self._until = time.monotonic() + PATIENCE

    def begin(self) -> None:
        """Read the record. Never blocks."""
        self._keeper.member.read(self._owner, self._found)

    def look(self) -> None:
        """Give up, if the record can't be had."""
        if time.monotonic() >= self._until:
            log.warning("Who may cancel %s is not known: the ledger has not answered.", self._ref)
            self.done.set()

    def end(self) -> None:
        """Nobody waits any more."""

    def receipt(self) -> CancelReceipt:
        """Raises CancelRefusedError."""
        assert self._error is not None
        raise self._error

    def _owner(self) -> Optional[RemoteRun]:
        """The remote run, if the actor may not cancel it."""
        ledger = self._keeper.member.ledger
        for each in ledger.remotes_named(self._ref.kind, self._ref.ids):
            life = ledger.life(each.run, each.epoch) if each.base_url == self._server else None
            if life is not None and life.cancellers is not None and self._actor not in life.cancellers:
                return each
        return None

    def _found(self, owned: Optional[RemoteRun], error: Optional[Exception]) -> None:
        if owned is None:
            if error is not None:
                log.warning("Who may cancel %s is not known: %s", self._ref, error)
            self.done.set()
            return
        who = self._actor or "An actor without a name"
        what = f"{who} may not cancel {str(self._ref)!r}: run {owned.run!r}, in which it was started, says who may."
        self._error, self.nobody = CancelRefusedError(what, run=str(self._ref), actor=self._actor), False
        self._keeper.member.write(partial(self._put_on_record, owned), lambda _, error: self.done.set())

    def _put_on_record(self, owned: RemoteRun) -> None:
        member, now = self._keeper.member, time.time()
        tried = Intent(owned.run, owned.epoch, reason=self._reason, actor=self._actor, at=now)
        try:
            member.ledger.record_intent(tried, member.process, now=now)
        except CancelRefusedError as error:
            log.warning("Refused, and on record: %s", error)
        except DeadstopError as error:
            log.warning("Refused, and not on record: %s", error)
