"""A ledger that breaks while a client uses it: the disk is full, the file read-only, or another program's."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import pytest
from worlds import until

import deadstop
from deadstop import CancelPolicy, RunCancelledError
from deadstop.errors import LedgerError, LedgerSchemaError, LedgerUnavailable
from deadstop.ledger.base import Ledger
from deadstop.ledger.book import Book
from deadstop.ledger.sqlite import Sqlite
from deadstop.testing import FakeOpenAI

JSON = Dict[str, object]  # noqa: UP006
BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}


@contextmanager
def full(engine: Sqlite) -> Iterator[None]:
    """The system takes no more than some bytes for any file, as when a quota is used up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(engine: Sqlite) -> Iterator[None]:
    """Every connection of this process is one that may not write: root may write to any file."""
    connect = engine._connect

    def reading() -> sqlite3.Connection:
        made = connect()
        made.execute("PRAGMA query_only = ON")
        return made

    engine._connect = reading  # type: ignore[method-assign]
    engine._shut("writer")
    try:
        yield
    finally:
        engine._connect = connect  # type: ignore[method-assign]
        engine._shut("writer")


@contextmanager
def foreign(engine: Sqlite) -> Iterator[None]:
    """The file is moved away, and another program's is in its place."""
    path = Path(str(engine.path))
    aside = path.with_name("aside")
    aside.mkdir()
    # As a whole: SQLite's other files belong to it.
    engine.before_fork()
    moved = [each for each in path.parent.iterdir() if each.name.startswith(path.name)]
    for each in moved:
        each.rename(aside / each.name)
    engine.after_fork(child=False)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE diary (day TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    try:
        yield
        assert path.read_bytes() == before
    finally:
        for each in aside.iterdir():
            os.replace(each, path.parent / each.name)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # Postgres: test_fleet_postgres.py
@pytest.mark.parametrize(
    ("breaking", "kind", "says"),
    [
        (full, LedgerUnavailable, "disk I/O error. Look at the file and its directory."),
        (read_only, LedgerUnavailable, "readonly database. Make the file and its directory writable for this user."),
        (foreign, LedgerSchemaError, "no ledger of deadstop: give another path. Nothing was written to it."),
    ],
    ids=["full", "read only", "foreign"],
)
def test_a_ledger_that_breaks_stops_no_cancel_and_loses_nothing(
    world: Any, url: str, server: FakeOpenAI, breaking: Any, kind: type[LedgerError], says: str
) -> None:
    """Runs of this process are cancelled all the same, and their receipts say what is wrong; a cancel that needs the
    record raises it; what had been acknowledged is there; and once it is mended, all is on record again."""
    client = world.client(server.base_url, max_retries=0, runs_url=url)
    client.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
    member = client.runs._registry.keeper.member
    ledger: Ledger = member.ledger
    assert isinstance(ledger, Book)
    assert isinstance(ledger.engine, Sqlite)
    begin = (world.call, client), (client.post, "/responses")
    for name in ("before", "meanwhile"):
        world.run(*begin[0], name, *begin[1], body=BACKGROUND, cast_to=JSON)
    assert world.run(client.runs.cancel, "before", reason="acknowledged").outcome == "cancelled"
    call = world.start(world.create, client, "call")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    assert member.writes.drain(20.0)
    with breaking(ledger.engine):
        for name in ("call", "meanwhile"):
            receipt = world.run(client.runs.cancel, name)
            assert receipt.outcome == "cancelled"
            assert says in receipt.note
        assert isinstance(call.failure(), RunCancelledError)
        assert [each.truth for each in server.runs] == ["cancelled"] * 2
        with pytest.raises(kind) as raised:
            world.run(client.runs.cancel, "of another process")
        assert says in str(raised.value)
        assert member.writes.drain(20.0)
        if breaking is foreign:
            with pytest.raises(kind):
                deadstop.OpenAI(api_key="k", runs_url=url.replace("/ledger.db", "/./ledger.db"))  # a member of its own
    wanted = ledger.intent("before")
    assert wanted is not None
    assert (wanted.intent.reason, wanted.outcome) == ("acknowledged", "cancelled")
    world.run(*begin[0], "after", *begin[1], body=BACKGROUND, cast_to=JSON)
    receipt = world.run(client.runs.cancel, "after")
    assert (receipt.outcome, "record" in (receipt.note or "")) == ("cancelled", False)
    assert ledger.intent("after") is not None
    world.close(client)
