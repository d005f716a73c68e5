"""The frozen facts: intents, attempts, calls, diagnoses and receipts.

Times named ``at``, ``started``, ``ended`` and ``deadline`` are seconds on the shell's monotonic clock; every
other time is a duration in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any


class Word(str, Enum):
    """A str-valued enum that prints and formats as its plain value on every Python."""

    __str__ = str.__str__
    __hash__ = str.__hash__  # Enum's own is Python code, and the transition table is looked up by it

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self, format_spec)


class Outcome(Word):
    """What a cancel came to."""

    CANCELLED = "cancelled"
    FINISHED_FIRST = "finished_first"
    ACCEPTED = "accepted"
    SENT = "sent"
    PARKED = "parked"
    UNCONFIRMED = "unconfirmed"


class Level(Word):
    """How far a cancel must get before its caller is answered. ``rank`` orders them by strength."""

    SENT = "sent"
    ACCEPTED = "accepted"
    CONFIRMED = "confirmed"

    @property
    def rank(self) -> int:
        return ("sent", "accepted", "confirmed").index(self.value)


class Evidence(Word):
    """What an outcome rests on."""

    TRANSPORT = "transport"
    STATUS = "status"
    EVENTS = "events"
    ENGINE = "engine"
    NONE = "none"

    @property
    def rank(self) -> int:
        """How much it says of a remote run, against the others. What has happened in this process is certain."""
        return ("none", "status", "events", "engine", "transport").index(self.value)


class RunStatus(Word):
    """What a provider's status word means. ``gone``: it answered that it knows no such run."""

    ACTIVE = "active"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    FINISHED = "finished"
    GONE = "gone"
    UNKNOWN = "unknown"

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, one way or another."""
        return self in (RunStatus.CANCELLED, RunStatus.FINISHED)


class Cause(Word):
    """Who or what asked for the cancel."""

    USER = "user"
    DEADLINE = "deadline"
    PARENT = "parent"
    SIGNAL = "signal"
    SHUTDOWN = "shutdown"


class ServerWork(Word):
    """What is known of the server's work after the cancel."""

    STOPPED = "stopped"
    UNKNOWN = "unknown"
    RUNS_ON = "runs_on"


class Streamed(Word):
    """How the call went to the server.

    ``asked``: the user asked for a stream. ``inside``: streamed inside and reassembled. ``refused``: the
    server refused to stream inside. ``plain``: not streamed.
    """

    ASKED = "asked"
    INSIDE = "inside"
    REFUSED = "refused"
    PLAIN = "plain"


class Phase(Word):
    """Where in its life a call was when the cancel came."""

    CREATED = "created"
    RESOLVING = "resolving"
    CONNECTING = "connecting"
    HANDSHAKING = "handshaking"
    WAITING_FOR_POOL = "waiting_for_pool"
    SENDING = "sending"
    WAITING_FOR_HEADERS = "waiting_for_headers"
    READING = "reading"
    BETWEEN_EVENTS = "between_events"
    BACKING_OFF = "backing_off"
    ENDED = "ended"
    UNKNOWN = "unknown"


class Interrupted(Word):
    """What the interruption acted on."""

    SOCKET = "socket"
    CONNECT = "connect"
    TASK = "task"
    WAKE = "wake"
    FENCE = "fence"
    NOT_STARTED = "not_started"
    NOTHING = "nothing"


class DiagnosisClass(Word):
    """Why a cancel stayed unconfirmed. Each unconfirmed cancel has exactly one."""

    NOT_SENT = "not_sent"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    POOL_WAIT = "pool_wait"
    NETWORK_LOSS = "network_loss"
    RATE_LIMITED = "rate_limited"
    SERVER_OVERLOADED = "server_overloaded"
    SERVER_SLOW = "server_slow"
    SERVER_IGNORED = "server_ignored"
    SENT_TOO_LATE = "sent_too_late"
    WRONG_TARGET = "wrong_target"
    CALLER_BLOCKED = "caller_blocked"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Diagnosis:
    """Why a cancel stayed unconfirmed: one class, with its evidence, cause and fix in sentences."""

    klass: DiagnosisClass
    summary: str
    evidence: tuple[str, ...] = ()
    cause: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.klass}: {self.summary} Fix: {self.fix}"


@dataclass(frozen=True)
class Intent:
    """The wish to cancel, recorded before anything is done about it."""

    run: str
    epoch: int = 0
    cause: Cause = Cause.USER
    reason: str | None = None
    actor: str | None = None
    deadline: float = math.inf
    level: Level = Level.CONFIRMED
    request_id: str | None = None
    at: float = 0.0


@dataclass(frozen=True)
class Attempt:
    """One request of a call or of a cancel, with its timing and network facts.

    ``dns``, ``connect``, ``tls`` and ``first_byte`` are how long each took; None where it never happened or
    was not seen. ``retry_after`` is what the server asked for.
    """

    number: int
    started: float
    ended: float | None = None
    dns: float | None = None
    connect: float | None = None
    tls: float | None = None
    first_byte: float | None = None
    status: int | None = None
    request_id: str | None = None
    retry_after: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Delivered:
    """What callers had been given before the fence closed: in the run and below it, by what is over as well.

    ``chunks`` are the events of the SDK's streams, ``characters`` those of the text in them. Not counted: the lines or
    bytes that a caller reads off a raw response, an answer that was not streamed, and what a stream helper makes of
    one event.
    """

    chunks: int = 0
    characters: int = 0


