"""The names of runs that others can say, and how quickly one is found among many."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Any

import pytest
from worlds import until

import deadstop
from deadstop import UsageError
from deadstop.fleet.member import Member
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Opening, Process
from deadstop.ledger.queries import queries
from deadstop.runs.checks import LONGEST
from deadstop.runs.keeper import Keeper
from deadstop.testing import FakeOpenAI

BY = Process("somebody:1:1", "somebody", 1)
DENSE = "".join(hashlib.sha256(bytes([each])).hexdigest() for each in range(16))[:LONGEST]  # an index can't pack it
BAD = {"a NUL": "a\0b", "a surrogate": "a\ud800", "too long": "n" * (LONGEST + 1), "too many bytes": "ü" * LONGEST}


@pytest.mark.parametrize("name", list(BAD.values()), ids=list(BAD))
def test_a_name_that_no_ledger_can_keep_is_refused(name: str) -> None:
    """It is told when the run is opened, with a ledger or without: nobody else could cancel it by that name."""
    client = deadstop.OpenAI(api_key="k", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UsageError):
        client.runs.open(name)
    assert client.runs.list() == []
    client.close()


@pytest.mark.parametrize("name", list(BAD.values()), ids=list(BAD))
def test_a_cancel_by_such_a_name_is_refused(name: str, server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """No run can have it, so nothing waits for one in the record."""
    with deadstop.OpenAI(api_key="k", base_url=server.base_url, runs_url=url) as client:
        with pytest.raises(UsageError):
            client.runs.cancel(name)
        assert client.runs._registry.keeper.member.writes.drain(20.0)
    assert ledger.runs(ended=True) == []


@pytest.mark.parametrize(
    "name", [DENSE, "ü" * (LONGEST // 2), "\u00e4 \U0001f6d1 \\ ' \" % _ \x01"], ids=["dense", "long", "odd"]
)
def test_every_other_name_is_reached_from_elsewhere(name: str, server: FakeOpenAI, url: str) -> None:
    """The longest ones, too: another process's cancel by that name comes to its run."""
    other = Member(url)
    holder = deadstop.OpenAI(api_key="k", base_url=server.base_url, runs_url=url)
    canceller = deadstop.OpenAI(api_key="k", base_url=server.base_url)
    registry = canceller.runs._registry
    registry.keeper = Keeper(registry, other)
    keeper: Any = holder.runs._registry.keeper
    assert other.writes.drain(20.0)
    assert keeper.member.writes.drain(20.0)
    with holder.runs.open(name) as run:
        assert canceller.runs.cancel(name, timeout=15.0).outcome == "cancelled"
        until(lambda: run.cancelled, "the cancel at its run")
    other.close()
    holder.close()
    canceller.close()


@pytest.mark.parametrize("query", ["list_lives", "list_outcomes_of_run", "run_by_epoch"])
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_is_asked_of_one_name_reads_no_other_run(query: str, url: str, ledger: Ledger) -> None:
    """Each client asks for the runs of open cancels again and again: by an index, however many runs there are."""
    values = {"run": "chat-42", "epoch": 1, "ended": True, "since": 0.0, "limit": 10}
    connection = sqlite3.connect(url[len("sqlite:///") :])
    try:
        plan = [each[3] for each in connection.execute(f"EXPLAIN QUERY PLAN {queries('sqlite')[query]}", values)]
    finally:
        connection.close()
    assert plan
    assert [each for each in plan if each.startswith("SCAN")] == []


def test_a_life_is_found_among_hundreds(url: str, ledger: Ledger) -> None:
    """By its name and epoch, though the listings give the newest ones alone."""
    for epoch in range(1, 151):
        made = ledger.open_run(Opening("chat-42", BY, float(epoch)))
        assert made.epoch == epoch
        ledger.close_run("chat-42", epoch, now=float(epoch))
    found = ledger.life("chat-42", 1)
    assert found is not None
    assert (found.epoch, found.opened_at, found.by) == (1, 1.0, BY)
    assert ledger.life("chat-42", 151) is None
    assert ledger.life("chat-43", 1) is None
