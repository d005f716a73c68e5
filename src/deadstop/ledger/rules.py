"""The rules of a cancel, as steps of a transaction in which nobody else writes about the run."""

from __future__ import annotations

import json
import math
from typing import Any, Optional

from deadstop.core.diagnosis import CAUSES, EXPLANATIONS
from deadstop.core.model import CancelReceipt, Cause, Diagnosis, DiagnosisClass, Evidence, Level, Outcome
from deadstop.errors import UnknownRunError
from deadstop.ledger import rows
from deadstop.ledger.engine import Announcement, Transaction
from deadstop.ledger.facts import IntentRecord, Opening, Recorded, RunRecord

REFINEMENTS = (Outcome.CANCELLED, Outcome.FINISHED_FIRST)


def sure(row: Optional[Any]) -> Any:
    if row is None:
        raise AssertionError("a row that was just written is not there")
    return row


def intent(tx: Transaction, run: str, epoch: int) -> Optional[IntentRecord]:
    row = tx.one("intent", run=run, epoch=epoch) if epoch else tx.one("newest_intent", run=run)
    if row is None:
        return None
    return rows.intent_record(row, tx.all("cancels", run=run, epoch=row["epoch"]) if row["cancels"] > 1 else [])


def known_run(tx: Transaction, run: str, epoch: int) -> Any:
    row = tx.one("run_by_epoch", run=run, epoch=epoch)
    if row is None:
        raise UnknownRunError(f"There is no run {run!r} with epoch {epoch} on record.", run=run)
    return row


def known_intent(tx: Transaction, run: str, epoch: int) -> Any:
    tx.lock(run)
    row = tx.one("intent", run=run, epoch=epoch)
    if row is None:
        raise UnknownRunError(f"There is no cancel of run {run!r}, epoch {epoch}, on record.", run=run)
    return row


def new_epoch(tx: Transaction, run: str) -> int:
    last: int = sure(tx.one("last_epoch", run=run))["epoch"]
    return last + 1


def open_alone(tx: Transaction, opening: Opening, values: dict[str, Any]) -> RunRecord:
    tx.lock(values["run"])
    return open_run(tx, opening, values)


def open_run(tx: Transaction, opening: Opening, values: dict[str, Any]) -> RunRecord:
    """The run's record: the one it has, the tombstone that waited for it, or a new one."""
    run, owner, now = values["run"], values["owner"], opening.opened_at
    if tx.one("run_of_owner", run=run, owner=owner) is None:
        unborn = tx.one("unborn_run", run=run)
        if unborn is not None and welcome(tx, unborn, opening):
            tx.do("adopt_run", **values, epoch=unborn["epoch"])
            tx.do("unpark", run=run, epoch=unborn["epoch"])
        else:
            if unborn is not None:
                expire(tx, run, unborn["epoch"], now)
            tx.do("insert_run", **values, epoch=new_epoch(tx, run))
    row = sure(tx.one("run_of_owner", run=run, owner=owner))
    return rows.run_record(row, intent(tx, run, row["epoch"]))


def welcome(tx: Transaction, unborn: Any, opening: Opening) -> bool:
    """Whether that tombstone cancels this run. One by an actor who may not is put on record as refused."""
    if unborn["parked_until"] <= opening.opened_at:
        return False
    allowed = opening.cancellers
    if allowed is None or unborn["cause"] != Cause.USER:
        return True
    where = {"run": unborn["run"], "epoch": unborn["epoch"]}
    cancels = tx.all("cancels", **where)
    welcome = any(each["cause"] != Cause.USER or each["actor"] in allowed for each in cancels)
    if not welcome:
        for each in cancels:
            refuse(tx, where, each)
    return welcome


def refuse(tx: Transaction, where: dict[str, Any], cancel: Any) -> None:
    if tx.one("refusal_by_request", run=where["run"], request_id=cancel["request_id"]) is not None:
        return
    kept = ("actor", "reason", "request_id", "owner", "host", "pid", "at")
    tx.do("insert_refusal", **where, **{each: cancel[each] for each in kept})


def target(tx: Transaction, run: str, epoch: int, now: float) -> Optional[Any]:
    """The run, or the tombstone, that a cancel by name or by epoch means. None: nobody's open run is on record."""
    if epoch:
        return known_run(tx, run, epoch)
    live = tx.one("live_run", run=run)
    if live is not None:
        return live
    unborn = tx.one("unborn_run", run=run)
    if unborn is not None:
        if unborn["parked_until"] > now:
            return unborn
        expire(tx, run, unborn["epoch"], now)
    return None


