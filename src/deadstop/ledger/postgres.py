"""The home in Postgres: for processes on several hosts.

Threads borrow connections; each write is one transaction, and an advisory lock makes the writers of one run take
turns. A claim is an advisory lock of a session of its own, which the server frees when the process, its host or the
connection dies. The classes of advisory locks, see ``sql/postgres/home.sql``: 1684370001 writers of a run, 1684370002
claims, 1684370003 migrations.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Callable, Optional, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from deadstop.errors import LedgerError, LedgerSchemaError, LedgerUnavailable, LedgerUrlError
from deadstop.ledger.base import Claim
from deadstop.ledger.engine import Transaction
from deadstop.ledger.need_psycopg import psycopg, psycopg_rows
from deadstop.ledger.queries import Migration, migrations, queries

__all__ = ["Postgres"]

MOST = 8  # connections of one ledger, besides that of its claims

T = TypeVar("T")
Connection = Any  # psycopg.Connection[dict[str, Any]], which the type checker may not have

_abandoned: list[Connection] = []  # of a parent process: a goodbye from the child would end the parent's session
_all: weakref.WeakSet[Postgres] = weakref.WeakSet()


@cache
def _statements() -> dict[str, bytes]:
    """The queries in psycopg's notation."""
    found = queries("postgres").items()
    return {name: re.sub(r"(?<!:):(\w+)", r"%(\1)s", text.replace("%", "%%")).encode() for name, text in found}


class _Transaction:
    """One connection's queries. ``connection`` is for what joins in: see ``Postgres.enlist``."""

    def __init__(self, connection: Connection, enlist: Optional[Callable[[Any, str], None]] = None) -> None:
        self.connection = connection
        self._enlist = enlist

    def one(self, query: str, **values: Any) -> Optional[Any]:
        return self.connection.execute(_statements()[query], values).fetchone()

    def all(self, query: str, **values: Any) -> list[Any]:
        found: list[Any] = self.connection.execute(_statements()[query], values).fetchall()
        return found

    def do(self, query: str, **values: Any) -> int:
        count: int = self.connection.execute(_statements()[query], values).rowcount
        return count

    def lock(self, run: str) -> None:
        self.one("lock_run", run=run)

    def announce(self, run: str) -> None:
        self.one("announce", run=run)
        if self._enlist is not None:
            self._enlist(self.connection, run)


class Postgres:
    """The engine.

    Every cancel that is recorded is announced with ``NOTIFY deadstop, '<run>'`` in its transaction; an empty payload
    (the name is too long for one) says: read the open intents. ``enlist``, if set, is called as ``enlist(connection,
    run)`` at the same moment, so that a job queue's row is committed with the intent or not at all.
    """

    enlist: Optional[Callable[[Any, str], None]] = None

    def __init__(self, url: str, *, patience: float = 10.0, steps: Optional[tuple[Migration, ...]] = None) -> None:
        self.url = _without_password(url)
        self._patience = patience
        self._steps = migrations("postgres") if steps is None else steps
        self._settings = self._parse(url)
        self._closed = False
        self._idle: list[Connection] = []
        self._sessions: list[Connection] = []  # that of the claims, if there is one
        self._fresh()
        weakref.finalize(self, _close_all, self._idle, self._sessions)
        _all.add(self)
        try:
            self._once(self._prepare)
        except BaseException:
            self.close()
            raise

    def _fresh(self) -> None:
        self._places = threading.BoundedSemaphore(MOST)
        self._claims = _Claims(self)

    def _parse(self, url: str) -> dict[str, Any]:
        try:
            settings = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error as error:
            # libpq quotes the URL's parts, so its words are not for everybody's eyes.
            raise LedgerUrlError(f"Postgres can't read this address: {self.url}.", url=self.url) from error
        wait = max(1, round(self._patience))
        bounds = {"connect_timeout": max(2, wait), "tcp_user_timeout": wait * 1000, "application_name": "deadstop"}
        return {**bounds, **settings}  # the user's word counts

    # Transactions.

    def write(self, job: Callable[[Transaction], T]) -> T:
        def run(connection: Connection) -> T:
            with connection.transaction():
                return job(_Transaction(connection, self.enlist))

        return self._once_more(run)

    def read(self, job: Callable[[Transaction], T]) -> T:
        def run(connection: Connection) -> T:
            with connection.transaction():
                return job(_Transaction(connection))

        return self._once_more(run)

    def _once_more(self, run: Callable[[Connection], T]) -> T:
        """A connection that lay idle may have died unnoticed, as after a restart: then once more, on a new one."""
        try:
            return self._once(run, fresh=False)
        except _Stale:
            return self._once(run)

    def _once(self, run: Callable[[Connection], T], fresh: bool = True) -> T:
        try:
            with self._borrowed(fresh) as (connection, idle):
                try:
                    return run(connection)
                except psycopg.OperationalError as error:
                    if idle and connection.closed:
                        raise _Stale from error
                    raise
        except psycopg.Error as error:
            raise self._failure(error) from error

    @contextmanager
    def _borrowed(self, fresh: bool) -> Iterator[tuple[Connection, bool]]:
        if self._closed:
            raise LedgerUnavailable(f"The ledger {self.url} was closed.", url=self.url)
        places, mine = self._places, os.getpid()
        if not places.acquire(timeout=self._patience):
            message = f"The ledger {self.url} is too slow: all its {MOST} connections stayed busy."
            raise LedgerUnavailable(message, url=self.url)
        connection: Optional[Connection] = None
        try:
            if fresh:
                self._drop_idle()
            with suppress(IndexError):
                connection = self._idle.pop()
            idle = connection is not None
            connection = connection if idle else self._connect()
            yield connection, idle
        finally:
            if connection is not None and mine == os.getpid():
                self._put_back(connection)
            places.release()

    def _put_back(self, connection: Connection) -> None:
        busy = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE  # also: it is broken
        if self._closed or busy:
            connection.close()
        else:
            self._idle.append(connection)

    def _connect(self) -> Connection:
        made = psycopg.connect(**self._settings, autocommit=True, row_factory=psycopg_rows.dict_row)
        try:
            wait = str(max(1, int(self._patience * 1000)))
            for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                made.execute(_statements()["set_bound"], {"name": name, "milliseconds": wait})
        except BaseException:
            made.close()
            raise
        return made

    def _drop_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    # The schema.

    def _prepare(self, connection: Connection) -> None:
        tx = _Transaction(connection)
        if self._version(tx) == len(self._steps):
            return  # without a lock: nearly every time
        with connection.transaction():
            tx.one("lock_migrations")
            version = self._version(tx)  # another process may have been quicker
            if version is None:
                tx.do("make_schema")
                tx.do("start_schema")
            for step in self._steps[version or 0 :]:
                connection.execute(step.script.encode())
                tx.do("write_version", version=step.number)

    def _version(self, tx: _Transaction) -> Optional[int]:
        found = tx.one("find_schema")
        assert found is not None
        version: Optional[int] = None
        if found["versioned"]:
            row = tx.one("read_version")
            version = -1 if row is None else row["version"]
        elif found["runs"]:
            version = -1
        if version == -1:
            message = f"{self.url} has tables named as ours that are not ours: use another database or schema."
            raise LedgerSchemaError(f"{message} Nothing was written.", url=self.url)
        if version is not None and version > len(self._steps):
            raise LedgerSchemaError(
                f"The ledger {self.url} has schema version {version}, and this deadstop knows {len(self._steps)}: "
                "upgrade deadstop here, or give this one a ledger of its own. Nothing was written to it.",
                url=self.url,
            )
        return version

    def _failure(self, error: Exception) -> LedgerError:
        what = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        password = self._settings.get("password")
        if password:
            what = what.replace(str(password), "***")
        known = psycopg.errors
        foreign = (known.DuplicateObject, known.DuplicateTable, known.UndefinedTable, known.UndefinedColumn)
        if isinstance(error, foreign):
            return LedgerSchemaError(f"{self.url} has a schema that is not ours: {what}.", url=self.url)
        if isinstance(error, (psycopg.IntegrityError, psycopg.DataError)):
            return LedgerError(f"The ledger {self.url} refused a state that can't be: {what}.", url=self.url)
        return LedgerUnavailable(f"The ledger {self.url} can't be used now: {what}.", url=self.url)

    # Claims, forks, the end.

    def claim(self, run: str) -> Optional[Claim]:
        if self._closed:
            raise LedgerUnavailable(f"The ledger {self.url} was closed.", url=self.url)
        try:
            return self._claims.claim(run)
        except psycopg.Error as error:
            raise self._failure(error) from error

    def after_fork(self) -> None:
        """In the child: the sessions, and the claims, are the parent's."""
        for each in (self._idle, self._sessions):
            _abandoned.extend(each)
            each.clear()
        self._fresh()

    def close(self) -> None:
        self._closed = True
        self._drop_idle()
        self._claims.close()


