"""Who may cancel a remote run that is named by its address (I19): the record says in whose run it was started.

It is asked where the cancel is put on record, before anything is sent. One that can't be put on record in time goes
out all the same, and then nobody has asked.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from deadstop.core.model import Cause, Intent
from deadstop.errors import CancelRefusedError, LedgerError
from deadstop.kinds import register as kinds
from deadstop.ledger.facts import RunRecord
from deadstop.runs.kept import Recording, unix

if TYPE_CHECKING:
    from deadstop.runs.keeper import Keeper
    from deadstop.runs.run import BaseRun

__all__ = ["is_refused", "refuse"]

log = logging.getLogger("deadstop")


def is_refused(keeper: Keeper, run: BaseRun, wanted: Intent, recording: Optional[Recording]) -> bool:
    """Whether `run` is a remote run that was not started here, and this actor may not cancel it.

    Then that is put on record, and `recording` has the error. Uses the ledger.
    """
    stranger = run.remote is not None and run.parent is None and wanted.cause is Cause.USER
    if not stranger or (recording is not None and recording.done.is_set()):
        return False
    life = _forbidding(keeper, run, wanted.actor)
    if life is None:
        return False
    if recording is not None:
        who = wanted.actor or "An actor without a name"
        what = f"{who} may not cancel {run.name!r}: run {life.run!r}, in which it was started, says who may."
        if not recording.refuse(CancelRefusedError(what, run=run.name, actor=wanted.actor)):
            log.warning("The cancel of %r went out before the record said that %s", run.name, what)
            return False
    tried = replace(wanted, run=life.run, epoch=life.epoch, at=unix(wanted.at), deadline=unix(wanted.deadline))
    try:
        keeper.member.ledger.record_intent(tried, keeper.member.process, now=time.time())
    except CancelRefusedError as error:
        log.warning("Refused, and on record: %s", error)
    except LedgerError as error:
        log.warning("Refused, and not on record: %s", error)
    return True


def _forbidding(keeper: Keeper, run: BaseRun, actor: Optional[str]) -> Optional[RunRecord]:
    """The run that a remote run was started in, where that names who may cancel it, and not this actor."""
    remote, ledger = run.remote, keeper.member.ledger
    if remote is None or remote.ref is None:
        return None
    for kind in kinds.alike(remote.ref.kind):
        owned = ledger.remote(remote.channel.base_url, kind, remote.ref.ids)
        life = None if owned is None else ledger.life(owned.run, owned.epoch)
        if life is not None and life.cancellers is not None and actor not in life.cancellers:
            return life
    return None


def refuse(run: BaseRun, error: CancelRefusedError) -> None:
    """A cancel that was begun here was refused: nothing was sent, nothing will be, and nobody has asked."""
    remote: Any = run.remote
    cancelling: Any = run.cancelling
    registry = run.registry
    cancelling.refusal = error
    cancelling.abandon()
    registry.reconciler.drop(remote)
    remote.leave(run.remote_changed)
    run.ended = True
    if registry._remotes.get(remote.ref) is run:
        del registry._remotes[remote.ref]
    if registry._live.get(run.name) is run:
        del registry._live[run.name]
    chase = cancelling._chase
    for each in (*(() if chase is None else (chase.left, chase.accepted, chase.done)), cancelling.done):
        each.set()
