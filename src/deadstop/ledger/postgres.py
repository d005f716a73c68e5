"""The home in Postgres: for processes on several hosts.

Threads borrow connections; each write is one transaction, and an advisory lock makes the writers of one run take
turns. The classes of advisory locks, see ``sql/postgres/home.sql``: 1684370001 writers of a run, 1684370003 migrations,
1684370004 sessions of processes that listen (``deadstop.fleet.wire``). Claims: ``leases.py``.
"""

from __future__ import annotations

import json
import os
import re
import select
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
from deadstop.ledger.engine import Announcement, Transaction
from deadstop.ledger.leases import Leases
from deadstop.ledger.need_psycopg import psycopg, psycopg_rows
from deadstop.ledger.queries import Migration, migrations, queries

__all__ = ["Postgres"]

MOST = 8  # connections of one ledger, besides that of its signals

PAUSE = 2.0
"""How long (seconds) a process may be silent in the middle of a transaction: one that is stopped there keeps the locks
that others need to take over its work. The server ends its session; should it go on, the transaction is run again."""

T = TypeVar("T")
Connection = Any  # psycopg.Connection[dict[str, Any]], which the type checker may not have

_abandoned: list[Connection] = []
_all: weakref.WeakSet[Postgres] = weakref.WeakSet()


@cache
def _hint() -> bytes:
    return queries("postgres")["hint"].replace(":channel", "$1").replace(":told", "$2").encode()


@cache
def _inserts(names: tuple[str, ...]) -> bytes:
    """These inserts as one statement, which announces, too."""
    parts = [b"q%d AS (%s)" % (number, _statements()[each]) for number, each in enumerate(names)]
    return b"WITH " + b", ".join(parts) + b" " + _statements()["announce"]


@cache
def _statements() -> dict[str, bytes]:
    """The queries in psycopg's notation."""
    found = queries("postgres").items()
    return {name: re.sub(r"(?<!:):(\w+)", r"%(\1)s", text.replace("%", "%%")).encode() for name, text in found}


