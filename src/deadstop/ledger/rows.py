"""Between rows and facts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Optional, TypeVar
from urllib.parse import urlsplit, urlunsplit

from deadstop.core.model import (
    Attempt,
    CallFacts,
    CancelReceipt,
    Cause,
    Delivered,
    Diagnosis,
    DiagnosisClass,
    Evidence,
    Intent,
    Interrupted,
    Level,
    Orphan,
    Outcome,
    Phase,
    ServerWork,
    Streamed,
)
from deadstop.errors import UsageError
from deadstop.ledger.facts import (
    AttemptRecord,
    IntentRecord,
    Opening,
    Orphans,
    OutcomeRecord,
    Process,
    Refusal,
    RemoteRun,
    Revival,
    RunRecord,
)

Row = Mapping[str, Any]
T = TypeVar("T")


def clean(text: str) -> str:
    """Text that every home can keep: UTF-8, without NUL."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


def maybe(text: Optional[str]) -> Optional[str]:
    return None if text is None else clean(text)


def name(run: Any) -> str:
    """A run's name as it is kept. Raises UsageError."""
    if not isinstance(run, str) or not run:
        raise UsageError(f"A run's name is text, and not empty; this is {run!r}.")
    return clean(run)


def bare(base_url: str) -> str:
    """The base URL without what may be a secret: user, password, query, fragment."""
    parts = urlsplit(base_url)
    return clean(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", "")))


def finite(seconds: float) -> float:
    """Seconds that order: NaN, which no database orders as another, counts as for ever."""
    return math.inf if math.isnan(seconds) else float(seconds)


def by(process: Process) -> dict[str, Any]:
    return {"owner": clean(process.owner), "host": clean(process.host), "pid": process.pid}


def opened(opening: Opening) -> dict[str, Any]:
    """The columns of a run."""
    allowed, metadata = opening.cancellers, opening.metadata
    return {
        "run": name(opening.run),
        **by(opening.by),
        "opened_at": float(opening.opened_at),
        "cancellers": None if allowed is None else json.dumps(list(allowed)),
        "orphans": Orphans(opening.orphans).value,
        "orphan_grace": float(opening.orphan_grace),
        "metadata": None if metadata is None else json.dumps(dict(metadata)),
    }


def asked(intent: Intent, process: Process) -> dict[str, Any]:
    """The columns of a cancel."""
    return {
        "cause": Cause(intent.cause).value,
        "reason": maybe(intent.reason),
        "actor": maybe(intent.actor),
        **by(process),
        "level": Level(intent.level).value,
        "deadline": finite(intent.deadline),
        "at": float(intent.at),
    }


def remote_key(remote: RemoteRun) -> dict[str, Any]:
    """The address of a remote run. Raises UsageError for one that is not exact (I9)."""
    if not remote.kind or not remote.ids or any(not each or "/" in each for each in remote.ids):
        raise UsageError(
            f"A remote run has a kind and ids without slashes, none of them empty; this is {remote.ref!r}."
        )
    return {"base_url": bare(remote.base_url), "kind": clean(remote.kind), "ids": clean("/".join(remote.ids))}


def process(row: Row) -> Process:
    return Process(row["owner"], row["host"], row["pid"], row["address"], row["entered_at"], row["seen_at"])


def _by(row: Row) -> Process:
    return Process(row["owner"], row["host"], row["pid"])


def intent(row: Row) -> Intent:
    return Intent(
        row["run"],
        row["epoch"],
        Cause(row["cause"]),
        row["reason"],
        row["actor"],
        row["deadline"],
        Level(row["level"]),
        row["request_id"],
        row["at"],
    )


def intent_record(row: Row, cancels: list[Any]) -> IntentRecord:
    later = tuple(intent(each) for each in cancels if each["number"] > 0)
    left = row["left_at"] is not None
    return IntentRecord(intent(row), _by(row), row["parked_until"], _outcome(row["outcome"]), later, left)


def _outcome(word: Optional[str]) -> Optional[Outcome]:
    return None if word is None else Outcome(word)


def allowed(row: Row) -> Optional[tuple[str, ...]]:
    return None if row["cancellers"] is None else tuple(json.loads(row["cancellers"]))


def run_record(row: Row, of: Optional[IntentRecord] = None) -> RunRecord:
    """A run, from a row of ``deadstop_runs`` or of ``list_runs``."""
    known = set(row.keys())
    counts: dict[str, Any] = {
        each: row[each] for each in ("remotes", "active", "cancelled_at", "parked_until") if each in known
    }
    if of is not None:
        counts.update(cancelled_at=of.intent.at, parked_until=of.parked_until)
    outcome = _outcome(row["outcome"]) if "outcome" in known else (of.outcome if of else None)
    return RunRecord(
        run=row["run"],
        epoch=row["epoch"],
        by=None if row["owner"] is None else _by(row),
        opened_at=row["opened_at"],
        closed_at=row["closed_at"],
        cancellers=allowed(row),
        orphans=Orphans(row["orphans"]),
        orphan_grace=row["orphan_grace"],
        metadata=None if row["metadata"] is None else json.loads(row["metadata"]),
        outcome=outcome,
        intent=of,
        **counts,
    )


def remote(row: Row) -> RemoteRun:
    return RemoteRun(
        kind=row["kind"],
        ids=tuple(row["ids"].split("/")),
        base_url=row["base_url"],
        run=row["run"],
        epoch=row["epoch"],
        owner=row["owner"],
        created_at=row["created_at"],
        status=row["status"],
        terminal=bool(row["terminal"]),
        status_at=row["status_at"],
    )


def attempt(row: Row) -> AttemptRecord:
    return AttemptRecord(**{each.name: row[each.name] for each in fields(AttemptRecord)})


def outcome_record(row: Row) -> OutcomeRecord:
    found = receipt(json.loads(row["receipt"]))
    return OutcomeRecord(row["run"], row["epoch"], found, row["owner"], row["at"], row["revision"])


def refusal(row: Row) -> Refusal:
    return Refusal(row["run"], row["epoch"], row["actor"], row["reason"], row["request_id"], _by(row), row["at"])


def revival(row: Row) -> Revival:
    ref = f"{row['kind']}:{row['ids']}"
    return Revival(row["run"], row["epoch"], row["base_url"], ref, row["status"], row["owner"], row["at"])


# A receipt, from its JSON. Fields that this version does not know are left out: a newer library may have written it.


def _known(cls: type[T], data: Row, **special: Any) -> T:
    names = {each.name for each in fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: special.get(key, value) for key, value in data.items() if key in names})


