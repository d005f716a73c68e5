"""How a cancel behaves: its bounds, its backoff, the defaults of each kind, and where settings come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from deadstop.core.model import Evidence, Level
from deadstop.errors import UsageError

OnTimeout = Literal["raise", "return", "detach", "reset"]


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff between attempts, in seconds.

    The k-th wait is ``initial * multiplier**(k-1)``, at most ``maximum``; ``jitter`` (0 to 1) is the share of
    it that randomness may take off, so that many clients don't come back at once.
    """

    initial: float = 0.25
    maximum: float = 8.0
    multiplier: float = 2.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _number(f"backoff.{each.name}", getattr(self, each.name)))
        if self.maximum < self.initial:
            raise UsageError(
                f"backoff.maximum ({self.maximum:g}) is below backoff.initial ({self.initial:g}): "
                "raise the maximum or lower the initial wait."
            )

    def delay(self, attempt: int, random: float, retry_after: float | None = None) -> float:
        """Seconds to wait after the ``attempt``-th attempt (from 1) failed.

        ``random`` is a number in [0, 1) that the caller draws. The server's ``retry_after`` (seconds) is
        obeyed: the wait is never shorter. The caller compares the result with its deadline.
        """
        if attempt < 1:
            raise UsageError(f"Attempts are numbered from 1, and this is {attempt}.")
        try:
            wait = min(self.maximum, self.initial * self.multiplier ** (attempt - 1))
        except OverflowError:
            wait = self.maximum
        wait *= 1 - self.jitter * random
        if retry_after is not None and retry_after > wait:
            return retry_after
        return wait

    def replace(self, **changes: Any) -> Backoff:
        """A copy with ``changes``, validated. Raises UsageError."""
        return cast(Backoff, _replace(self, changes))


@dataclass(frozen=True)
class CancelPolicy:
    """The bounds of a cancel. All times are seconds.

    - ``timeout``: the whole cancel, from the request to the answer.
    - ``attempt_timeout``: one request of it.
    - ``backoff``: the waits between attempts.
    - ``grace``: how long the gentle way gets before the socket is closed and the wait abandoned.
    - ``poll``: the longest time between two status reads; the first ones follow each other faster.
    - ``wait``: the level that answers the caller: ``sent``, ``accepted`` or ``confirmed``.
    - ``on_timeout``: ``raise`` RunCancellationTimeoutError; ``return`` an ``unconfirmed`` receipt; ``detach``: return
      the receipt as it stands as soon as ``grace`` is spent, while the cancel goes on; ``reset``: replace the client's
      connection pools (as ``runs.reset()`` does), then raise.
    - ``give_up``: how long the cancel of a remote run goes on in the background after its timeout. 0: not at all.
    - ``recheck``: how long after a remote run was read as cancelled its status is read once more, since some have come
      back to life. 0: not at all.
    - ``evidence``: what ``confirmed`` must rest on for a remote run, at the least: ``status`` (the provider's word),
      ``events`` (its event stream), or ``engine`` (a server whose word is known to mean that the work has stopped).
    - ``drain``: how long a cancelled stream may be read on, unseen, to learn its true usage; within the timeout. The
      server is left at work meanwhile. 0: not at all.
    - ``concurrency``: how many cancel requests of remote runs may be under way to one server at once, and ``rate``: how
      many may be sent to it per second, evenly spaced; both over all processes that share the client's ledger, and
      only where it uses one. What has to wait longer than its timeout is ``unconfirmed``. 0: no limit.

    Raises UsageError for a value it can't keep its promise with.
    """

    timeout: float = 10.0
    attempt_timeout: float = 3.0
    backoff: Backoff = field(default_factory=Backoff)
    grace: float = 2.0
    poll: float = 0.25
    wait: Level = Level.CONFIRMED
    on_timeout: OnTimeout = "raise"
    give_up: float = 600.0
    recheck: float = 5.0
    evidence: Evidence = Evidence.STATUS
    drain: float = 0.0
    concurrency: int = 0
    rate: float = 0.0

    if TYPE_CHECKING:  # what is taken is more than what is kept

        def __init__(
            self,
            timeout: float = 10.0,
            attempt_timeout: float = 3.0,
            backoff: Backoff = ...,
            grace: float = 2.0,
            poll: float = 0.25,
            wait: Level | Literal["sent", "accepted", "confirmed"] = Level.CONFIRMED,
            on_timeout: OnTimeout = "raise",
            give_up: float = 600.0,
            recheck: float = 5.0,
            evidence: Evidence | Literal["status", "events", "engine"] = Evidence.STATUS,
            drain: float = 0.0,
            concurrency: int = 0,
            rate: float = 0.0,
        ) -> None: ...

    def __post_init__(self) -> None:
        for each in fields(self):
            # wait="sent" and timeout=5 are welcome: what is kept is a Level and a float.
            object.__setattr__(self, each.name, _setting(each.name, getattr(self, each.name)))

    def replace(self, **changes: Any) -> CancelPolicy:
        """A copy with ``changes``, validated. Raises UsageError."""
        return cast(CancelPolicy, _replace(self, changes))


_NO_KINDS: Mapping[str, Mapping[str, Any]] = {}


