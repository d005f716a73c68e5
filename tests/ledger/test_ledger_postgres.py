"""The home in Postgres: what is its own. Against a real server."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ledger_homes import BASE, HERE, NOW, OF_OLD, cancel, opening, remote
from ledger_postgres import programs, server
from nursery import popen

from deadstop.errors import LedgerSchemaError, LedgerUnavailable, LedgerUrlError
from deadstop.ledger import connect
from deadstop.ledger.book import Book
from deadstop.ledger.leases import LEASE
from deadstop.ledger.postgres import PAUSE, Postgres, _close_all
from deadstop.ledger.queries import Migration, migrations

psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(programs() is None, reason="no Postgres comes as a package for this platform")

CHILD = str(Path(__file__).parent / "ledger_child.py")
STEPS = migrations("postgres")
NEXT = Migration(len(STEPS) + 1, "CREATE TABLE deadstop_next (x INTEGER); INSERT INTO deadstop_next VALUES (1);")


@pytest.fixture
def url() -> str:
    return server().schema()


def child(what: str, url: str, *more: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return popen([CHILD, what, url, *more], text=True, **pipes)


def answers(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    return out.splitlines()


@contextmanager
def raw(url: str) -> Iterator[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def test_a_cancel_is_announced_with_its_commit(url: str) -> None:
    """Who listens hears of it once the intent can be read; one too long for that is an empty word."""
    with raw(url) as listener, connect(url) as ledger:
        listener.execute("LISTEN deadstop")
        cancel(ledger, opened=opening(), request_id="r1", deadline=NOW + 5)
        cancel(ledger, "long" * 3000, opened=opening("long" * 3000))
        heard = [each.payload for each in listener.notifies(timeout=10, stop_after=2)]
    assert json.loads(heard[0]) == {"run": "chat", "request_id": "r1", "by": HERE.owner, "left": 5.0}
    assert heard[1:] == [""]


def test_a_claim_is_the_fleet_s(url: str) -> None:
    """While one process has it no other gets it, but for other runs; its death frees it in time."""
    first = child("claim", url, "chat")
    assert first.stdout is not None
    assert first.stdout.readline() == "claimed\n"
    with connect(url) as ledger:
        assert ledger.claim("chat") is None
        other = ledger.claim("other")
        assert other is not None
        first.kill()
        first.communicate(timeout=10)
        began = time.monotonic()
        mine = until(lambda: ledger.claim("chat"))
        assert time.monotonic() - began < LEASE + 1.5
        assert mine.held
        assert ledger.claim("chat") is None


def until(look: Any) -> Any:
    """What ``look`` finds at last."""
    for _ in range(1000):
        found = look()
        if found:
            return found
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen in 10 seconds")


def test_a_claim_is_kept_up_and_outlives_its_connections(url: str) -> None:
    """It is renewed for as long as it is wanted; a restart of the server, which ends every session, ends no claim."""
    with connect(url) as ledger, connect(url) as other:
        claim = ledger.claim("chat")
        assert claim is not None
        server().tell("restart")
        until_ = time.monotonic() + LEASE + 1.0
        while time.monotonic() < until_:
            assert claim.held
            assert 0.0 < claim.left < LEASE
            assert other.claim("chat") is None
            threading.Event().wait(0.1)
        claim.release()
        assert not claim.held
        assert until(lambda: other.claim("chat")).held


def test_a_claim_that_can_t_be_renewed_ends_for_its_holder_first(url: str) -> None:
    """While the server is down the holder stops; when it is up again another one gets it, and never both."""
    with connect(url, patience=2) as ledger, connect(url) as other:
        claim = ledger.claim("chat")
        assert claim is not None
        server().tell("down")
        try:
            until(lambda: not claim.held)
        finally:
            server().tell("up")
        assert until(lambda: other.claim("chat")).held
        assert not claim.held
        claim.release()
        assert ledger.claim("chat") is None  # what was lost is not given back for its new holder


def test_a_restart_of_the_server_loses_nothing(url: str) -> None:
    """Down: a clear error, without the password. Up again: the next call works, and all is there."""
    with connect(url + "&password=hunter2") as ledger:
        cancel(ledger, opened=opening())
        server().tell("restart")
        assert not cancel(ledger).first
        server().tell("down")
        try:
            with pytest.raises(LedgerUnavailable) as raised:
                cancel(ledger)
            with pytest.raises(LedgerUnavailable):
                connect(url)
        finally:
            server().tell("up")
        assert "hunter2" not in str(raised.value) + repr(vars(raised.value))
        found = ledger.intent("chat")
        assert found is not None
        assert len(found.later) == 1


def test_a_lock_that_somebody_keeps_is_an_error_in_time(url: str) -> None:
    """The patience bounds the wait, and the connection goes on working."""
    with connect(url, patience=0.2) as ledger, raw(url) as other:
        cancel(ledger, opened=opening())
        with other.transaction():
            other.execute("LOCK deadstop_cancels IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(LedgerUnavailable, match="timeout"):
                cancel(ledger)
        assert not cancel(ledger).first


def test_a_process_that_is_stopped_in_a_transaction_gives_way(url: str) -> None:
    """It keeps no lock that others need to take over its work; once it goes on, what it was about is done."""
    inside, go_on = threading.Event(), threading.Event()
    tries: list[int] = []

    def job(tx: Any) -> str:
        tx.lock("chat")
        tries.append(1)
        if len(tries) == 1:
            inside.set()
            assert go_on.wait(20.0)  # as one that was sent SIGSTOP
        tx.one("last_epoch", run="chat")
        return "done"

    with closing(Postgres(url)) as stopped, connect(url) as other, ThreadPoolExecutor() as pool:
        for _ in range(2):  # in a session that was used before, and in a new one
            for each in (tries, inside, go_on):
                each.clear()
            late = pool.submit(stopped.write, job)
            assert inside.wait(20.0)
            began = time.monotonic()
            cancel(other, "chat", park_until=NOW + 60)
            assert time.monotonic() - began < PAUSE + 1.0
            go_on.set()
            assert late.result(20.0) == "done"
            assert len(tries) == 2
            stopped._drop_idle()


def test_a_foreign_schema_is_left_alone(url: str) -> None:
    """Tables of ours that are not ours: a clear error, and nothing is made."""
    with raw(url) as other:
        other.execute("CREATE TABLE deadstop_runs (x INTEGER)")
        with pytest.raises(LedgerSchemaError, match="not ours"):
            connect(url)
        assert other.execute("SELECT to_regclass('deadstop_schema')").fetchone() == (None,)


def test_a_newer_schema_stops_an_older_library(url: str) -> None:
    """It says so, and to upgrade, before it writes."""
    Book(Postgres(url, steps=(*STEPS, NEXT))).close()
    with pytest.raises(LedgerSchemaError, match=r"version \d+.*upgrade"):
        connect(url)


@pytest.mark.parametrize("version", range(len(STEPS) + 1))
def test_every_earlier_version_comes_up(url: str, version: int) -> None:
    """From nothing and from each version to the next one, with what was recorded, by four that start at once."""
    if version:
        Postgres(url, steps=STEPS[:version]).close()
        with raw(url) as old:
            old.execute(OF_OLD)
    together, made = threading.Barrier(4), []

    def start() -> None:
        together.wait(10)
        made.append(Book(Postgres(url, steps=(*STEPS, NEXT))))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert len(made) == 4
    assert [(each.intent.reason, each.left) for each in made[0].open_intents()] == [("stop", False)] * bool(version)
    for each in made:
        each.close()
    with raw(url) as found:
        assert found.execute("SELECT count(*) FROM deadstop_next").fetchone() == (1,)


def test_a_remote_run_that_two_record_at_once_is_the_first_one_s(url: str) -> None:
    """By the names of two runs, as when its scope is cancelled here and its address there: they share no lock."""
    found = list[str]()

    def record() -> None:
        found.append(ledger.record_remote(remote(), opening(), now=NOW).run)

    with connect(url) as ledger, raw(url) as other:
        ledger.open_run(opening("other"))
        with other.transaction():
            other.execute(
                "INSERT INTO deadstop_remotes (base_url, kind, ids, run, epoch, owner, created_at, terminal)"
                f" VALUES ('{BASE}', 'response', 'resp_1', 'other', 1, 'there:200:1', {NOW}, false)"
            )
            second = threading.Thread(target=record)
            second.start()
            while not other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                assert second.is_alive()
                time.sleep(0.01)
        second.join(20)
    assert found == ["other"]


def test_two_processes_of_sixteen_threads(url: str) -> None:
    """Nothing is lost, each run has one first cancel, and of a shared one every cancel is on record."""
    lines = [line for each in [child("many", url, "a"), child("many", url, "b")] for line in answers(each)]
    assert sorted(line for line in lines if line != "done") == [f"first shared-{count}" for count in range(5)]
    with connect(url) as ledger:
        assert len(ledger.open_intents()) == 2 * 16 * 5
        for count in range(5):
            shared = ledger.intent(f"shared-{count}")
            assert shared is not None
            assert len({shared.intent.reason, *(each.reason for each in shared.later)}) == 32


def test_a_kill_loses_nothing_that_was_acknowledged(url: str) -> None:
    """I3: a process that is killed at a random moment leaves all that it was told is recorded."""
    counts = {what: int(count) for what, count in map(str.split, answers(child("killed", url, "10")))}
    assert set(counts) == {"intent", "remote", "attempt", "outcome"}


def test_a_fork_goes_on_with_connections_of_its_own(url: str) -> None:
    """Parent and child both write after it, and the parent's claim is not the child's."""
    assert sorted(answers(child("fork", url))) == ["child True", "claimed True", "parent 0"]


def test_a_bad_address_is_an_error_without_its_password() -> None:
    """Neither the message nor the facts give it away, wherever it stands in the URL."""
    for bad in ("postgresql://u:hunter2@[host/x", "postgresql://u@host/x?password=hunter2&nonsense=1"):
        with pytest.raises(LedgerUrlError) as raised:
            connect(bad)
        assert "hunter2" not in str(raised.value) + repr(vars(raised.value))
    with pytest.raises(LedgerUnavailable) as down:
        connect("postgresql://u:hunter2@127.0.0.1:1/x", patience=2)
    assert down.value.url == "postgresql://u@127.0.0.1:1/x"
    assert "hunter2" not in str(down.value)


def test_no_connection_is_closed_that_a_thread_could_still_borrow() -> None:
    """At the end of the process threads may go on: an idle connection is taken out of their reach first."""
    idle: list[Any] = []
    reachable: list[bool] = []

    class Connection:
        def close(self) -> None:
            reachable.append(self in idle)

    idle += [Connection(), Connection()]
    _close_all(idle)
    assert reachable == [False, False]


def test_a_closed_ledger_says_so(url: str) -> None:
    """Closing again is fine; using it is an error."""
    ledger = connect(url)
    ledger.close()
    ledger.close()
    for use in (ledger.runs, lambda: cancel(ledger, now=NOW), lambda: ledger.claim("x")):
        with pytest.raises(LedgerUnavailable, match="closed"):
            use()
