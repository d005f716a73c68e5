"""The home in a file: its modes, its failures, its processes."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from ledger_homes import HERE, NOW, OF_OLD, THERE, cancel, opening, receipt
from nursery import popen

from deadstop.core.model import Outcome
from deadstop.errors import LedgerSchemaError, LedgerUnavailable
from deadstop.ledger import connect
from deadstop.ledger.book import Book
from deadstop.ledger.queries import Migration, migrations
from deadstop.ledger.sqlite import Sqlite

CHILD = str(Path(__file__).parent / "ledger_child.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


def child(what: str, path: Path, *more: str, **how: Any) -> subprocess.Popen[str]:
    command = [CHILD, what, f"sqlite:///{path}", *more]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return popen(command, text=True, **{**pipes, **how})


def answers(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    return out.splitlines()


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def test_only_its_user_can_read_it(path: Path) -> None:
    """The file and those beside it have mode 0600, their directory 0700, whatever the umask."""
    before = os.umask(0)
    try:
        with connect(f"sqlite:///{path}") as ledger:
            cancel(ledger, opened=opening())
            claim = ledger.claim("chat")
            assert claim is not None
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
            claim.release()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys([f"ledger.db{each}" for each in ("", "-claims", "-gate", "-shm", "-wal")], 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_commit_is_synced(path: Path) -> None:
    """WAL, a sync at every commit, foreign keys on."""
    with connect(f"sqlite:///{path}") as ledger:
        assert isinstance(ledger, Book)
        assert isinstance(ledger.engine, Sqlite)
        writer = ledger.engine._writer
        assert writer is not None
        settings = ("journal_mode", "synchronous", "foreign_keys")
        found = [writer.execute(f"PRAGMA {each}").fetchone()[0] for each in settings]
    assert found == ["wal", 2, 1]


def test_what_was_acknowledged_is_there_after_reopening(path: Path) -> None:
    """I3: an intent outlives the ledger object that recorded it."""
    with connect(f"sqlite:///{path}") as ledger:
        recorded = cancel(ledger, opened=opening(), reason="stop")
    with connect(f"sqlite:///{path}") as ledger:
        assert ledger.open_intents() == [recorded.intent]


def test_a_full_disk_is_an_error_and_loses_nothing(path: Path) -> None:
    """A clear error; what was acknowledged before is there, and it goes on once there is room."""
    acknowledged = []
    with connect(f"sqlite:///{path}") as ledger:
        assert isinstance(ledger, Book)
        assert isinstance(ledger.engine, Sqlite)
        writer = ledger.engine._writer
        assert writer is not None
        writer.execute("PRAGMA max_page_count = 60")

        def fill() -> None:
            for number in range(10_000):
                cancel(ledger, f"run-{number}", opened=opening(f"run-{number}"), reason="x" * 500)
                acknowledged.append(f"run-{number}")

        with pytest.raises(LedgerUnavailable, match=r"full\. Make room on its disk\.$"):
            fill()
        assert len(acknowledged) > 10
        cancel(ledger, "later", opened=opening("later"), now=NOW + 1)
    with connect(f"sqlite:///{path}") as ledger:
        assert [each.run for each in ledger.open_intents()] == [*sorted(acknowledged), "later"]


def test_a_write_that_the_system_refuses_is_an_error_and_loses_nothing(path: Path) -> None:
    """The same where the operating system fails the write, as under a quota."""
    lines = answers(child("limited", path, "1000000"))
    (error,) = (line for line in lines if line.startswith("error"))
    assert error.startswith("error LedgerUnavailable The ledger sqlite:///")
    acknowledged = {line.partition(" ")[2] for line in lines if line.startswith("intent")}
    assert len(acknowledged) > 10
    with connect(f"sqlite:///{path}") as ledger:
        assert {each.run for each in ledger.open_intents()} == acknowledged | {"before"}


def test_a_locked_file_is_an_error_in_time(path: Path) -> None:
    """Another process that keeps it locked: a clear error after the patience is spent; then it goes on."""
    with connect(f"sqlite:///{path}", patience=0.05) as ledger, raw(path) as other:
        cancel(ledger, opened=opening())
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="locked"):
            cancel(ledger)
        assert ledger.intent("chat") is not None  # reading goes on
        other.execute("ROLLBACK")
        assert not cancel(ledger).first


@pytest.mark.parametrize(("mode", "where"), [(0o755, 0o644), (0o777, 0o444), (0o700, 0o600)])
def test_a_place_that_can_t_be_written_is_an_error(mode: int, where: int) -> None:
    """A read-only file, a read-only directory, one that can't be entered: the error says what to do."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "state" / "ledger.db"
        with connect(f"sqlite:///{path}") as ledger:
            cancel(ledger, opened=opening())
        if os.getuid() != 0:
            mode, where = mode & 0o555, where & 0o444
        os.chmod(directory, 0o755)
        os.chmod(path.parent, mode)
        os.chmod(path, where)
        (line,) = answers(child("nobody", path))
        os.chmod(path.parent, 0o700)
        assert line.startswith("LedgerUnavailable The ledger sqlite:///")
        assert line.endswith("Make the file and its directory writable for this user.")


