"""Every home of the ledger, for the tests that hold for all of them; and facts to put in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from ledger_postgres import programs, server

from deadstop.core.model import CancelReceipt, Diagnosis, DiagnosisClass, Evidence, Intent, Outcome
from deadstop.ledger import connect
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Opening, Process, RemoteRun

HERE = Process("here:100:1", "here", 100, "/run/here.sock")
THERE = Process("there:200:1", "there", 200)
NOW = 1_700_000_000.0
BASE = "https://api.example.com/v1"

OF_OLD = """
INSERT INTO deadstop_runs (run, epoch, owner, host, pid, opened_at, orphans, orphan_grace)
VALUES ('chat', 1, 'here:100:1', 'here', 100, 1700000000, 'leave', 0);
INSERT INTO deadstop_intents (run, epoch, cause, reason, owner, host, pid, level, deadline, request_id, at)
VALUES ('chat', 1, 'user', 'stop', 'here:100:1', 'here', 100, 'confirmed', 1700000009, 'r', 1700000000);
INSERT INTO deadstop_cancels (run, request_id, epoch, number, cause, reason, owner, host, pid, level, deadline, at)
VALUES ('chat', 'r', 1, 0, 'user', 'stop', 'here:100:1', 'here', 100, 'confirmed', 1700000009, 1700000000);
"""
"""A cancel, as the first version of the schema put it on record. This library's queries are those of the last one."""


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger."""
    if request.param == "memory":
        return "memory:"
    if request.param == "postgres":
        if programs() is None:
            pytest.skip("no Postgres comes as a package for this platform")
        return server().schema()
    return f"sqlite:///{tmp_path}/state/ledger.db"


@pytest.fixture
def ledger(home: str) -> Iterator[Ledger]:
    """An empty ledger."""
    with connect(home) as made:
        yield made


def opening(run: str = "chat", by: Process = HERE, at: float = NOW, **more: Any) -> Opening:
    return Opening(run, by, at, **more)


def cancel(ledger: Ledger, run: str = "chat", *, opened: Optional[Opening] = None, **facts: Any) -> Any:
    """Record an intent. Without ``opened`` by name, as another process does it."""
    by, park, now = facts.pop("by", HERE), facts.pop("park_until", None), facts.pop("now", NOW)
    intent = Intent(run, **{"at": now, **facts})
    return ledger.record_intent(intent, by, opening=opened, park_until=park, now=now)


def remote(run: str = "chat", id: str = "resp_1", **more: Any) -> RemoteRun:
    facts = {"kind": "response", "ids": (id,), "base_url": BASE, "owner": HERE.owner, "created_at": NOW, "epoch": 1}
    return RemoteRun(run=run, **{**facts, **more})


def receipt(outcome: Outcome = Outcome.CANCELLED, run: str = "chat", **more: Any) -> CancelReceipt:
    facts: dict[str, Any] = {"evidence": Evidence.STATUS}
    if outcome is Outcome.UNCONFIRMED:
        facts = {"diagnosis": Diagnosis(DiagnosisClass.SERVER_SLOW, "It was slow.", ("503",), "Load.", "Wait.")}
    return CancelReceipt(run, outcome, **{**facts, **more})
