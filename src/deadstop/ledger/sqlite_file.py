"""A SQLite file: whose it is, how it is made, how its schema is brought up to date."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Optional

from deadstop.errors import LedgerSchemaError
from deadstop.ledger.queries import Migration, queries

__all__ = ["create", "prepare"]

APPLICATION = 0x64537470  # "dStp", where SQLite keeps whose file this is


def create(path: Path) -> None:
    """An empty file for this user alone; nothing if there is one. SQLite gives its other files the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600))


def prepare(
    connection: sqlite3.Connection, path: Optional[Path], steps: tuple[Migration, ...], patience: float
) -> None:
    """Refuse what is not ours, before anything is written; then bring the schema up to date.

    Raises LedgerSchemaError; sqlite3.Error as it comes.
    """
    # In one piece: between two reads another process may have made the schema, which would seem to be somebody else's.
    connection.execute("BEGIN")
    try:
        version = _version(connection, path, steps)
    finally:
        connection.execute("ROLLBACK")
    if path is not None:
        _set_wal(connection, patience)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if version == len(steps):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, path, steps)  # another process may have been quicker
        for step in steps[version:]:
            for statement in _statements(step.script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {step.number:d}")
        connection.execute(f"PRAGMA application_id = {APPLICATION:d}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, path: Optional[Path], steps: tuple[Migration, ...]) -> int:
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    ours = owner == APPLICATION
    if not ours and (owner or version or connection.execute(queries("sqlite")["user_tables"]).fetchone()):
        raise LedgerSchemaError(
            f"{path} is a SQLite file, but no ledger of deadstop: give another path. Nothing was written to it.",
            url=f"sqlite:///{path}",
        )
    if version > len(steps):
        raise LedgerSchemaError(
            f"The ledger {path} has schema version {version}, and this deadstop knows {len(steps)}: "
            "upgrade deadstop here, or give this one a ledger of its own. Nothing was written to it.",
            url=f"sqlite:///{path}",
        )
    return version


def _set_wal(connection: sqlite3.Connection, patience: float) -> None:
    """Several processes that start at once get in each other's way here, and SQLite does not wait by itself."""
    until = time.monotonic() + patience
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= until:
                raise
            time.sleep(0.005)


def _statements(script: str) -> list[str]:
    """A script's statements. (``executescript`` would commit the transaction that they are to run in.)"""
    found, lines = [], ""
    for line in script.splitlines(keepends=True):
        lines += line
        if sqlite3.complete_statement(lines):
            found.append(lines)
            lines = ""
    return found
