"""The receipt that a cancellation adds up to: of its calls, its remote run and its children."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Optional

from deadstop.core.diagnosis import diagnose
from deadstop.core.model import CancelReceipt, Delivered, Evidence, Level, Outcome
from deadstop.runs.draining import usage_of
from deadstop.runs.receipts import evidence_of, remote_facts

if TYPE_CHECKING:
    from deadstop.runs.cancelling import Cancelling

__all__ = ["later_of", "sum_up"]

_UNANSWERED = (None, Outcome.SENT, Outcome.ACCEPTED, Outcome.PARKED)


def later_of(it: Cancelling) -> tuple[tuple[Optional[str], Optional[str]], ...]:
    """Who else wanted it, and why."""
    return tuple((intent.reason, intent.actor) for intent in list(it._late))


def sum_up(it: Cancelling, level: Optional[Level] = None) -> CancelReceipt:
    """The receipt as it would be now. With a `level`, short of confirmed, for whoever waits for no more."""
    intent = it.intent
    facts = tuple(call.facts() for call in it.calls.values())
    children = it._receipts(level)
    outcome, evidence = _outcome(it, children, level)
    diagnosis = None
    if outcome in (Outcome.UNCONFIRMED, Outcome.FINISHED_FIRST):
        diagnosis = next((child.diagnosis for child in children if child.diagnosis), None)
        if it._chase is not None and it._chase.outcome is outcome:
            diagnosis = diagnose(it._chase.facts())
        blocked = [call for call in it.calls.values() if not call.left.is_set()] or list(it.calls.values())
        if diagnosis is None and blocked and outcome is Outcome.UNCONFIRMED:
            diagnosis = diagnose(evidence_of(blocked[0]))
    every = (*facts, *(fact for child in children for fact in child.calls))
    return CancelReceipt(
        run=it.run.name,
        outcome=outcome,
        reason=intent.reason,
        actor=intent.actor,
        cause=intent.cause,
        level=level or intent.level,
        **remote_facts(it.run.remote, it._chase),
        elapsed=(it._settled_at or time.monotonic()) - intent.at,
        delivered=Delivered(
            it.run.chunks + sum(fact.chunks for fact in every),
            it.run.characters + sum(fact.characters for fact in every),
        ),
        usage=usage_of(facts, children) if it.run.remote is None else None,
        evidence=evidence,
        diagnosis=diagnosis,
        calls=facts,
        children=children,
        later=later_of(it),
        request_id=intent.request_id,
    )


def _outcome(it: Cancelling, children: tuple[CancelReceipt, ...], level: Optional[Level]) -> tuple[Outcome, Evidence]:
    outcomes = {machine.outcome for machine in it._machines.values()} | {child.outcome for child in children}
    if it.run.remote is not None:
        outcomes.add(None if it._chase is None else it._chase.outcome)
    if Outcome.UNCONFIRMED in outcomes:
        return Outcome.UNCONFIRMED, Evidence.NONE
    if outcomes & set(_UNANSWERED) or not it._begun:
        if outcomes == {Outcome.PARKED}:
            return Outcome.PARKED, Evidence.NONE
        return (Outcome.SENT if level is Level.SENT else Outcome.ACCEPTED), Evidence.NONE
    if it._chase is not None:
        return it._chase.outcome or Outcome.SENT, it._chase.machine.evidence
    found = [child.evidence for child in children if child.kind is not None]
    evidence = found[0] if found else Evidence.TRANSPORT
    too_late = outcomes == {Outcome.FINISHED_FIRST} and (it.run.anonymous or bool(found))
    if it.finished_before or too_late:
        return Outcome.FINISHED_FIRST, evidence
    return Outcome.CANCELLED, evidence
