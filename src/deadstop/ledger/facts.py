"""What goes into the ledger and what comes out of it: frozen facts.

Every time in here is in unix seconds (wall clock): the monotonic clock of one process means nothing to another.
``deadstop.core.model`` has the facts that the ledger shares with the rest: Intent, Attempt, CancelReceipt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from deadstop.core.model import CancelReceipt, Intent, Outcome, Word

__all__ = [
    "AttemptRecord",
    "Flight",
    "IntentRecord",
    "Opening",
    "Orphans",
    "OutcomeRecord",
    "Process",
    "Recorded",
    "Refusal",
    "RemoteRun",
    "Revival",
    "RunRecord",
    "Settled",
]


class Orphans(Word):
    """What becomes of a remote run whose owner died."""

    LEAVE = "leave"
    CANCEL = "cancel"


@dataclass(frozen=True)
class Process:
    """One process, for as long as it lives.

    ``owner`` is a token that no other process has or will have, such as ``host:pid:start``: pids come back.
    ``address`` is where it listens for cancels, if it does. ``entered_at`` and ``seen_at`` are filled in by the ledger.
    """

    owner: str
    host: str
    pid: int
    address: Optional[str] = None
    entered_at: float = 0.0
    seen_at: float = 0.0


@dataclass(frozen=True)
class Opening:
    """A run as its holder knows it.

    ``cancellers`` are the actors who may cancel it; None: anybody. ``orphan_grace`` is in seconds, counted from the
    death of the owner. ``metadata`` is kept as it is, as JSON: None unless the user asks for it.
    """

    run: str
    by: Process
    opened_at: float
    cancellers: Optional[tuple[str, ...]] = None
    orphans: Orphans = Orphans.LEAVE
    orphan_grace: float = 0.0
    metadata: Optional[Mapping[str, Any]] = field(default=None, hash=False)


@dataclass(frozen=True)
class IntentRecord:
    """One recorded wish to cancel: there is one for each life (epoch) of a run, and no more.

    ``intent`` holds the first cancel's cause, reason, actor and request id, and the strongest level and the tightest
    deadline that any asked for. ``later`` are the cancels that came after it, each as it was asked. ``parked_until``
    is there while it is a tombstone. ``outcome`` is None while the cancel is under way. ``left``: the run's owner does
    nothing more about it, though it may live.
    """

    intent: Intent
    by: Process
    parked_until: Optional[float] = None
    outcome: Optional[Outcome] = None
    later: tuple[Intent, ...] = ()
    left: bool = False

    @property
    def run(self) -> str:
        return self.intent.run

    @property
    def epoch(self) -> int:
        return self.intent.epoch

    @property
    def open(self) -> bool:
        """There is something left to do, or to find out: it is no tombstone and has no final outcome."""
        return self.parked_until is None and self.outcome in (None, Outcome.UNCONFIRMED)


@dataclass(frozen=True)
class RunRecord:
    """One life of a run. ``by`` and ``opened_at`` are None for a tombstone: cancelled, and not opened yet.

    ``remotes`` counts its remote runs, ``active`` those that are not known to be over. ``cancelled_at``,
    ``parked_until`` and ``outcome`` are its intent's. ``intent`` is filled in by ``open_run`` alone.
    """

    run: str
    epoch: int
    by: Optional[Process] = None
    opened_at: Optional[float] = None
    closed_at: Optional[float] = None
    cancellers: Optional[tuple[str, ...]] = None
    orphans: Orphans = Orphans.LEAVE
    orphan_grace: float = 0.0
    metadata: Optional[Mapping[str, Any]] = field(default=None, hash=False)
    remotes: int = 0
    active: int = 0
    cancelled_at: Optional[float] = None
    parked_until: Optional[float] = None
    outcome: Optional[Outcome] = None
    intent: Optional[IntentRecord] = None


@dataclass(frozen=True)
class RemoteRun:
    """A run on a server, by its exact address (I9). ``status`` is the provider's word; ``terminal``: it is over.

    ``base_url`` loses its user, password, query and fragment on the way in: no secret is kept.
    """

    kind: str
    ids: tuple[str, ...]
    base_url: str
    run: str
    epoch: int
    owner: str
    created_at: float
    status: Optional[str] = None
    terminal: bool = False
    status_at: Optional[float] = None

    @property
    def ref(self) -> str:
        """Its address: ``response:resp_123``."""
        return f"{self.kind}:{'/'.join(self.ids)}"


@dataclass(frozen=True)
class Flight:
    """One cancel request that is to be the only one under way for its remote run, for ``lasts`` seconds at most.

    ``token`` is its own. ``again``: it was refused before, and is likely to be refused now.
    """

    token: str
    remote: RemoteRun
    lasts: float
    again: bool = False


@dataclass(frozen=True)
class Recorded:
    """What came of ``record_intent``. ``first``: this cancel is the one that closed the fence, and so its caller is
    the one to act. ``repeated``: the same request id was recorded before, and nothing was changed."""

    intent: IntentRecord
    first: bool
    repeated: bool = False


@dataclass(frozen=True)
class AttemptRecord:
    """One request of a cancel. ``target`` is the remote run's ref, or empty; the rest as in ``core.model.Attempt``,
    with ``started`` and ``ended`` in unix seconds."""

    target: str
    number: int
    owner: str
    started: float
    ended: Optional[float] = None
    dns: Optional[float] = None
    connect: Optional[float] = None
    tls: Optional[float] = None
    first_byte: Optional[float] = None
    status: Optional[int] = None
    request_id: Optional[str] = None
    retry_after: Optional[float] = None
    error: Optional[str] = None


@dataclass(frozen=True)
class OutcomeRecord:
    """What a cancel came to. ``revision`` is 1 where an unconfirmed one was refined, else 0."""

    run: str
    epoch: int
    receipt: CancelReceipt
    owner: str
    at: float
    revision: int = 0

    @property
    def outcome(self) -> Outcome:
        return self.receipt.outcome


@dataclass(frozen=True)
class Settled:
    """The recorded outcome, and whether this call recorded it. Where it did not, adopt what is there (I5)."""

    record: OutcomeRecord
    won: bool


@dataclass(frozen=True)
class Refusal:
    """Somebody who may not cancel a run tried to (I19)."""

    run: str
    epoch: int
    actor: Optional[str]
    reason: Optional[str]
    request_id: str
    by: Process
    at: float


@dataclass(frozen=True)
class Revival:
    """A remote run was seen at work again after it had been confirmed as cancelled."""

    run: str
    epoch: int
    base_url: str
    ref: str
    status: Optional[str]
    owner: str
    at: float
