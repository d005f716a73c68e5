"""From a URL to a ledger."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deadstop.errors import LedgerUrlError
from deadstop.ledger.base import Ledger
from deadstop.ledger.book import Book

__all__ = ["connect", "state_file"]

FORMS = "Give memory:, sqlite:, sqlite:///relative/path.db, sqlite:////absolute/path.db or postgresql://host/database."


def connect(url: str, *, patience: float = 10.0) -> Ledger:
    """Open the ledger at ``url``; make it, or bring it up to this version's schema, if need be.

    - ``memory:`` A new one, gone with the process. A forked child begins with an empty one.
    - ``sqlite:`` The file ``ledger.db`` in this user's state directory (see `state_file`).
    - ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite:///~/at-home.db``. The file is created with mode
      0600, and its directory, if it is not there, with mode 0700.
    - ``postgresql://user:password@host:port/database?options`` as libpq reads it; also ``postgres://``. Needs the extra
      ``postgres``. The tables are named ``deadstop_*``.

    ``patience`` (seconds) bounds how long one call waits for a lock or a connection.

    Raises LedgerUrlError, LedgerUnavailable or LedgerSchemaError, before anything is written.
    """
    scheme, colon, rest = str(url).partition(":")
    if colon and scheme == "memory" and not rest:
        from deadstop.ledger.sqlite import Sqlite

        return Book(Sqlite(None, patience=patience))
    if colon and scheme == "sqlite":
        from deadstop.ledger.sqlite import Sqlite

        return Book(Sqlite(_path(url, rest), patience=patience))
    if colon and scheme in ("postgresql", "postgres"):
        try:
            from deadstop.ledger.postgres import Postgres
        except ModuleNotFoundError as error:
            raise LedgerUrlError(f"{str(error).rstrip('.')}.", url=f"{scheme}:") from error

        return Book(Postgres(url, patience=patience))
    shown = repr(url) if "@" not in str(url) else f"one that begins with {scheme + ':'!r}"
    raise LedgerUrlError(f"This is no address of a ledger: {shown}. {FORMS}")


def state_file() -> Path:
    """``deadstop/ledger.db`` in ``$XDG_STATE_HOME``; without that in ``~/Library/Application Support`` on macOS, and in
    ``~/.local/state`` elsewhere."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):  # the standard says to ignore a relative one
        home = Path(state)
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Application Support"
    else:
        home = Path.home() / ".local" / "state"
    return home / "deadstop" / "ledger.db"


def _path(url: str, rest: str) -> Path:
    if not rest:
        return state_file()
    path = rest[3:]
    if not rest.startswith("///") or not path or path.endswith("/") or "?" in path or "\0" in path:
        raise LedgerUrlError(f"This is no address of a SQLite file: {url!r}. {FORMS}", url=url)
    return Path(path).expanduser()
