"""Where a cancel's policy comes from: the code, the environment, a file."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any, Optional

from deadstop.core.policy import CancelPolicy, policy_from
from deadstop.errors import UsageError
from deadstop.kinds.register import defaults

__all__ = ["DRAINS", "SETTINGS", "check_settings", "others", "policy_at_hand", "policy_in_force"]

log = logging.getLogger("deadstop")

_DRAINS = ("DEADSTOP_DRAIN", "DEADSTOP_CALL_DRAIN", "DEADSTOP_CONFIG")
DRAINS = frozenset((*_DRAINS, *(name.encode() for name in _DRAINS)))  # as the system keeps them, either way
SETTINGS = getattr(os.environ, "_data", os.environ).keys()
"""The names of the settings as they are now. `SETTINGS.isdisjoint(DRAINS)` says that none has a `drain` for calls."""


def policy_in_force(kind: str = "call", **explicit: Any) -> CancelPolicy:
    """The policy for `kind`: explicit arguments over the environment over the file over the defaults.

    The environment has `DEADSTOP_TIMEOUT`, `DEADSTOP_GRACE`, ... (seconds), and for one kind
    `DEADSTOP_BATCH_TIMEOUT`, ...; `DEADSTOP_CONFIG` names a file, TOML (Python 3.11, or with `tomli`) or JSON.
    Raises `UsageError`, naming the setting and where it came from.
    """
    ours = _ours() if explicit or _raw() else {}
    if ours or explicit:
        return _from(ours, _file(ours.get("DEADSTOP_CONFIG")), kind=kind, kinds=defaults(), **explicit)
    return _defaults(kind)


def _from(ours: Mapping[str, str], file: Optional[Mapping[str, Any]], **more: Any) -> CancelPolicy:
    """The policy that both give. What is wrong with the file's part is said with the file's name."""
    try:
        return policy_from(ours, file, **more)
    except UsageError as error:
        wrong = str(error)
    policy_from(ours, **more)  # raises, unless it is the file
    raise UsageError(f"{wrong} It is in {ours.get('DEADSTOP_CONFIG')!r}, which DEADSTOP_CONFIG names.")


def policy_at_hand(kind: str = "call") -> CancelPolicy:
    """The policy for `kind`, for a cancel that is under way: a setting that went bad is left out, and logged once.

    Raising would leave the cancel half done. That settings are right is seen to before (`check_settings`).
    """
    try:
        return policy_in_force(kind)
    except UsageError as error:
        complaint = str(error)
    if complaint not in _complained:
        _complained.add(complaint)
        log.warning("A setting is left out, since it can't be used: %s", complaint)
    ours = _ours()
    make = functools.partial(_usable, kind=kind, kinds=defaults())
    good = {name: value for name, value in ours.items() if make({name: value}) is not None}
    return make(good, ours.get("DEADSTOP_CONFIG")) or make(good) or _defaults(kind)


def _usable(env: Mapping[str, str], path: Optional[str] = None, **more: Any) -> Optional[CancelPolicy]:
    try:
        return policy_from(env, _file(path), **more)
    except UsageError:
        return None


def check_settings(*, opening: bool = False) -> None:
    """Raise `UsageError` if a setting can't be used, for whatever kind of run: before there is anything to cancel.

    A file may name kinds that are not registered yet, until a scope is opened (`opening`).
    """
    try:  # as with nearly each scope that is opened: a name that comes is the last one
        names = reversed(_names)
        if len(_names) == others and next(names) is _last[0] and next(names) is _last[1] and os.environ is _environ:
            return
    except (StopIteration, RuntimeError):  # there are fewer; they are just changing
        pass
    raw = _raw()
    if not raw:
        return
    kinds = defaults()
    known = (opening, raw, frozenset(kinds))
    known_then, path, stamp = _checked.get("it", (None, None, None))
    if known == known_then and stamp == _stamp(path):
        return
    ours = _ours()
    path = ours.get("DEADSTOP_CONFIG")
    stamp, file = _stamp(path), _file(path)
    named = (file or {}).get("kinds")
    if not opening and isinstance(named, Mapping):
        kinds = {**{str(name): {} for name in named}, **kinds}
    for kind in ("call", *kinds):
        _from(ours, file, kind=kind, kinds=kinds)
    _checked["it"] = (known, path, stamp)


_complained: set[str] = set()
_others: frozenset[Any] = frozenset()  # names that are no settings of ours
others = -1
"""How many names there were when a scope was opened last, and none was a setting of ours; -1: one was. While it is as
many, `SETTINGS` need not be searched."""
_environ = os.environ  # whose they are: tests put another one in its place
_names: Any = getattr(os.environ, "_data", {"": None})
_last: tuple[Any, Any] = (None, None)
"""The last two of them then, the very objects: a name that comes is put behind them. (Two, because Python has but one
object for a name of one letter, such as the shell's `_`.)"""
_checked: dict[str, tuple[Any, Any, Any]] = {}  # what was found right


def _newest() -> tuple[Any, Any]:
    try:
        names = reversed(_names)
        return next(names), next(names)
    except (StopIteration, RuntimeError):
        return None, None


def _raw() -> tuple[Any, ...]:
    """Our variables as the system keeps them: each cancel asks, and decoding all of them takes longer than the rest."""
    global _last, _others, others
    count, last = len(_names), _newest()  # first: one that comes meanwhile is to be seen the next time
    if _others >= SETTINGS and os.environ is _environ:
        others, _last = count, last
        return ()
    raw = getattr(os.environ, "_data", None) or dict(os.environ)
    names = list(raw)
    prefix: Any = b"DEADSTOP_" if names and isinstance(names[0], bytes) else "DEADSTOP_"
    ours = tuple([(name, raw.get(name)) for name in names if name.startswith(prefix)])
    others, _last = -1 if ours else len(names), last
    if not ours:
        _others = frozenset(names)
    return ours


def _stamp(path: Optional[str]) -> Any:
    try:
        found = os.stat(path) if path else None
    except OSError:  # said by who reads it
        return None
    return found and (found.st_mtime_ns, found.st_size)


def _ours() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("DEADSTOP_")}


@functools.lru_cache(maxsize=64)
def _defaults(kind: str) -> CancelPolicy:
    return policy_from({}, kind=kind, kinds=defaults())


def _file(path: Optional[str]) -> Optional[Mapping[str, Any]]:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UsageError(f"DEADSTOP_CONFIG names {path!r}, which can't be read: {error.strerror}.") from error
    try:
        data = json.loads(content) if path.endswith(".json") else _toml(path).loads(content.decode())
    except ValueError as error:  # TOMLDecodeError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"DEADSTOP_CONFIG names {path!r}, which is not well formed: {error}.") from error
    if not isinstance(data, Mapping):
        raise UsageError(f"DEADSTOP_CONFIG names {path!r}, which holds no table of settings.")
    return data


def _toml(path: str) -> Any:
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UsageError(f"To read {path!r}, use Python 3.11 or later, install tomli, or write the settings as JSON.")