class _Transaction:
    """One connection's queries."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

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

    def insert(self, queries: tuple[str, ...], told: Announcement, **values: Any) -> None:
        self.connection.execute(_inserts(queries), {**values, "told": json.dumps(told._asdict())})


class Postgres:
    """The engine.

    Every cancel that is recorded is announced in its transaction, on the channel ``deadstop``, as JSON of an
    ``Announcement``; an empty payload (the name is too long for one) says: read the open intents.
    """

    def __init__(self, url: str, *, patience: float = 10.0, steps: Optional[tuple[Migration, ...]] = None) -> None:
        self.url = _without_password(url)
        self._patience = patience
        self._steps = migrations("postgres") if steps is None else steps
        self._settings = self._parse(url)
        self.begun: Callable[[Transaction], object] = lambda tx: None  # a database is not made anew under its users
        self._closed = False
        self._idle: list[Connection] = []
        self._fresh()
        weakref.finalize(self, _close_all, self._idle)
        _all.add(self)
        try:
            self._once(self._prepare)
        except BaseException:
            self.close()
            raise

    def _fresh(self) -> None:
        self._places = threading.BoundedSemaphore(MOST)
        self._claims = Leases(self)

    def _parse(self, url: str) -> dict[str, Any]:
        try:
            settings = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error as error:
            # libpq quotes the URL's parts, so its words are not for everybody's eyes.
            raise LedgerUrlError(f"Postgres can't read this address: {self.url}.", url=self.url) from error
        wait = max(1, round(self._patience))
        bounds = {"connect_timeout": max(2, wait), "tcp_user_timeout": wait * 1000, "application_name": "deadstop"}
        bounds.update(keepalives_idle=5, keepalives_interval=2, keepalives_count=3)
        return {**bounds, **settings}  # the user's word counts

    # Transactions.

    def write(self, job: Callable[[Transaction], T]) -> T:
        def run(connection: Connection) -> T:
            with connection.transaction():
                return job(_Transaction(connection))

        return self._once_more(run)

    def read(self, job: Callable[[Transaction], T]) -> T:
        # Each query by itself: a transaction would cost two round trips, and give them no common moment either.
        return self._once_more(lambda connection: job(_Transaction(connection)))

    def refresh(self) -> None:
        """There is nothing to look at."""

    def _once_more(self, run: Callable[[Connection], T]) -> T:
        """A connection that lay idle may have died unnoticed, as after a restart, or we were stopped in the middle of a
        transaction: then once more, on a new one."""
        try:
            return self._once(run, fresh=False)
        except _Stale:
            return self._once(run)

    def _once(self, run: Callable[[Connection], T], fresh: bool = True) -> T:
        try:
            with self._borrowed(fresh) as (connection, idle):
                try:
                    return run(connection)
                except psycopg.Error as error:
                    silent = isinstance(error, psycopg.errors.IdleInTransactionSessionTimeout)
                    if not fresh and (silent or (idle and connection.closed)):
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
            wait, pause = (str(max(1, int(each * 1000))) for each in (self._patience, min(self._patience, PAUSE)))
            _Transaction(made).one("set_bounds", wait=wait, pause=pause)
        except BaseException:
            made.close()
            raise
        return made

    def _drop_idle(self) -> None:
        _close_all(self._idle)

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
        return self._claims.claim(run)

    def after_fork(self) -> None:
        """In the child: the sessions, and the claims, are the parent's."""
        self.abandon(*self._idle)
        self._idle.clear()
        self._claims.disown()
        self._fresh()

    @staticmethod
    def abandon(*connections: Connection) -> None:
        """Let go of a parent's connections without a goodbye, which would end the parent's session; and without keeping
        them open, or the server would not notice the parent's death."""
        _abandoned.extend(connections)
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_RDWR)
            for each in connections:
                with suppress(OSError, psycopg.Error):
                    os.dup2(nowhere, each.fileno(), inheritable=False)
            os.close(nowhere)

    def close(self) -> None:
        if not self._closed:
            self._claims.close()
        self._closed = True
        self._drop_idle()

    # Signals: see ``deadstop.fleet.wire``.

    def hint(self, channel: str, told: str, then: Callable[[], None]) -> None:
        """Tell whoever listens there now, and do ``then`` as soon as that is on its way: the server does it in any
        case from there on. Raises a LedgerError without ``then``."""
        values = [channel.encode(), told.encode()]
        done: list[None] = []

        def run(connection: Connection) -> None:
            wire = connection.pgconn
            wire.send_query_params(_hint(), values)
            while wire.flush():
                select.select([], [wire.socket], [], self._patience)
            if not done:
                done.append(None)
                then()
            while (result := wire.get_result()) is not None:
                if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
                    raise psycopg.errors.error_from_result(result)

        try:
            self._once_more(run)
        except LedgerError:
            if not done:
                raise

    def session(self, owner: str, channels: list[str]) -> Connection:
        """A connection of the caller's own, which listens to ``channels``, and by which others know that ``owner`` is
        there. Raises LedgerUnavailable."""
        if self._closed:
            raise LedgerUnavailable(f"The ledger {self.url} was closed.", url=self.url)
        try:
            made = self._connect()
            try:
                _Transaction(made).one("listen", owner=owner)
                for each in channels:
                    made.execute(b'LISTEN "' + each.encode() + b'"')
            except BaseException:
                made.close()
                raise
        except psycopg.Error as error:
            raise self._failure(error) from error
        return made


class _Stale(Exception):
    """A connection turned out to be dead before it had done anything that lasts."""


def _without_password(url: str) -> str:
    """The address for messages: no password, neither before the host nor in the query."""
    try:
        parts = urlsplit(url)
        login, at, host = parts.netloc.rpartition("@")
        kept = [each for each in parse_qsl(parts.query) if "password" not in each[0]]
    except ValueError:
        return "postgresql:"
    return urlunsplit((parts.scheme, login.partition(":")[0] + at + host, parts.path, urlencode(kept, safe="/"), ""))


def _close_all(connections: list[Connection]) -> None:
    with suppress(IndexError):  # taken out first: at the end of the process a thread may be about to borrow one
        while True:
            connections.pop().close()


def _after_fork() -> None:
    for each in list(_all):
        each.after_fork()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