@pytest.mark.parametrize("content", ["text", "database", "numbered"])
def test_a_foreign_file_is_left_alone(tmp_path: Path, content: str) -> None:
    """A text file, another program's database: a clear error, and not one byte of it is changed."""
    path = tmp_path / "other.db"
    if content == "text":
        path.write_text("Dear diary, " * 1000)
    else:
        with raw(path) as other:
            if content == "database":
                other.execute("CREATE TABLE deadstop_runs (x)")
            else:
                other.execute("PRAGMA user_version = 1")
    before = path.read_bytes()
    with pytest.raises(LedgerSchemaError):
        connect(f"sqlite:///{path}")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["other.db"]


def test_a_newer_schema_stops_an_older_library(path: Path) -> None:
    """It says so, and to upgrade, before it writes."""
    connect(f"sqlite:///{path}").close()
    with raw(path) as other:
        other.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(LedgerSchemaError, match=r"version 99.*upgrade"):
        connect(f"sqlite:///{path}")
    assert path.read_bytes() == before


NEXT = Migration(
    len(migrations("sqlite")) + 1, "CREATE TABLE deadstop_next (x);\nINSERT INTO deadstop_next VALUES (1);\n"
)


@pytest.mark.parametrize("version", range(len(migrations("sqlite")) + 1))
def test_every_earlier_version_comes_up(path: Path, version: int) -> None:
    """From each version to the one after this, with what was recorded, by two that start at once."""
    steps = migrations("sqlite")
    Sqlite(path, steps=steps[:version]).close()
    if version:
        with raw(path) as old:
            old.executescript(OF_OLD)
    together, made = threading.Barrier(4), []

    def start() -> None:
        together.wait(10)
        made.append(Book(Sqlite(path, steps=(*steps, NEXT))))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert len(made) == 4
    assert [(each.intent.reason, each.left) for each in made[0].open_intents()] == [("stop", False)] * bool(version)
    for each in made:
        each.close()
    with raw(path) as found:
        assert found.execute("SELECT count(*) FROM deadstop_next").fetchone() == (1,)
        assert found.execute("PRAGMA user_version").fetchone() == (NEXT.number,)


def test_a_migration_that_fails_leaves_the_old_version(path: Path) -> None:
    """All of it or nothing of it."""
    connect(f"sqlite:///{path}").close()
    broken = NEXT._replace(script="CREATE TABLE deadstop_next (x);\nINSERT INTO nowhere VALUES (1);\n")
    with pytest.raises(LedgerUnavailable, match="nowhere"):
        Sqlite(path, steps=(*migrations("sqlite"), broken))
    with connect(f"sqlite:///{path}") as ledger:
        assert ledger.runs() == []


def test_processes_that_start_at_once_share_one_file(path: Path) -> None:
    """Four processes open a file that is not there yet: each succeeds."""
    starting = [child("opened", path) for _ in range(4)]
    assert [answers(each) for each in starting] == [["open"]] * 4


