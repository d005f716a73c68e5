"""The named queries of ``sql/``, and the numbered migrations of each home."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import NamedTuple

__all__ = ["Migration", "migrations", "queries"]

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)
_NUMBERED = re.compile(r"(\d{4})_\w+\.sql")


class Migration(NamedTuple):
    """One step of the schema: from version ``number - 1`` to ``number``."""

    number: int
    script: str


@cache
def queries(home: str) -> dict[str, str]:
    """Every query by its name: those that all homes share, and those of ``home`` (``sqlite`` or ``postgres``)."""
    found: dict[str, str] = {}
    root = resources.files("deadstop.ledger").joinpath("sql")
    files = [each for each in root.joinpath("queries").iterdir() if each.name.endswith(".sql")]
    for file in [*files, root.joinpath(home).joinpath("home.sql")]:
        _, *parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, text in zip(parts[::2], parts[1::2]):
            if name in found:
                raise RuntimeError(f"There are two queries named {name!r}.")
            # Python 3.9 counts the changed rows of a statement only if it begins with its verb.
            found[name] = _COMMENT.sub("", text).strip().rstrip(";")
    return found


@cache
def migrations(home: str) -> tuple[Migration, ...]:
    """The migrations of ``home``, in order. The number of the last is the version that this library writes."""
    found = []
    for file in resources.files("deadstop.ledger").joinpath("sql").joinpath(home).iterdir():
        numbered = _NUMBERED.fullmatch(file.name)
        if numbered:
            found.append(Migration(int(numbered[1]), file.read_text(encoding="utf-8")))
    return tuple(sorted(found))
