"""The ledger over named queries, the same for every home. The rules are here; the queries are in ``sql/``."""

from __future__ import annotations

import os
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

from deadstop.core.model import Attempt, CancelReceipt, Cause, Intent, Outcome
from deadstop.errors import CancelRefusedError, UnknownRunError, UsageError
from deadstop.ledger import rows, rules
from deadstop.ledger.base import Claim, Ledger
from deadstop.ledger.engine import Engine, Transaction
from deadstop.ledger.facts import (
    AttemptRecord,
    Flight,
    IntentRecord,
    Opening,
    OutcomeRecord,
    Process,
    Recorded,
    Refusal,
    RemoteRun,
    Revival,
    RunRecord,
    Settled,
)

__all__ = ["Book"]

ENDS = (Outcome.CANCELLED, Outcome.FINISHED_FIRST, Outcome.UNCONFIRMED, Outcome.PARKED)


class Book(Ledger):
    """See ``Ledger`` for what each method promises."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.url = engine.url
        self._entered: dict[str, tuple[int, dict[str, Any]]] = {}  # by owner, with the process that did it
        engine.begun = self._enter_again

    # Processes.

    def enter(self, process: Process, *, now: float) -> None:
        values = {**rows.by(process), "address": rows.maybe(process.address), "now": float(now)}
        self.engine.write(lambda tx: tx.do("enter_process", **values))
        self._entered[process.owner] = (os.getpid(), values)

    def _enter_again(self, tx: Transaction) -> None:
        """In what may be another home than before: nothing is put in there by a process that is not known."""
        mine = [values for pid, values in list(self._entered.values()) if pid == os.getpid()]
        if sum(tx.do("enter_again", **values) for values in mine):
            self.lost()

    def refresh(self) -> None:
        self.engine.refresh()

    def leave(self, owner: str, *, now: float) -> None:
        def job(tx: Transaction) -> None:
            tx.do("leave_process", owner=rows.clean(owner), now=float(now))
            tx.do("end_permits_of", owner=rows.clean(owner))
            tx.do("end_flights_of", owner=rows.clean(owner))

        self.engine.write(job)
        self._entered.pop(owner, None)

    def processes(self) -> list[Process]:
        return self.engine.read(lambda tx: [rows.process(each) for each in tx.all("list_processes")])

    def has_left(self, owner: str) -> bool:
        return self.engine.read(lambda tx: tx.one("left_process", owner=rows.clean(owner))) is not None

    # Runs.

    def open_run(self, opening: Opening) -> RunRecord:
        values = rows.opened(opening)
        return self.engine.write(lambda tx: rules.open_alone(tx, opening, values))

    def take_tombstone(self, opening: Opening) -> Optional[IntentRecord]:
        values = rows.opened(opening)
        found = self.engine.read(lambda tx: tx.one("unborn_run", run=values["run"]))
        if found is None or found["parked_until"] <= opening.opened_at:
            return None  # what nearly every run finds, without a write
        return self.engine.write(lambda tx: rules.open_alone(tx, opening, values)).intent

    def close_run(self, run: str, epoch: int, *, now: float) -> None:
        self.engine.write(lambda tx: tx.do("close_run", run=rows.name(run), epoch=epoch, now=float(now)))

    def record_remote(self, remote: RemoteRun, opening: Optional[Opening] = None, *, now: float) -> RemoteRun:
        key, run = rows.remote_key(remote), rows.name(opening.run if opening else remote.run)
        values = None if opening is None else rows.opened(opening)
        noted = {"status": rows.maybe(remote.status), "terminal": bool(remote.terminal), "now": float(now)}

        def job(tx: Transaction) -> RemoteRun:
            tx.lock(run)
            if opening is not None and values is not None:
                epoch = rules.open_run(tx, opening, values).epoch
            else:
                epoch = rules.known_run(tx, run, remote.epoch)["epoch"]
            made = {"owner": rows.clean(remote.owner), "created_at": float(remote.created_at)}
            new = tx.do("insert_remote", **key, **noted, **made, run=run, epoch=epoch)
            if not new and (remote.status is not None or remote.terminal):
                tx.do("remote_status", **key, **noted)
            return rows.remote(rules.sure(tx.one("remote_by_id", **key)))

        return self.engine.write(job)

    def remote_status(self, remote: RemoteRun, status: Optional[str], *, terminal: bool, now: float) -> bool:
        values = {"status": rows.maybe(status), "terminal": bool(terminal), "now": float(now)}
        key = rows.remote_key(remote)
        return self.engine.write(lambda tx: tx.do("remote_status", **key, **values)) > 0

    def record_revival(self, remote: RemoteRun, status: Optional[str], *, by: str, now: float) -> None:
        key, status = rows.remote_key(remote), rows.maybe(status)

        def job(tx: Transaction) -> None:
            known = tx.one("remote_by_id", **key)
            if known is None or tx.one("intent", run=known["run"], epoch=known["epoch"]) is None:
                raise UnknownRunError(f"{remote.ref} is no remote run of a cancelled run.", run=remote.run)
            tx.do("revive_remote", **key, status=status, terminal=False, now=float(now))
            where = {"run": known["run"], "epoch": known["epoch"]}
            tx.do("insert_revival", **key, **where, status=status, owner=rows.clean(by), now=float(now))

        self.engine.write(job)

    # Cancels.

    def record_intent(
        self,
        intent: Intent,
        by: Process,
        *,
        opening: Optional[Opening] = None,
        park_until: Optional[float] = None,
        now: float,
    ) -> Recorded:
        run = rows.name(intent.run)
        if opening is not None and rows.name(opening.run) != run:
            raise UsageError(f"The cancel is of run {intent.run!r}, and the opening of run {opening.run!r}.")
        # Made up here, once: should the transaction be run again, it finds what it had written.
        values = {"request_id": rows.maybe(intent.request_id) or uuid.uuid4().hex, **rows.asked(intent, by)}
        opened = None if opening is None else rows.opened(opening)

        def job(tx: Transaction) -> Optional[Recorded]:
            tx.lock(run)
            known = rules.sure(tx.one("standing", run=run, request_id=values["request_id"]))
            if known["repeated"]:
                seen = rules.sure(tx.one("cancel_by_request", run=run, request_id=values["request_id"]))
                record = rules.sure(rules.intent(tx, run, seen["epoch"]))
                return Recorded(record, seen["number"] == 0, repeated=True)
            if opening is not None and opened is not None:
                rules.open_run(tx, opening, opened)
                found = rules.sure(tx.one("run_of_owner", run=run, owner=opened["owner"]))
            elif intent.epoch or known["live"] or known["unborn"]:
                found = rules.target(tx, run, intent.epoch, now)
            else:
                found = None  # as nearly always: what nobody cancels is not on record
            if found is None:
                return rules.bury(tx, {"run": run, "epoch": known["last"] + 1}, values, park_until, now)
            where = {"run": run, "epoch": found["epoch"]}
            allowed = rows.allowed(found)
            if values["cause"] == Cause.USER and allowed is not None and values["actor"] not in allowed:
                rules.refuse(tx, where, values)
                return None
            return rules.join(tx, where, values, None if found["opened_at"] is not None else park_until)

        recorded = self.engine.write(job)
        if recorded is None:  # after the commit, so that the refusal is on record
            who = intent.actor or "An actor without a name"
            raise CancelRefusedError(f"{who} may not cancel run {run!r}.", run=run, actor=intent.actor)
        return recorded

    def intent(self, run: str, epoch: int = 0) -> Optional[IntentRecord]:
        return self.engine.read(lambda tx: rules.intent(tx, rows.name(run), epoch))

    def give_up(self, run: str, epoch: int, *, by: str, now: float) -> bool:
        values = {"run": rows.name(run), "epoch": epoch, "owner": rows.clean(by), "now": float(now)}
        return self.engine.write(lambda tx: tx.do("give_up", **values)) > 0

    def retract(self, run: str, epoch: int, request_id: str) -> bool:
        name, request = rows.name(run), rows.clean(request_id)
        return self.engine.write(lambda tx: rules.retract(tx, name, epoch, request))

    def open_intents(self, *, since: float = 0.0, limit: int = 1000) -> list[IntentRecord]:
        return self._intents("open_intents", since=float(since), limit=limit)

    def parked(self, *, now: float, limit: int = 1000) -> list[IntentRecord]:
        return self._intents("parked_intents", now=float(now), limit=limit)

    def _intents(self, query: str, **values: object) -> list[IntentRecord]:
        def job(tx: Transaction) -> list[IntentRecord]:
            found, cancels = tx.all(query, **values), defaultdict[tuple[str, int], list[Any]](list)
            for each in tx.all(f"cancels_of_{query}", **values) if found else ():
                cancels[each["run"], each["epoch"]].append(each)
            return [rows.intent_record(each, cancels[each["run"], each["epoch"]]) for each in found]

        return self.engine.read(job)

    def begin_attempt(self, run: str, epoch: int, target: str = "", *, by: str, now: float) -> int:
        name = rows.name(run)
        where = {"run": name, "epoch": epoch, "target": rows.clean(target)}

        def job(tx: Transaction) -> int:
            rules.known_intent(tx, name, epoch)
            tx.do("begin_attempt", **where, owner=rows.clean(by), now=float(now))
            number: int = rules.sure(tx.one("last_attempt", **where))["number"]
            return number

        return self.engine.write(job)

    def record_attempt(self, run: str, epoch: int, attempt: Attempt, target: str = "", *, by: str) -> None:
        values = {**vars(attempt), "error": rows.maybe(attempt.error), "request_id": rows.maybe(attempt.request_id)}
        name = rows.name(run)
        where = {"run": name, "epoch": epoch}

        def job(tx: Transaction) -> None:
            rules.known_intent(tx, name, epoch)
            tx.do("record_attempt", **where, **values, target=rows.clean(target), owner=rows.clean(by))

        self.engine.write(job)

    def attempts(self, run: str, epoch: int) -> list[AttemptRecord]:
        where = {"run": rows.name(run), "epoch": epoch}
        return self.engine.read(lambda tx: [rows.attempt(each) for each in tx.all("attempts", **where)])

    def settle(self, receipt: CancelReceipt, epoch: int, *, by: str, now: float) -> Settled:
        outcome, run = Outcome(receipt.outcome), rows.name(receipt.run)
        if outcome not in ENDS:
            raise UsageError(f"{outcome.value!r} is not the end of a cancel, so there is nothing to settle.")
        if outcome is Outcome.UNCONFIRMED and receipt.diagnosis is None:
            receipt = replace(receipt, diagnosis=rules.unknown())
        values = {**rules.result(receipt), "owner": rows.clean(by), "at": float(now)}

        def job(tx: Transaction) -> Settled:
            rules.known_intent(tx, run, epoch)
            before = tx.one("last_outcome", run=run, epoch=epoch)
            if before is not None and not rules.refines(before, outcome):
                return Settled(rows.outcome_record(before), won=False)
            tx.do("insert_outcome", **values, run=run, epoch=epoch, revision=0 if before is None else 1)
            return Settled(rows.outcome_record(rules.sure(tx.one("last_outcome", run=run, epoch=epoch))), won=True)

        return self.engine.write(job)

    def claim(self, run: str) -> Optional[Claim]:
        return self.engine.claim(rows.name(run))

    # Single flight, and limits.

    def take_off(self, flights: Sequence[Flight], *, by: str, now: float) -> set[str]:
        owned = {"owner": rows.clean(by), "now": float(now)}
        asked = [
            {**rows.remote_key(each.remote), **owned, "token": rows.clean(each.token), "lasts": float(each.lasts)}
            for each in flights
            if not each.again or not self._aloft(each, now)  # what nearly all find who wait, without a write
        ]
        asked.sort(key=lambda each: (each["base_url"], each["kind"], each["ids"]))  # or two would wait for each other

        def job(tx: Transaction) -> set[str]:
            return {each["token"] for each in asked if tx.do("take_off", **each)}

        return self.engine.write(job) if asked else set()

    def _aloft(self, flight: Flight, now: float) -> bool:
        where = {**rows.remote_key(flight.remote), "now": float(now)}
        return self.engine.read(lambda tx: tx.one("aloft", **where)) is not None

    def land(self, tokens: Sequence[str]) -> None:
        def job(tx: Transaction) -> None:
            for each in tokens:
                tx.do("land", token=rows.clean(each))

        self.engine.write(job)

    def admit(
        self,
        server: str,
        permit: str,
        *,
        at_once: int,
        per_second: float,
        lasts: float,
        by: str,
        deadline: float,
        now: float,
    ) -> Optional[float]:
        at = {"server": rows.bare(server), "now": float(now)}
        owned = {"permit": rows.clean(permit), "owner": rows.clean(by)}

        def full(tx: Transaction) -> bool:
            return bool(at_once) and rules.sure(tx.one("permits_out", **at))["number"] >= at_once

        def job(tx: Transaction) -> Optional[float]:
            tx.lock(f"server {at['server']}")
            if full(tx):
                return None
            return rules.admit(tx, at, owned, float(now), per_second, lasts if at_once else 0.0, deadline)

        if self.engine.read(full):
            return None  # what nearly all find who have to wait, without a write
        return self.engine.write(job)

    def dismiss(self, permit: str) -> None:
        self.engine.write(lambda tx: tx.do("end_permit", permit=rows.clean(permit)))

    # Listings.

    def runs(self, run: Optional[str] = None, *, ended: bool = False, limit: int = 100) -> list[RunRecord]:
        query, named = ("list_runs", {}) if run is None else ("list_lives", {"run": rows.clean(run)})
        values = {**named, "ended": ended, "limit": limit}
        return self.engine.read(lambda tx: [rows.run_record(each) for each in tx.all(query, **values)])

    def life(self, run: str, epoch: int) -> Optional[RunRecord]:
        where = {"run": rows.name(run), "epoch": epoch}
        found = self.engine.read(lambda tx: tx.one("run_by_epoch", **where))
        return None if found is None else rows.run_record(found)

    def remotes(self, run: str, epoch: int) -> list[RemoteRun]:
        where = {"run": rows.name(run), "epoch": epoch}
        return self.engine.read(lambda tx: [rows.remote(each) for each in tx.all("remotes_of_run", **where)])

    def remote(self, base_url: str, kind: str, ids: tuple[str, ...]) -> Optional[RemoteRun]:
        where = {"base_url": rows.bare(base_url), "kind": rows.clean(kind), "ids": rows.clean("/".join(ids))}
        found = self.engine.read(lambda tx: tx.one("remote_by_id", **where))
        return None if found is None else rows.remote(found)

    def remotes_named(self, kind: str, ids: tuple[str, ...]) -> list[RemoteRun]:
        where = {"kind": rows.clean(kind), "ids": rows.clean("/".join(ids))}
        return self.engine.read(lambda tx: [rows.remote(each) for each in tx.all("remotes_named", **where)])

    def active_remotes(self, *, limit: int = 1000) -> list[RemoteRun]:
        return self.engine.read(lambda tx: [rows.remote(each) for each in tx.all("active_remotes", limit=limit)])

    def orphans(self, *, silent: float, now: float, limit: int = 1000) -> list[RemoteRun]:
        values = {"silent": float(silent), "now": float(now), "limit": limit}
        return self.engine.read(lambda tx: [rows.remote(each) for each in tx.all("orphans", **values)])

    def receipts(self, run: Optional[str] = None, *, since: float = 0.0, limit: int = 100) -> list[OutcomeRecord]:
        query, named = ("list_outcomes", {}) if run is None else ("list_outcomes_of_run", {"run": rows.clean(run)})
        values = {**named, "since": float(since), "limit": limit}
        return self.engine.read(lambda tx: [rows.outcome_record(each) for each in tx.all(query, **values)])

    def refusals(self, run: Optional[str] = None, *, limit: int = 100) -> list[Refusal]:
        values = {"run": rows.maybe(run), "limit": limit}
        return self.engine.read(lambda tx: [rows.refusal(each) for each in tx.all("list_refusals", **values)])

    def revivals(self, run: str, epoch: int) -> list[Revival]:
        where = {"run": rows.name(run), "epoch": epoch}
        return self.engine.read(lambda tx: [rows.revival(each) for each in tx.all("list_revivals", **where)])

    # Keeping house.

    def sweep(self, *, before: float, now: float, limit: int = 500) -> int:
        def job(tx: Transaction) -> int:
            expired = tx.all("expired_tombstones", now=float(now), limit=limit)
            for each in expired:
                rules.expire(tx, each["run"], each["epoch"], now)
            swept = sum(
                tx.do(f"sweep_{what}", before=float(before), limit=limit)
                for what in ("runs", "refusals", "flights", "processes")  # in this order: a run holds on to its process
            )
            return len(expired) + swept

        return self.engine.write(job)

    def close(self) -> None:
        self.engine.close()