def test_a_schema_that_is_made_between_two_looks_is_no_stranger_s(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file is, is read in one piece: who makes the schema in the middle of it has to wait."""
    plain, once = sqlite3.connect, [None]

    class Interrupted(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "PRAGMA user_version" and once:
                once.pop()
                with suppress(LedgerUnavailable):
                    Sqlite(path, patience=0.1).close()
            return super().execute(sql, *values)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **how: plain(*args, factory=Interrupted, **how))
    Sqlite(path).close()
    assert not once


def test_two_processes_of_sixteen_threads(path: Path) -> None:
    """Nothing is lost, each run has one first cancel, and of a shared one every cancel is on record."""
    lines = [line for each in [child("many", path, "a"), child("many", path, "b")] for line in answers(each)]
    assert sorted(line for line in lines if line != "done") == [f"first shared-{count}" for count in range(5)]
    with connect(f"sqlite:///{path}") as ledger:
        assert len(ledger.open_intents()) == 2 * 16 * 5
        for count in range(5):
            shared = ledger.intent(f"shared-{count}")
            assert shared is not None
            assert len({shared.intent.reason, *(each.reason for each in shared.later)}) == 32


KILLS = 40


def test_a_kill_loses_nothing_that_was_acknowledged(path: Path) -> None:
    """I3: after each of many kills at random moments, all that was said to be recorded is there, and it opens again."""
    counts = {what: int(count) for what, count in map(str.split, answers(child("killed", path, str(KILLS))))}
    assert set(counts) == {"intent", "remote", "attempt", "outcome"}
    assert min(counts.values()) > KILLS
    assert integrity(path) == "ok"


def test_a_fork_goes_on_with_connections_of_its_own(path: Path) -> None:
    """Parent and child both write after it, and a claim of the parent does not live on in the child."""
    lines = answers(child("fork", path))
    assert sorted(lines) == ["child True", "claimed True", "parent 0"]
    with connect(f"sqlite:///{path}") as ledger:
        assert {"before", "after", "child"} <= {each.run for each in ledger.open_intents(limit=100_000)}
        assert integrity(path) == "ok"


def integrity(path: Path) -> str:
    with raw(path) as found:
        word: str = found.execute("PRAGMA integrity_check").fetchone()[0]
        return word


def test_one_process_claims_at_a_time(path: Path) -> None:
    """While it lives no other process gets any claim of that file; its death frees them at once."""
    first = child("claim", path, "a")
    assert first.stdout is not None
    assert first.stdout.readline() == "claimed\n"
    with connect(f"sqlite:///{path}") as ledger:
        assert ledger.claim("a") is None
        assert ledger.claim("b") is None
        first.kill()
        first.communicate(timeout=10)
        claim = ledger.claim("a")
        assert claim is not None
        other = child("claim", path, "b")
        assert answers(other) == ["taken"]
        claim.release()


def test_a_file_that_was_taken_away_is_made_anew(path: Path) -> None:
    """What is written to a file without a name would be lost: the next write finds the path again."""
    with connect(f"sqlite:///{path}") as ledger:
        cancel(ledger, opened=opening())
        for each in path.parent.iterdir():
            each.unlink()
        assert ledger.intent("chat") is None
        cancel(ledger, "again", opened=opening("again"))
        with connect(f"sqlite:///{path}") as other:
            assert other.intent("again") is not None


def test_who_was_entered_is_in_the_new_file_before_what_he_writes(path: Path) -> None:
    """Or he would be taken for dead by whoever finds it. Who has left, or was found dead, is not in it; `lost` is
    called, once, also where somebody else has made the file."""
    told = list[str]()
    with connect(f"sqlite:///{path}") as ledger, connect(f"sqlite:///{path}") as other:
        ledger.lost = lambda: told.append("lost")
        for each in (HERE, THERE):
            ledger.enter(each, now=NOW)
        ledger.leave(THERE.owner, now=NOW)
        ledger.refresh()
        assert told == []
        for each in path.parent.iterdir():
            each.unlink()
        assert other.processes() == []
        cancel(ledger, opened=opening())
        assert [each.owner for each in other.processes()] == [HERE.owner]
        assert told == ["lost"]
        other.leave(HERE.owner, now=NOW)
        engine: Any = ledger.engine  # type: ignore[attr-defined]
        engine._shut("writer")
        cancel(ledger, epoch=1)
        assert (other.processes(), told) == ([], ["lost"])


def test_a_claim_is_on_the_file_that_is_there(path: Path) -> None:
    """Who had claims when it was taken away gets no new one beside those of the process that made it anew."""
    with connect(f"sqlite:///{path}") as ledger, connect(f"sqlite:///{path}") as other:
        old = ledger.claim("old")
        assert old is not None
        for each in path.parent.iterdir():
            each.unlink()
        assert other.claim("new") is not None
        assert ledger.claim("new") is None
        old.release()


def test_a_closed_ledger_says_so(path: Path) -> None:
    """Closing again is fine; using it is an error."""
    for url in ("memory:", f"sqlite:///{path}"):
        ledger = connect(url)
        ledger.close()
        ledger.close()
        with pytest.raises(LedgerUnavailable, match="closed"):
            ledger.runs()
        with pytest.raises(LedgerUnavailable, match="closed"):
            cancel(ledger, opened=opening())


def test_an_error_of_one_does_not_touch_the_others(path: Path) -> None:
    """Jobs that share a commit fail alone."""
    with connect(f"sqlite:///{path}") as ledger:
        start, outcomes = threading.Barrier(12), []

        def work(number: int) -> None:
            start.wait(10)
            try:
                if number % 3:
                    cancel(ledger, f"run-{number}", opened=opening(f"run-{number}"))
                else:
                    ledger.settle(receipt(Outcome.CANCELLED, "nobody"), 1, by="x", now=NOW)
            except LookupError:
                outcomes.append("unknown")
            else:
                outcomes.append("fine")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(30)
        assert sorted(outcomes) == ["fine"] * 8 + ["unknown"] * 4
        assert len(ledger.open_intents()) == 8
