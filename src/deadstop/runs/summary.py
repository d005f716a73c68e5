"""The receipt that a cancellation adds up to: of its calls, its remote run and its children."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Optional

from deadstop.core.diagnosis import diagnose
from deadstop.core.model import CancelReceipt, Diagnosis, Evidence, Level, Outcome
from deadstop.runs.draining import usage_of
from deadstop.runs.receipts import evidence_of, evidence_on, remote_facts
from deadstop.runs.tally import delivered_in

if TYPE_CHECKING:
    from deadstop.runs.cancelling import Cancelling

__all__ = ["as_known_now", "later_of", "sum_up"]

_UNANSWERED = (None, Outcome.SENT, Outcome.ACCEPTED, Outcome.PARKED)


def later_of(it: Cancelling) -> tuple[tuple[Optional[str], Optional[str]], ...]:
    """Who else wanted it, and why."""
    return tuple((intent.reason, intent.actor) for intent in list(it._late))


def as_known_now(final: CancelReceipt, it: Cancelling) -> CancelReceipt:
    """The receipt, with what became known after it was made: runs that came back to life, or may exist unseen."""
    remote = it.run.remote
    if remote is not None:
        orphan = remote.orphan if remote.orphan is not None or remote.never_ran else final.orphan_suspect
        if (final.revivals, final.orphan_suspect) != (tuple(remote.revivals), orphan):
            final = replace(final, revivals=tuple(remote.revivals), orphan_suspect=orphan)
    now = [child.receipt for child in list(it._children)]
    late = [each for each in now if each is not None and (each.revivals or each.orphan_suspect)]
    if late and any(each not in final.children for each in late):
        final = replace(final, children=it._receipts(None))
    return final


def sum_up(it: Cancelling, level: Optional[Level] = None) -> CancelReceipt:
    """The receipt as it would be now. With a `level`, short of confirmed, for whoever waits for no more."""
    intent = it.intent
    facts = tuple(call.facts() for call in it.calls.values())
    children = it._receipts(level)
    outcome, evidence = _outcome(it, children, level)
    return CancelReceipt(
        run=it.run.name,
        outcome=outcome,
        reason=intent.reason,
        actor=intent.actor,
        cause=intent.cause,
        level=level or intent.level,
        **remote_facts(it.run.remote, it._chase),
        elapsed=(it._settled_at or time.monotonic()) - intent.at,
        delivered=delivered_in(it.run),
        usage=usage_of(facts, children) if it.run.remote is None else None,
        evidence=evidence,
        diagnosis=_diagnosis(it, outcome, children),
        calls=facts,
        children=children,
        later=later_of(it),
        request_id=intent.request_id,
    )


def _diagnosis(it: Cancelling, outcome: Outcome, children: tuple[CancelReceipt, ...]) -> Optional[Diagnosis]:
    """Why it has come to no better: the first reason; where there are others in the scope, its evidence names them."""
    if outcome not in (Outcome.UNCONFIRMED, Outcome.FINISHED_FIRST):
        return None
    found: list[tuple[str, Diagnosis]] = []
    if it._chase is not None and it._chase.outcome is outcome:
        found.append((it.run.name, diagnose(evidence_on(it._chase))))
    found += [(each.run, each.diagnosis) for each in children if each.outcome is outcome and each.diagnosis]
    if outcome is Outcome.UNCONFIRMED:
        inside = [call for call in it.calls.values() if not call.left.is_set()]
        blocked = inside or ([] if found else list(it.calls.values()))
        found += [(f"{call.method} {call.path}", diagnose(evidence_of(call))) for call in blocked[:1]]
    if not found:
        return None
    first = found[0][1]
    others = [f"Besides, {name!r}: {each.klass}." for name, each in found[1:] if each.klass is not first.klass]
    return replace(first, evidence=(*first.evidence, *others)) if others else first


def _outcome(it: Cancelling, children: tuple[CancelReceipt, ...], level: Optional[Level]) -> tuple[Outcome, Evidence]:
    outcomes = {machine.outcome for machine in it._machines.values()} | {child.outcome for child in children}
    if it.run.remote is not None:
        outcomes.add(None if it._chase is None else it._chase.outcome)
    if Outcome.UNCONFIRMED in outcomes:
        return Outcome.UNCONFIRMED, Evidence.NONE
    if outcomes & set(_UNANSWERED) or not it._begun:
        return _so_far(it, children, level), Evidence.NONE
    if it._chase is not None:
        return it._chase.outcome or Outcome.SENT, it._chase.machine.evidence
    # It rests on the weakest of what was read. What has happened in this process is certain.
    found = _read(children)
    evidence = min(found, key=lambda each: each.rank, default=Evidence.TRANSPORT)
    too_late = outcomes == {Outcome.FINISHED_FIRST} and (it.run.anonymous or bool(found))
    if it.finished_before or too_late:
        return Outcome.FINISHED_FIRST, evidence
    return Outcome.CANCELLED, evidence


def _so_far(it: Cancelling, children: tuple[CancelReceipt, ...], level: Optional[Level]) -> Outcome:
    """How far it has come, short of an outcome: as far as the least of what it holds.

    A call of this process has taken the cancel on when its fence is closed. A remote run has when its server says so.
    """
    found = {child.outcome for child in children if child.outcome in _UNANSWERED}
    if it.run.remote is not None:
        chase = it._chase
        left = chase is not None and (chase.left.is_set() or bool(chase.cancels))
        found.add((chase.outcome if chase is not None and left else None) or Outcome.PARKED)
    if level is Level.SENT:
        found.add(Outcome.SENT)
    return next((each for each in (Outcome.PARKED, Outcome.SENT) if each in found), Outcome.ACCEPTED)


def _read(children: tuple[CancelReceipt, ...]) -> list[Evidence]:
    """The evidence that was read of remote runs, in the scopes inside as well."""
    return [
        evidence for each in children for evidence in (_read(each.children) if each.kind is None else [each.evidence])
    ]
