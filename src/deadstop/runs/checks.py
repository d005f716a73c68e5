"""What users give to runs, checked: the values, or an error that says what to give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from deadstop.core.policy import CancelPolicy
from deadstop.errors import RunAlreadyOpenError, UnknownRunError, UsageError
from deadstop.kinds import register as kinds

if TYPE_CHECKING:
    from deadstop.runs.run import BaseRun

__all__ = [
    "LONGEST",
    "NOTHING",
    "already_open",
    "checked_actors",
    "checked_facts",
    "checked_for_others",
    "checked_name",
    "checked_new_name",
    "checked_policy",
    "checked_seconds",
    "cut_off_by",
    "entered_before",
    "no_target",
    "unknown",
    "wrong_with",
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


NOTHING = (None, None, None)
"""What most say of a cancel. There is nothing to check then, and a function more shows (see `strike`)."""


def checked_facts(
    reason: Any, actor: Any, request_id: Any = None
) -> tuple[Optional[str], Optional[str], Optional[str]]:
    """What is said of a cancel: text, or `UsageError`. It goes into errors, records and logs that take nothing else."""
    facts = (reason, actor, request_id)
    for what, said, such in zip(("reason", "actor", "request_id"), facts, ("user pressed stop", "u-7", "stop-1")):
        if said is not None and not isinstance(said, str):
            raise UsageError(f"{what} is {said!r}: give text, such as {such!r}. Nothing was cancelled.")
    return facts


def cut_off_by(name: str, call: Any) -> UsageError:
    """The error for who reads a stream on whose scope was left."""
    return UsageError(
        f"The stream of {call.method} {call.path} was closed because its run scope {name!r} was left. Read it to its "
        "end inside the `with` block, or open no scope around it."
    )


def entered_before(name: str) -> UsageError:
    """The error for the second `with` of a run."""
    return UsageError(f"Run {name!r} was entered before. Open a run for each `with` block.")


def already_open(name: str) -> RunAlreadyOpenError:
    """The error for a name that is in use."""
    return RunAlreadyOpenError(
        f"A run named {name!r} is open already. Give each run a name of its own, such as the id of the request that it "
        "answers, or leave the first one before you open the next.",
        run=name,
    )


def wrong_with(run: BaseRun, right: str, wrong: str) -> UsageError:
    """The error for a scope that is entered by `wrong`. It gives its name back: nobody will ever leave it."""
    if run._entered is None:
        run.end()
    sort = "an async" if right == "async with" else "a sync"
    return UsageError(f"Run {run.name!r} is of {sort} client, so it is entered by `{right}`, not by `{wrong}`.")


def unknown(name: str, live: list[str], kept: int) -> UnknownRunError:
    """The error for a name that no run has; `live` are those there are."""
    known = ", ".join(map(repr, live[:5])) or "none"
    return UnknownRunError(
        f"No run named {name!r} is known to this client. A run is known while its scope is open, and for the last "
        f"{kept} after that, to the client that opened it and its copies. Open here: {known}.",
        run=name,
    )


def no_target(target: Any) -> UnknownRunError:
    """The error for a thing that stands for no run."""
    return UnknownRunError(
        f"There is nothing to cancel in {type(target).__name__!r}: give the name of a run, a run, a stream that came "
        "from this client, the address of a remote run, such as 'response:resp_123', or the object that the SDK "
        "gave for it."
    )
