"""The home in a SQLite file, or in memory: the standard library, no engine.

A write is acknowledged after its commit has been synced to the disk (WAL, ``synchronous=FULL``). Threads share one
writing connection, and one commit: while one syncs, the others queue, and the next commit takes all of them along.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any, Callable, Generic, Optional, TypeVar

from deadstop.errors import LedgerError, LedgerSchemaError, LedgerUnavailable
from deadstop.ledger import sqlite_file
from deadstop.ledger.base import Claim
from deadstop.ledger.engine import Announcement, Transaction
from deadstop.ledger.locks import Claims, FileLock, Gate
from deadstop.ledger.queries import Migration, migrations, queries

__all__ = ["Sqlite"]

BATCH = 64  # jobs in one commit
POLL = 0.0003  # seconds between two looks at a lock that another process holds for the length of a commit

T = TypeVar("T")

# What a write that failed says about the job rather than about the disk.
JOB_S_OWN = (
    *(sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError),
    *(sqlite3.InterfaceError, sqlite3.NotSupportedError),
)

_abandoned: list[sqlite3.Connection] = []  # a parent's, in the child: to close one would be to meddle with its files
_all: weakref.WeakSet[Sqlite] = weakref.WeakSet()
_forking: list[Sqlite] = []


class _Transaction:
    """One connection's queries."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._queries = queries("sqlite")

    def one(self, query: str, **values: Any) -> Optional[Any]:
        return self.connection.execute(self._queries[query], values).fetchone()

    def all(self, query: str, **values: Any) -> list[Any]:
        return self.connection.execute(self._queries[query], values).fetchall()

    def do(self, query: str, **values: Any) -> int:
        return self.connection.execute(self._queries[query], values).rowcount

    def lock(self, run: str) -> None:
        """BEGIN IMMEDIATE has taken the one lock there is."""

    def insert(self, queries: tuple[str, ...], told: Announcement, **values: Any) -> None:
        """Processes of this host are told over their sockets."""
        for each in queries:
            self.do(each, **values)


class _Job(Generic[T]):
    """What one caller wants written, and what came of it."""

    def __init__(self, run: Callable[[Transaction], T]) -> None:
        self.run = run
        self.done = False
        self.result: Any = None
        self.error: Optional[BaseException] = None

    def answer(self) -> T:
        if self.error is not None:
            raise self.error
        result: T = self.result
        return result


