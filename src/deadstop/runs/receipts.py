"""What a receipt says of the remote run that was cancelled, and the evidence that a diagnosis goes by."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls.call import Call
from deadstop.core.diagnosis import Facts
from deadstop.core.model import CancelReceipt, Evidence, RunStatus, ServerWork
from deadstop.runs.chase import Chase
from deadstop.runs.remote import Remote

if TYPE_CHECKING:
    from deadstop.runs.kept import Kept

__all__ = ["evidence_of", "noted", "remote_facts"]


def remote_facts(remote: Optional[Remote], chase: Optional[Chase]) -> dict[str, Any]:
    """The fields of a receipt that only a remote run's has."""
    if remote is None:
        return {}
    return {
        "attempts": () if chase is None else tuple(chase.cancels.values()),
        "reads": () if chase is None else tuple(chase.reads.values()),
        "kind": remote.kind.name,
        "status": remote.word,
        "orphan_suspect": remote.orphan,
        "revivals": tuple(remote.revivals),
        "server": remote.server.name,
        "server_work": _work_on(remote),
        "note": remote.server.note or None,
    }


def _work_on(remote: Remote) -> ServerWork:
    """What is known of the server's work on a run."""
    if remote.never_ran or remote.status is RunStatus.FINISHED:
        return ServerWork.STOPPED
    if remote.status is not RunStatus.CANCELLED:
        return ServerWork.RUNS_ON if remote.status is RunStatus.ACTIVE else ServerWork.UNKNOWN
    return ServerWork.STOPPED if remote.server.word is Evidence.ENGINE else remote.server.work


def evidence_of(call: Call) -> Facts:
    """What is known of a call that did not come back in time."""
    facts = call.facts()
    return Facts(
        attempts=() if facts.attempt is None else (facts.attempt,),
        phase=call.phase if not facts.released else facts.phase,
        interruptible=not call.opaque,
        caller_inside=not facts.released,
        elapsed=facts.elapsed,
    )


def noted(receipt: CancelReceipt, kept: Optional[Kept]) -> CancelReceipt:
    """The receipt, with a sentence on it if it could not be put on record."""
    if kept is None or kept.recording is None:
        return receipt
    note = kept.recording.note
    if note is None or note in (receipt.note or ""):
        return receipt
    return replace(receipt, note=f"{receipt.note} {note}" if receipt.note else note)