class _Stale(Exception):
    """A connection turned out to be dead before it did anything."""


class _Claims:
    """Claims on one session: the server's lock keeps other processes out, the dict other threads."""

    def __init__(self, engine: Postgres) -> None:
        self._engine = engine
        self._guard = threading.Lock()
        self._session: Connection = None
        self._held: dict[str, _Claim] = {}

    def claim(self, run: str) -> Optional[Claim]:
        with self._guard:
            if not self._alive():
                self._session, self._held = self._engine._connect(), {}
                self._engine._sessions[:] = [self._session]
            if run in self._held:
                return None
            won = _Transaction(self._session).one("try_claim", run=run)
            if won is None or not won["won"]:
                return None
            made = self._held[run] = _Claim(self, run)
            return made

    def holds(self, claim: _Claim) -> bool:
        with self._guard:
            return self._held.get(claim.run) is claim and self._alive()

    def _alive(self) -> bool:
        """Whether the session still stands: asked of the server, since a dead one frees the locks and says nothing."""
        if self._session is None or self._session.closed:
            return False
        with suppress(psycopg.Error):
            self._session.execute(b"")
            return True
        with suppress(psycopg.Error):
            self._session.close()
        return False

    def release(self, claim: _Claim) -> None:
        with self._guard:
            if self._held.get(claim.run) is claim:
                del self._held[claim.run]
                with suppress(psycopg.Error):
                    _Transaction(self._session).one("release_claim", run=claim.run)

    def close(self) -> None:
        with self._guard:
            self._held = {}
            if self._session is not None:
                self._session.close()


class _Claim(Claim):
    def __init__(self, claims: _Claims, run: str) -> None:
        self.run = run
        self._claims = claims

    @property
    def held(self) -> bool:
        return self._claims.holds(self)

    def release(self) -> None:
        self._claims.release(self)


def _without_password(url: str) -> str:
    """The address for messages: no password, neither before the host nor in the query."""
    try:
        parts = urlsplit(url)
        login, at, host = parts.netloc.rpartition("@")
        kept = [each for each in parse_qsl(parts.query) if "password" not in each[0]]
    except ValueError:
        return "postgresql:"
    return urlunsplit((parts.scheme, login.partition(":")[0] + at + host, parts.path, urlencode(kept, safe="/"), ""))


def _close_all(*lists: list[Connection]) -> None:
    for connections in lists:
        for each in connections:
            each.close()


def _after_fork() -> None:
    for each in list(_all):
        each.after_fork()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
