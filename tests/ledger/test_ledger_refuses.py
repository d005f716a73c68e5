"""The database itself refuses what can't be, whoever writes it."""

from __future__ import annotations

from typing import Any

import pytest
from ledger_homes import HERE, NOW, cancel, home, ledger, opening, receipt, remote

from deadstop.core.model import Outcome
from deadstop.errors import LedgerError, LedgerUnavailable
from deadstop.ledger.base import Ledger
from deadstop.ledger.book import Book

__all__ = ["home", "ledger"]

RECEIPT = "'{}', 'x', 1"

IMPOSSIBLE = {
    "a second intent of one epoch": """INSERT INTO deadstop_intents
        (run, epoch, cause, owner, host, pid, level, deadline, request_id, at)
        SELECT run, epoch, cause, owner, host, pid, level, deadline, 'other', at FROM deadstop_intents""",
    "an intent without a run": """INSERT INTO deadstop_intents
        (run, epoch, cause, owner, host, pid, level, deadline, request_id, at)
        VALUES ('nobody', 1, 'user', 'x', 'x', 1, 'sent', 1, 'x', 1)""",
    "a request id twice": """INSERT INTO deadstop_cancels
        (run, request_id, epoch, number, cause, owner, host, pid, level, deadline, at)
        VALUES ('chat', 'a', 1, 7, 'user', 'x', 'x', 1, 'sent', 1, 1)""",
    "a second first cancel": """INSERT INTO deadstop_cancels
        (run, request_id, epoch, number, cause, owner, host, pid, level, deadline, at)
        VALUES ('chat', 'b', 1, 0, 'user', 'x', 'x', 1, 'sent', 1, 1)""",
    "another first cause": "UPDATE deadstop_intents SET reason = 'mine'",
    "another actor": "UPDATE deadstop_intents SET actor = 'mallory'",
    "a weaker level": "UPDATE deadstop_intents SET level = 'sent'",
    "a later deadline": "UPDATE deadstop_intents SET deadline = deadline + 1",
    "a word for a cause that is none": """INSERT INTO deadstop_cancels
        (run, request_id, epoch, number, cause, owner, host, pid, level, deadline, at)
        VALUES ('chat', 'b', 1, 7, 'whim', 'x', 'x', 1, 'sent', 1, 1)""",
    "an outcome that is no end": f"""INSERT INTO deadstop_outcomes
        (run, epoch, revision, outcome, evidence, receipt, owner, at)
        VALUES ('chat', 1, 0, 'accepted', 'none', {RECEIPT})""",
    "unconfirmed without a class": f"""INSERT INTO deadstop_outcomes
        (run, epoch, revision, outcome, evidence, receipt, owner, at)
        VALUES ('chat', 1, 0, 'unconfirmed', 'none', {RECEIPT})""",
    "a class that is none": f"""INSERT INTO deadstop_outcomes
        (run, epoch, revision, outcome, evidence, diagnosis, receipt, owner, at)
        VALUES ('chat', 1, 0, 'unconfirmed', 'none', 'bad_luck', {RECEIPT})""",
    "a refinement of nothing": f"""INSERT INTO deadstop_outcomes
        (run, epoch, revision, outcome, evidence, receipt, owner, at)
        VALUES ('chat', 1, 1, 'cancelled', 'status', {RECEIPT})""",
    "a second outcome": f"""INSERT INTO deadstop_outcomes
        (run, epoch, revision, outcome, evidence, receipt, owner, at)
        VALUES ('done', 1, 0, 'cancelled', 'status', {RECEIPT})""",
    "a refinement of an end": f"""INSERT INTO deadstop_outcomes
        (run, epoch, revision, outcome, evidence, receipt, owner, at)
        VALUES ('done', 1, 1, 'finished_first', 'status', {RECEIPT})""",
    "a second refinement": f"""INSERT INTO deadstop_outcomes
        (run, epoch, revision, outcome, evidence, receipt, owner, at)
        VALUES ('refined', 1, 2, 'cancelled', 'status', {RECEIPT})""",
    "a changed outcome": "UPDATE deadstop_outcomes SET outcome = 'cancelled' WHERE run = 'done'",
    "two open records of one owner": """INSERT INTO deadstop_runs
        (run, epoch, owner, host, pid, opened_at, orphans, orphan_grace)
        VALUES ('chat', 7, 'here:100:1', 'x', 1, 1, 'leave', 0)""",
    "two tombstones of one name": """INSERT INTO deadstop_runs (run, epoch, orphans, orphan_grace)
        VALUES ('parked', 7, 'leave', 0)""",
    "a run without a name": "INSERT INTO deadstop_runs (run, epoch, orphans, orphan_grace) VALUES ('', 1, 'leave', 0)",
    "an orphan policy that is none": "UPDATE deadstop_runs SET orphans = 'adopt'",
    "one remote run twice": """INSERT INTO deadstop_remotes
        (base_url, kind, ids, run, epoch, owner, created_at, terminal)
        SELECT base_url, kind, ids, 'done', 1, owner, created_at, terminal FROM deadstop_remotes""",
    "a remote run without an id": "UPDATE deadstop_remotes SET ids = ''",
    "an attempt before the first": "UPDATE deadstop_attempts SET number = 0",
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_state_that_can_t_be_is_refused(ledger: Ledger, what: str) -> None:
    """The write fails, and what was there is as it was."""
    assert isinstance(ledger, Book)
    ledger.record_remote(remote(), opening(), now=NOW)
    cancel(ledger, request_id="a", reason="stop", deadline=NOW)
    ledger.begin_attempt("chat", 1, by=HERE.owner, now=NOW)
    for run, outcomes in (("done", [Outcome.CANCELLED]), ("refined", [Outcome.UNCONFIRMED, Outcome.FINISHED_FIRST])):
        cancel(ledger, run, opened=opening(run), deadline=NOW)
        for each in outcomes:
            ledger.settle(receipt(each, run), 1, by=HERE.owner, now=NOW)
    cancel(ledger, "parked", park_until=NOW + 60, deadline=NOW)
    before = facts(ledger)

    def job(tx: Any) -> None:
        tx.connection.execute(IMPOSSIBLE[what])

    with pytest.raises(LedgerError, match="refused a state that can't be") as refused:
        ledger.engine.write(job)
    assert not isinstance(refused.value, LedgerUnavailable)
    assert facts(ledger) == before


def facts(ledger: Ledger) -> list[Any]:
    return [
        ledger.runs(ended=True),
        [ledger.intent(run) for run in ("chat", "done", "refined", "parked")],
        ledger.receipts(),
        ledger.active_remotes(),
        ledger.attempts("chat", 1),
    ]
