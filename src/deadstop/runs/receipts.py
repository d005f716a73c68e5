"""What a receipt says of the remote run that was cancelled, and the evidence that a diagnosis goes by."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls.call import Call
from deadstop.core.diagnosis import Facts
from deadstop.core.model import Attempt, CancelReceipt, Evidence, Orphan, Outcome, RunStatus, ServerWork
from deadstop.runs.births import orphan_of
from deadstop.runs.chase import Chase
from deadstop.runs.remote import Remote

if TYPE_CHECKING:
    from deadstop.runs.kept import Kept

__all__ = ["evidence_of", "evidence_on", "noted", "remote_facts"]


def remote_facts(remote: Optional[Remote], chase: Optional[Chase]) -> dict[str, Any]:
    """The fields of a receipt that only a remote run's has."""
    if remote is None:
        return {}
    return {
        "attempts": _in_order(remote.cancels),
        "reads": _in_order(remote.reads),
        "kind": remote.kind.name,
        "status": remote.word,
        "orphan_suspect": remote.orphan or _suspect(remote, chase),
        "revivals": tuple(remote.revivals),
        "server": remote.server.name,
        "server_work": _work_on(remote, chase),
        "note": remote.server.note or None,
    }


def _suspect(remote: Remote, chase: Optional[Chase]) -> Optional[Orphan]:
    """The run that a create may have begun which has left, and is not waited for any more."""
    given_up = chase is not None and chase.machine.outcome is Outcome.UNCONFIRMED
    unknown = remote.ref is None and not remote.never_ran and remote.tracker is not None
    return orphan_of(remote.tracker) if given_up and unknown and remote.tracker.sent_at is not None else None


def _in_order(noted: list[dict[float, Attempt]]) -> tuple[Attempt, ...]:
    """The requests of all chases after a run. Each chase counts from one."""
    every = [each for one in list(noted) for each in list(one.values())]
    if len(noted) > 1:
        every = [replace(each, number=number) for number, each in enumerate(every, 1)]
    return tuple(every)


def _work_on(remote: Remote, chase: Optional[Chase]) -> ServerWork:
    """What is known of the server's work on a run."""
    if remote.never_ran or remote.status is RunStatus.FINISHED:
        return ServerWork.STOPPED
    if remote.status is not RunStatus.CANCELLED:
        active = remote.status is RunStatus.ACTIVE and (chase is None or _seen_since(chase))
        return ServerWork.RUNS_ON if active else ServerWork.UNKNOWN
    return ServerWork.STOPPED if remote.server.word is Evidence.ENGINE else remote.server.work


def _seen_since(chase: Chase) -> bool:
    """Whether the run's status is one that was asked for after its cancel."""
    sent = [each.started for one in list(chase.remote.cancels) for each in list(one.values())]
    asked = min(sent) if sent else chase.machine.intent.at if chase.machine.intent is not None else 0.0
    return chase.remote.seen_at is not None and chase.remote.seen_at >= asked


def evidence_on(chase: Chase) -> Facts:
    """What is known of a remote run whose cancel was not confirmed."""
    machine, remote, tracker = chase.machine, chase.remote, chase.remote.tracker
    answered = tracker.answer if remote.lost and tracker is not None else None
    hung_up = tracker is not None and tracker.released  # it is we who have shut its socket down
    return Facts(
        target=machine.target,
        attempts=tuple(chase.cancels.values()),
        reads=tuple(chase.reads.values()),
        phase=chase.phase,
        caller_inside=True,
        connection_lost=remote.lost and answered is None and not hung_up,
        create_answer=answered,
        statuses=tuple(chase.statuses),
        accepted=machine.accepted,
        status=RunStatus.GONE if chase.gone else remote.status,
        status_word=remote.word,
        seen_since=_seen_since(chase),
        finished_before=remote.word if machine.over is RunStatus.FINISHED else None,
        wrong_target=chase.wrong_target,
        held_back=chase.held_back,
        id_known=remote.ref is not None,
        wanted=chase.policy.evidence.value if chase.doubtful else None,
        elapsed=chase.clock.now() - machine.intent.at if machine.intent is not None else None,
        deadline=machine.deadline,
    )


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