@dataclass(frozen=True)
class CallFacts:
    """One in-flight call of a cancelled run: where it was, what was done to it, what came of it.

    ``released``: its caller is free. ``socket_closed``: the connection of its last request is closed, by us or by the
    peer; False where it is kept for other calls, and where there was none. ``note`` is a sentence on anything out of
    the ordinary, such as a connection that is shared with other calls. ``host`` is where it went, with the port where
    that is not the usual one. ``elapsed`` is how long (seconds) it took to its end, or has taken so far. ``usage`` is
    what the stream has told of it, before the cancel or while it was drained.
    """

    id: str
    method: str
    path: str
    phase: Phase = Phase.UNKNOWN
    interrupted: Interrupted = Interrupted.NOTHING
    streamed: Streamed = Streamed.PLAIN
    server_work: ServerWork = ServerWork.UNKNOWN
    released: bool = False
    socket_closed: bool = False
    chunks: int = 0
    characters: int = 0
    elapsed: float = 0.0
    note: str | None = None
    attempt: Attempt | None = None
    host: str | None = None
    usage: dict[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Orphan:
    """A remote run that may exist though nobody knows its id: the answer to its create was lost.

    ``suspects`` is how many of them there may be: the SDK sends a create again whose answer was lost. ``sent_at`` is
    when the first one left (unix seconds); ``look`` is a sentence on where to look for it.
    """

    kind: str
    method: str
    path: str
    sent_at: float | None = None
    suspects: int = 1
    look: str = ""


@dataclass(frozen=True)
class CancelReceipt:
    """The record of one cancel.

    ``kind`` is that of a remote run; None for a scope or a call. ``attempts`` are its cancel requests, ``reads`` its
    status reads. ``status`` is the provider's own word. ``orphan_suspect`` is there when the answer to a create was
    lost. ``server`` is the make of the server as far as it is known, ``server_work`` what is known of its work on a
    remote run (a call's is in ``calls``), ``note`` a sentence on it. ``revivals`` are statuses read after the run had
    been read as cancelled: (unix seconds, the word). ``usage`` is what the provider reported of all the calls that
    were under way, or None: unknown, not zero. Most tell it at the end of a stream, which a cancel cuts off, unless the
    policy has a ``drain``. ``evidence`` is what ``outcome`` rests on. ``diagnosis`` is there when the outcome is
    ``unconfirmed``, and when a remote run ``finished_first``. ``reason``, ``actor`` and ``cause`` are the first
    cancel's; ``later`` holds the (reason, actor) of those that came after it.
    """

    run: str
    outcome: Outcome
    status: str | None = None
    reason: str | None = None
    actor: str | None = None
    cause: Cause = Cause.USER
    level: Level = Level.CONFIRMED
    attempts: tuple[Attempt, ...] = ()
    elapsed: float = 0.0
    delivered: Delivered = Delivered()
    usage: dict[str, Any] | None = field(default=None, hash=False)
    evidence: Evidence = Evidence.NONE
    diagnosis: Diagnosis | None = None
    calls: tuple[CallFacts, ...] = ()
    children: tuple[CancelReceipt, ...] = ()
    later: tuple[tuple[str | None, str | None], ...] = ()
    request_id: str | None = None
    kind: str | None = None
    reads: tuple[Attempt, ...] = ()
    orphan_suspect: Orphan | None = None
    revivals: tuple[tuple[float, str], ...] = ()
    server: str | None = None
    server_work: ServerWork = ServerWork.UNKNOWN
    note: str | None = None

    @property
    def ok(self) -> bool:
        """True when the run is known to be over: cancelled, or finished before the cancel."""
        return self.outcome in (Outcome.CANCELLED, Outcome.FINISHED_FIRST)

    def to_dict(self) -> dict[str, Any]:
        """The receipt as JSON-ready data: enums as their values, tuples as lists."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def __str__(self) -> str:
        facts = [f"in {_duration(self.elapsed)}", f"evidence {self.evidence}"]
        if self.status:
            facts.append(f"status {self.status}")
        for name, things in (
            ("call", self.calls),
            ("attempt", self.attempts),
            ("read", self.reads),
            ("child", self.children),
        ):
            if things:
                plural = {"child": "children"}.get(name, name + "s")
                facts.append(f"{len(things)} {name if len(things) == 1 else plural}")
        if self.delivered.chunks:
            facts.append(f"{self.delivered.chunks} chunks delivered")
        if self.orphan_suspect:
            facts.append("orphan suspect")
        revived = [each for each in (self, *self.children) if each.revivals]
        facts += [f"came back to life as {each.revivals[-1][1]}" for each in revived]
        if self.diagnosis:
            facts.append(f"diagnosis {self.diagnosis.klass}")
        if self.reason:
            facts.append("reason " + repr(self.reason))
        if self.actor:
            facts.append(f"by {self.actor}")
        return f"Run {self.run!r}: {self.outcome.replace('_', ' ')}, {', '.join(facts)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    return value


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