def policy_from(
    env: Mapping[str, str],
    file_data: Mapping[str, Any] | None = None,
    *,
    kind: str | None = None,
    kinds: Mapping[str, Mapping[str, Any]] = _NO_KINDS,
    **explicit: Any,
) -> CancelPolicy:
    """The policy in force: explicit arguments over ``env`` over ``file_data`` over the defaults of ``kind``.

    ``kinds`` has the defaults of every kind of remote run; ``call``, an in-flight call, has none of its own.

    ``env`` may hold ``DEADSTOP_TIMEOUT``, ``DEADSTOP_GRACE``, ``DEADSTOP_BACKOFF_INITIAL``, ...; for one kind
    ``DEADSTOP_BATCH_TIMEOUT``, ... An empty value counts as absent. ``file_data`` has the fields of
    CancelPolicy as keys, a ``backoff`` table, and a ``kinds.<kind>`` table of the same. Within one source the
    kind's own setting wins; a nearer source wins over a farther one. An explicit argument of None counts as
    absent.

    Raises UsageError, naming the setting and where it came from.
    """
    known = {"call": {}, **kinds}
    if kind is not None and kind not in known:
        raise _no_kind(kind, known)
    settings: dict[str, Any] = dict(known.get(kind or "", {}))
    backoff: dict[str, Any] = {}
    for source, name, value in (*_from_file(file_data or {}, kind, known), *_from_env(env, kind)):
        table, _, key = name.rpartition(".")
        checked = _number(name, value, source) if table else _setting(name, value, source)
        (backoff if table else settings)[key] = checked
    settings["backoff"] = Backoff(**backoff)
    settings.update((name, value) for name, value in explicit.items() if value is not None)
    _known(settings, CancelPolicy)
    return CancelPolicy(**settings)


_Settings = Iterator[tuple[str, str, Any]]  # (where it came from, "poll" or "backoff.initial", the value)


def _from_env(env: Mapping[str, str], kind: str | None) -> _Settings:
    for prefix in ("DEADSTOP_",) + ((f"DEADSTOP_{kind.upper()}_",) if kind else ()):
        for name in _NAMES:
            variable = prefix + name.upper().replace(".", "_")
            if env.get(variable, "").strip():
                yield variable, name, env[variable].strip()


def _from_file(data: Mapping[str, Any], kind: str | None, known: Iterable[str]) -> _Settings:
    kinds = _table("kinds", data.get("kinds", {}))
    for name in kinds:
        if name not in known:
            raise _no_kind(name, known)
    yield from _from_table("", {name: value for name, value in data.items() if name != "kinds"})
    for name in kinds:
        if name == kind:
            yield from _from_table(f"kinds.{name}.", _table(f"kinds.{name}", kinds[name]))


def _from_table(prefix: str, data: Mapping[str, Any]) -> _Settings:
    for name, value in data.items():
        if name == "backoff":
            for key, each in _table(f"{prefix}backoff", value).items():
                _known({key: each}, Backoff)
                yield f"{prefix}backoff.{key}", f"backoff.{key}", each
        elif not isinstance(value, Mapping):  # a table that is not the policy's is somebody else's
            _known({name: value}, CancelPolicy)
            yield f"{prefix}{name}", name, value


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"[{name}] is {value!r}: make it a table of settings.")
    return value


_SECONDS_ABOVE_ZERO = ("timeout", "attempt_timeout", "poll", "backoff.initial", "backoff.maximum")
_NAMES = (
    *("timeout", "attempt_timeout", "grace", "poll", "wait", "on_timeout", "give_up", "recheck", "evidence", "drain"),
    *("concurrency", "rate"),
    *("backoff.initial", "backoff.maximum", "backoff.multiplier", "backoff.jitter"),
)


def _setting(name: str, value: Any, source: str | None = None) -> Any:
    """``value`` as the field ``name`` of CancelPolicy keeps it. Raises UsageError."""
    said = f"{source or name} is {value!r}"
    if name == "wait":
        try:
            return Level(value)
        except ValueError:
            raise UsageError(f"{said}: give one of 'sent', 'accepted' and 'confirmed'.") from None
    if name == "evidence":
        if value not in ("status", "events", "engine"):
            raise UsageError(f"{said}: give one of 'status', 'events' and 'engine'.")
        return Evidence(value)
    if name == "on_timeout":
        if value not in ("raise", "return", "detach", "reset"):
            raise UsageError(f"{said}: give one of 'raise', 'return', 'detach' and 'reset'.")
        return value
    if name == "backoff":
        if not isinstance(value, Backoff):
            raise UsageError(f"{said}: give a Backoff, such as Backoff(initial=0.5, maximum=4).")
        return value
    number = _number(name, value, source)
    if name == "concurrency":
        if number != int(number):
            raise UsageError(f"{said}: give a whole number of requests, or 0 for no limit.")
        return int(number)
    return number


def _number(name: str, value: Any, source: str | None = None) -> float:
    said = f"{source or name} is {value!r}"
    try:
        if isinstance(value, bool) or (isinstance(value, str) and source is None):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{said}: give a number, such as 2 or 0.5.") from None
    if not math.isfinite(number):
        raise UsageError(f"{said}: give a finite number; every cancel is bounded.")
    if number < 0:
        raise UsageError(f"{said}: it can't be negative.")
    if name in _SECONDS_ABOVE_ZERO and number == 0:
        hint = "; to return without waiting, use wait='sent'" if name == "timeout" else ""
        raise UsageError(f"{said}: give more than 0 seconds{hint}.")
    if name == "backoff.multiplier" and number < 1:
        raise UsageError(f"{said}: give 1 or more, so that the waits never shrink.")
    if name == "backoff.jitter" and number > 1:
        raise UsageError(f"{said}: give a share from 0 to 1.")
    return number


def _no_kind(name: str, known: Iterable[str]) -> UsageError:
    return UsageError(f"There is no kind {name!r}: the kinds are {', '.join(known)}.")


def _known(settings: Mapping[str, Any], cls: Any) -> None:
    names = [each.name for each in fields(cls)]
    for name in settings:
        if name not in names:
            raise UsageError(f"There is no setting {name!r}: the settings are {', '.join(names)}.")


def _replace(policy: Any, changes: Mapping[str, Any]) -> Any:
    _known(changes, type(policy))
    return replace(policy, **changes)
