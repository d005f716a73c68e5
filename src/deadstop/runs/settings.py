"""Where a cancel's policy comes from: the code, the environment, a file."""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Mapping
from typing import Any, Optional

from deadstop.core.policy import CancelPolicy, policy_from
from deadstop.errors import UsageError
from deadstop.kinds.register import defaults

__all__ = ["DRAINS", "SETTINGS", "policy_in_force"]

_DRAINS = ("DEADSTOP_DRAIN", "DEADSTOP_CALL_DRAIN", "DEADSTOP_CONFIG")
DRAINS = frozenset((*_DRAINS, *(name.encode() for name in _DRAINS)))  # as the system keeps them, either way
SETTINGS = getattr(os.environ, "_data", os.environ).keys()
"""The names of the settings as they are now, to be looked at before a strike: `SETTINGS.isdisjoint(DRAINS)` says that
none has a `drain` for calls."""


def policy_in_force(kind: str = "call", **explicit: Any) -> CancelPolicy:
    """The policy for `kind`: explicit arguments over the environment over the file over the defaults.

    The environment has `DEADSTOP_TIMEOUT`, `DEADSTOP_GRACE`, ... (seconds), and for one kind
    `DEADSTOP_BATCH_TIMEOUT`, ...; `DEADSTOP_CONFIG` names a file, TOML (Python 3.11, or with `tomli`) or JSON.
    Raises `UsageError`, naming the setting and where it came from.
    """
    # Each cancel asks, and decoding every variable takes longer than all the rest of this.
    raw = getattr(os.environ, "_data", None)
    if raw is not None and not explicit and not any(name[:9] in (b"DEADSTOP_", "DEADSTOP_") for name in list(raw)):
        return _defaults(kind)
    ours = {name: value for name, value in os.environ.items() if name.startswith("DEADSTOP_")}
    if ours or explicit:
        return policy_from(ours, _file(ours.get("DEADSTOP_CONFIG")), kind=kind, kinds=defaults(), **explicit)
    return _defaults(kind)


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