def _call(data: Row) -> CallFacts:
    facts = {
        "phase": Phase(data["phase"]),
        "interrupted": Interrupted(data["interrupted"]),
        "streamed": Streamed(data["streamed"]),
        "server_work": ServerWork(data["server_work"]),
        "attempt": data["attempt"] and _known(Attempt, data["attempt"]),
    }
    return _known(CallFacts, data, **facts)


def _diagnosis(data: Row) -> Diagnosis:
    return _known(Diagnosis, data, klass=DiagnosisClass(data["klass"]), evidence=tuple(data["evidence"]))


def receipt(data: Row) -> CancelReceipt:
    """The receipt whose ``to_dict()`` this is."""
    facts = {
        "outcome": Outcome(data["outcome"]),
        "cause": Cause(data["cause"]),
        "level": Level(data["level"]),
        "attempts": tuple(_known(Attempt, each) for each in data["attempts"]),
        "reads": tuple(_known(Attempt, each) for each in data.get("reads", ())),
        "orphan_suspect": (suspect := data.get("orphan_suspect")) and _known(Orphan, suspect),
        "revivals": tuple((at, word) for at, word in data.get("revivals", ())),
        "delivered": _known(Delivered, data["delivered"]),
        "evidence": Evidence(data["evidence"]),
        "diagnosis": data["diagnosis"] and _diagnosis(data["diagnosis"]),
        "calls": tuple(map(_call, data["calls"])),
        "children": tuple(map(receipt, data["children"])),
        "later": tuple((reason, actor) for reason, actor in data["later"]),
    }
    return _known(CancelReceipt, data, **facts)
