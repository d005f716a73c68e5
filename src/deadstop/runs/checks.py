"""What users give to runs, checked: the values, or a `UsageError` that says what to give."""

from __future__ import annotations

from typing import Any, Optional

from deadstop.core.policy import CancelPolicy
from deadstop.errors import UsageError
from deadstop.kinds import register as kinds

__all__ = [
    "LONGEST",
    "checked_actors",
    "checked_for_others",
    "checked_name",
    "checked_new_name",
    "checked_policy",
    "checked_seconds",
]

LONGEST = 1000
"""How many bytes of UTF-8 a run's name may have: what the index of every home of the ledger has room for."""


def checked_new_name(name: Any) -> str:
    """A name for a new run, or `UsageError`: one that other processes can say, and that is no remote run's address."""
    checked = checked_for_others(checked_name(name))
    kind = checked.partition(":")[0]
    if ":" in checked and kind in kinds.kinds():
        raise UsageError(
            f"{checked!r} looks like the address of a {kind}. Give the run another name, such as 'chat-42'."
        )
    return checked


def checked_name(name: Any) -> str:
    """A run's name, or `UsageError`."""
    if not isinstance(name, str):
        raise UsageError(f"A run's name is a string, and this is {name!r}. Give a name such as 'chat-42'.")
    if not name.strip():
        raise UsageError("A run's name can't be empty. Give a name such as 'chat-42'.")
    return name


def checked_for_others(name: str) -> str:
    """A name that every ledger can keep as it is, or `UsageError`."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"{name!r} can't be written as UTF-8: a name has no surrogates.") from None
    if "\0" in name:
        raise UsageError(f"{name!r} has a NUL in it, which a name can't have.")
    if size > LONGEST:
        raise UsageError(f"{name[:20]!r}... has {size} bytes, and a name {LONGEST} at most. Put more into `metadata`.")
    return name


def checked_actors(actors: Any) -> frozenset[Optional[str]]:
    """Who may cancel a run, or `UsageError`."""
    found = [actors] if isinstance(actors, str) else list(actors)
    if not found or not all(isinstance(each, str) and each for each in found):
        raise UsageError(f"cancellers is {actors!r}: give the names of those who may cancel it, such as ['u-7'].")
    return frozenset(found)


def checked_policy(policy: Any) -> CancelPolicy:
    """A policy, or `UsageError`."""
    if not isinstance(policy, CancelPolicy):
        raise UsageError(f"policy is {policy!r}: give a CancelPolicy, such as CancelPolicy(timeout=5).")
    return policy


def checked_seconds(what: str, seconds: Any) -> float:
    """A positive, finite number of seconds, or `UsageError`."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise UsageError(f"{what} is {seconds!r}: give seconds as a number, such as 60 or 0.5.")
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{what} is {seconds!r}: give a finite number of seconds above 0.")
    return float(seconds)
