"""The durable record: who cancelled what, when and why, and what came of it.

``connect(url)`` opens it. ``base.py`` has the interface, ``facts.py`` what goes in and out, ``sql/`` the queries, the
schema and its migrations. Three homes: memory, SQLite (standard library), Postgres (extra ``postgres``).
"""

from __future__ import annotations

from deadstop.ledger.urls import connect

__all__ = ["connect"]