class Sqlite:
    """The engine. ``path`` None: in memory."""

    def __init__(
        self, path: Optional[Path], *, patience: float = 10.0, steps: Optional[tuple[Migration, ...]] = None
    ) -> None:
        self.path = None if path is None else Path(os.path.realpath(path))
        self.url = "memory:" if self.path is None else f"sqlite:///{self.path}"
        self._patience = patience
        self._steps = migrations("sqlite") if steps is None else steps
        self.begun: Callable[[Transaction], object] = _nothing
        self._closed = False
        self._open: list[sqlite3.Connection] = []
        self._fresh()
        # Not at the end of the process: a thread may be in the midst of a write, and to close its connection under it
        # is a crash. What is left open then the system closes.
        weakref.finalize(self, _close_all, self._open).atexit = False
        _all.add(self)
        self.write(_nothing)

    def _fresh(self) -> None:
        """As at the start: no connection, nobody waiting. Also for the child of a fork."""
        self._turn = threading.Condition()  # guards the queue and who leads
        self._queue: deque[_Job[Any]] = deque()
        self._leading = False
        self._reserved = 0  # who wants every writer out goes before them
        self._reading = threading.Lock()
        self._writer: Optional[sqlite3.Connection] = None
        self._reader: Optional[sqlite3.Connection] = None
        self._files: dict[str, tuple[int, int]] = {}  # which file the writer and the reader have open
        self._anew = False  # nothing was committed yet by this writer
        self._gate = None if self.path is None else Gate(f"{self.path}-gate")
        self._claims = Claims(None if self.path is None else FileLock(f"{self.path}-claims"))

    # Writing.

    def write(self, job: Callable[[Transaction], T]) -> T:
        mine = _Job(job)
        with self._turn:
            self._queue.append(mine)
            while (self._leading or self._reserved) and not mine.done:
                self._turn.wait()
            if mine.done:
                return mine.answer()
            self._leading = True
        self._lead(mine)
        return mine.answer()

    def _lead(self, mine: _Job[Any]) -> None:
        """Commit what the queue holds, until this thread's own job is done."""
        batch: list[_Job[Any]] = []
        try:
            while not mine.done:
                while self._queue and len(batch) < BATCH:
                    batch.append(self._queue.popleft())
                self._commit(batch)
                for each in batch:
                    each.done = True
                batch = []
        finally:
            with self._turn:
                # Only an interrupt of this thread leaves some undone; the others' turn is not lost by it.
                self._queue.extendleft(each for each in reversed(batch) if each is not mine)
                self._leading = False
                self._turn.notify_all()

    def _commit(self, batch: list[_Job[Any]]) -> None:
        """Run every job in one transaction. One that raises is undone alone; a failed commit fails them all."""
        try:
            writer = self._writing_connection()
            self._begin(writer)
            try:
                if self._anew:
                    self.begun(_Transaction(writer))
                for each in batch:
                    self._run(writer, each)
                writer.execute("COMMIT")
                self._anew = False
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError, LedgerError) as error:
            failure = self._failure(error)
            for each in batch:  # each caller raises one of its own
                each.error = type(failure)(str(failure), url=self.url)
                each.error.__cause__ = error
            if self.path is not None and "locked" not in str(error):
                self._shut("writer")  # the next write begins anew

    def _begin(self, writer: sqlite3.Connection) -> None:
        """Take the file's write lock. SQLite's own waiting is a lottery that a busy neighbour wins every time, for
        seconds; so who waits stands in a gate, and whoever wants to write again has to go through the gate first."""
        until = time.monotonic() + self._patience
        if self._gate is not None:
            self._gate.enter(min(self._patience, 1.0))
        try:
            while True:
                try:
                    writer.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error) or time.monotonic() >= until:
                        raise
                time.sleep(POLL)
        finally:
            if self._gate is not None:
                self._gate.leave()

    def _run(self, writer: sqlite3.Connection, job: _Job[Any]) -> None:
        job.error = None
        writer.execute("SAVEPOINT job")
        try:
            job.result = job.run(_Transaction(writer))
        except JOB_S_OWN as error:
            job.error = self._failure(error)
            job.error.__cause__ = error
        except sqlite3.Error:
            raise
        except Exception as error:
            job.error = error
        if job.error is not None:
            writer.execute("ROLLBACK TO job")
        writer.execute("RELEASE job")

    # Reading.

    def read(self, job: Callable[[Transaction], T]) -> T:
        if self.path is None:
            return self.write(job)
        self.refresh()
        with self._reading:
            try:
                reader = self._reading_connection()
                reader.execute("BEGIN")
                try:
                    return job(_Transaction(reader))
                finally:
                    reader.execute("ROLLBACK")
            except (sqlite3.Error, OSError) as error:
                raise self._failure(error) from error

    def refresh(self) -> None:
        """If the file is another one, or gone, make it what it should be."""
        if self.path is not None and self._files.get("writer") != self._identity():
            self.write(_nothing)

    # Connections. The file may be taken away and made anew by others: what is written to a file without a name is lost.

    def _writing_connection(self) -> sqlite3.Connection:
        self._refuse_closed()
        if self._writer is not None and self._files.get("writer") == self._identity():
            return self._writer
        self._shut("writer")
        if self.path is not None:
            sqlite_file.create(self.path)
        if self._gate is not None:
            self._gate.close()  # it may have been taken away as well
        self._writer, self._anew = self._connect(), True
        try:
            sqlite_file.prepare(self._writer, self.path, self._steps, self._patience)
            self._writer.execute("PRAGMA busy_timeout = 0")  # from here on `_begin` waits
        except BaseException:
            self._shut("writer")
            raise
        self._files["writer"] = self._identity()
        return self._writer

    def _reading_connection(self) -> sqlite3.Connection:
        self._refuse_closed()
        if self._reader is not None and self._files.get("reader") == self._identity():
            return self._reader
        self._shut("reader")
        self._reader = self._connect()
        self._reader.execute("PRAGMA query_only = ON")
        self._files["reader"] = self._identity()
        return self._reader

    def _refuse_closed(self) -> None:
        if self._closed:
            raise LedgerUnavailable(f"The ledger {self.url} was closed.", url=self.url)

    def _shut(self, which: str) -> None:
        connection = self._writer if which == "writer" else self._reader
        if connection is not None:
            self._open.remove(connection)
            connection.close()
        if which == "writer":
            self._writer = None
        else:
            self._reader = None

    def _connect(self) -> sqlite3.Connection:
        where = ":memory:" if self.path is None else str(self.path)
        connection = sqlite3.connect(
            where, timeout=self._patience, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        connection.row_factory = sqlite3.Row
        self._open.append(connection)
        return connection

    def _identity(self) -> tuple[int, int]:
        try:
            found = None if self.path is None else os.stat(self.path)
        except OSError:
            found = None
        return (0, 0) if found is None else (found.st_dev, found.st_ino)

    def _failure(self, error: Exception) -> LedgerError:
        if isinstance(error, LedgerError):
            return error
        what = str(error).rstrip(".")
        if isinstance(error, sqlite3.IntegrityError):
            return LedgerError(f"The ledger {self.url} refused a state that can't be: {what}.", url=self.url)
        if "not a database" in what or "malformed" in what:
            return LedgerSchemaError(f"{self.path} is no SQLite file, or a damaged one: {what}.", url=self.url)
        fix = next((fix for sign, fix in FIXES.items() if sign in what), "Look at the file and its directory")
        return LedgerUnavailable(f"The ledger {self.url} can't be used now: {what}. {fix}.", url=self.url)

    # Claims, forks, the end.

    def claim(self, run: str) -> Optional[Claim]:
        try:
            return self._claims.claim(run)
        except OSError as error:
            raise self._failure(error) from error

    def before_fork(self) -> None:
        """SQLite's connections must not be carried over a fork, not even to be closed: so close them, between two
        commits. A home in memory lives in its connection, and keeps it."""
        self._forking = self._take_turn(self._patience)
        self._forking_reads = self._reading.acquire(timeout=self._patience)
        if self.path is not None:
            if self._forking:
                self._shut("writer")
            if self._forking_reads:
                self._shut("reader")

    def after_fork(self, child: bool) -> None:
        if child:
            _abandoned.extend(self._open)
            self._open.clear()
            self._claims.disown()
            if self._gate is not None:
                self._gate.close()
            self._fresh()
            return
        if self._forking_reads:
            self._reading.release()
        if self._forking:
            self._end_turn()

    def _take_turn(self, patience: Optional[float] = None) -> bool:
        """Keep every writer out, once the one at work is done. False: it took too long."""
        with self._turn:
            self._reserved += 1
            try:
                taken = self._turn.wait_for(lambda: not self._leading, patience)
                self._leading = self._leading or taken
            finally:
                self._reserved -= 1
                self._turn.notify_all()
            return taken

    def _end_turn(self) -> None:
        with self._turn:
            self._leading = False
            self._turn.notify_all()

    def close(self) -> None:
        self._closed = True
        self._take_turn()
        self._shut("writer")
        self._end_turn()
        with self._reading:
            self._shut("reader")
        self._claims.close()
        if self._gate is not None:
            self._gate.close()


def _nothing(tx: Transaction) -> None:
    pass


def _close_all(connections: list[sqlite3.Connection]) -> None:
    for each in connections:
        each.close()


FIXES = {
    "full": "Make room on its disk",
    "readonly": "Make the file and its directory writable for this user",
    "unable to open": "Make the file and its directory writable for this user",
    "ermission denied": "Make the file and its directory writable for this user",
    "locked": "Another process has kept it locked; find and end that one",
}


def _before_fork() -> None:
    global _forking
    _forking = list(_all)
    for each in _forking:
        each.before_fork()


def _after_fork(child: bool) -> None:
    for each in _forking:
        each.after_fork(child)
    _forking.clear()


if sys.platform != "win32":
    os.register_at_fork(
        before=_before_fork, after_in_parent=lambda: _after_fork(False), after_in_child=lambda: _after_fork(True)
    )