def bury(tx: Transaction, where: dict[str, Any], values: dict[str, Any], park: Optional[float], now: float) -> Recorded:
    """A new tombstone."""
    if park is None or park <= now:
        raise UnknownRunError(f"There is no live run {where['run']!r} on record.", run=where["run"])
    told = announced(where, values)
    tx.insert(("insert_unborn", "insert_intent", "insert_cancel"), told, **where, **values, parked_until=park)
    return fresh(where, values, park)


def fresh(where: dict[str, Any], values: dict[str, Any], park: Optional[float]) -> Recorded:
    """What was just written, without a look."""
    unset = {"outcome": None, "left_at": None}
    return Recorded(rows.intent_record({**where, **values, "parked_until": park, **unset}, []), first=True)


def announced(where: dict[str, Any], values: dict[str, Any]) -> Announcement:
    left = values["deadline"] - values["at"]
    return Announcement(where["run"], values["request_id"], values["owner"], left if math.isfinite(left) else None)


def join(tx: Transaction, where: dict[str, Any], values: dict[str, Any], park: Optional[float]) -> Recorded:
    """Write the intent, or join the one that is there: never weaker (I11), the first cause kept (I10)."""
    before = tx.one("intent", **where)
    if before is None:
        tx.insert(("insert_intent", "insert_cancel"), announced(where, values), **where, **values, parked_until=park)
        return fresh(where, values, park)
    level = max(Level(before["level"]), Level(values["level"]), key=lambda each: each.rank)
    deadline = min(before["deadline"], values["deadline"])
    tx.do("strengthen_intent", **where, level=level.value, deadline=deadline)
    if park is not None and before["parked_until"] is not None and park > before["parked_until"]:
        tx.do("park_longer", **where, parked_until=park)
    tx.insert(("insert_cancel",), announced(where, values), **where, **values)
    return Recorded(sure(intent(tx, where["run"], where["epoch"])), first=False)


def retract(tx: Transaction, run: str, epoch: int, request_id: str) -> bool:
    """Take a cancel out of a tombstone, and the tombstone with the only one. False if it is none any more."""
    tx.lock(run)
    row = tx.one("run_by_epoch", run=run, epoch=epoch)
    if row is not None and row["opened_at"] is not None:
        return False
    for query in ("retract_tombstone", "retract_cancel"):
        tx.do(query, run=run, epoch=epoch, request_id=request_id)
    return True


def admit(
    tx: Transaction,
    at: dict[str, Any],
    owned: dict[str, Any],
    now: float,
    per_second: float,
    lasts: float,
    deadline: float,
) -> Optional[float]:
    """When a request may be sent to that server; the next one may a while later. None: not before the deadline."""
    when = now
    if per_second:
        lane = tx.one("lane", server=at["server"])
        when = max(now, lane["free_at"]) if lane is not None else now
        if when >= deadline:
            return None
        tx.do("put_lane", server=at["server"], free_at=when + 1.0 / per_second)
    if lasts:
        tx.do("expire_permits", **at)
        tx.do("insert_permit", **owned, server=at["server"], until=when + lasts)
    return when


def expire(tx: Transaction, run: str, epoch: int, now: float) -> None:
    """A tombstone that nobody took up, or may take up, is over."""
    intent = rows.intent(sure(tx.one("intent", run=run, epoch=epoch)))
    receipt = CancelReceipt(
        run,
        Outcome.PARKED,
        reason=intent.reason,
        actor=intent.actor,
        cause=intent.cause,
        level=intent.level,
        elapsed=max(0.0, now - intent.at),
        request_id=intent.request_id,
    )
    tx.do("insert_outcome", **result(receipt), run=run, epoch=epoch, revision=0, owner="ledger", at=float(now))
    tx.do("unpark", run=run, epoch=epoch)
    tx.do("close_run", run=run, epoch=epoch, now=float(now))


def result(receipt: CancelReceipt) -> dict[str, Any]:
    """The columns of an outcome."""
    outcome, diagnosis = Outcome(receipt.outcome), receipt.diagnosis
    return {
        "outcome": outcome.value,
        "status": rows.maybe(receipt.status),
        "evidence": Evidence(receipt.evidence).value,
        "diagnosis": diagnosis.klass.value if diagnosis and outcome is Outcome.UNCONFIRMED else None,
        "receipt": json.dumps(receipt.to_dict()),
    }


def unknown() -> Diagnosis:
    found = EXPLANATIONS[DiagnosisClass.UNKNOWN]
    return Diagnosis(DiagnosisClass.UNKNOWN, found.summary, (), CAUSES[found.number].cause, found.fix)


def refines(before: Any, outcome: Outcome) -> bool:
    return before["revision"] == 0 and before["outcome"] == Outcome.UNCONFIRMED and outcome in REFINEMENTS
