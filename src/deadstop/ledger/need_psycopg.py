"""psycopg, or a sentence that says how to get it."""

from __future__ import annotations

try:
    import psycopg
    from psycopg import rows as psycopg_rows
except ImportError as error:  # also where psycopg is there, and no libpq for it
    message = 'A ledger in Postgres needs psycopg, which does not import here: pip install "deadstop[postgres]".'
    raise ModuleNotFoundError(message, name="psycopg") from error

__all__ = ["psycopg", "psycopg_rows"]
