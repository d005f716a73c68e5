"""The fixtures of the tests of more than one process."""

from __future__ import annotations

from fleet_homes import child, ledger, server, url

__all__ = ["child", "ledger", "server", "url"]
