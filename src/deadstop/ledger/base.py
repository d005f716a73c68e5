"""The ledger's interface: what can be recorded, and what can be asked.

Rules that hold for every home:

- A call that returned has been kept: after a crash of the process it is there (``memory:`` ends with the process).
  A call that raised has changed nothing, but for ``LedgerUnavailable`` during a commit, after which it may or may not
  be there; every operation can be repeated safely.
- Every call is synchronous, may block for up to ``patience`` seconds on a disk or a network, and may be made from any
  thread; from a coroutine, make it in a worker thread. Never call from a signal handler: there are locks inside.
- Every ``now`` is unix seconds and comes from the caller. The ledger reads no clock to decide what is recorded.
- A run is known by its name and its epoch, which counts the lives of that name from 1. Where ``epoch`` is 0, as it is
  in an ``Intent`` that does not say, the newest life that can be cancelled is meant. Epochs of runs that the retention
  has forgotten may be used again.
- No prompts, outputs or keys come in here. Text is kept as UTF-8 without NUL, since Postgres has none.

Each raises ``LedgerUnavailable`` when its home can't be read or written now.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Callable, Optional, TypeVar

from deadstop.core.model import Attempt, CancelReceipt, Intent
from deadstop.ledger.facts import (
    AttemptRecord,
    Flight,
    IntentRecord,
    Opening,
    OutcomeRecord,
    Process,
    Recorded,
    Refusal,
    RemoteRun,
    Revival,
    RunRecord,
    Settled,
)

__all__ = ["Claim", "Ledger"]

L = TypeVar("L", bound="Ledger")
C = TypeVar("C", bound="Claim")


def _nothing() -> None:
    pass


class Claim(ABC):
    """The sole right to act on a run's cancel, until ``release()``, the end of the ``with`` block, or the process's
    death. SQLite: which frees it at once; a stopped process keeps it. Postgres: it is a lease, renewed all the time, so
    a process that was killed, stopped or cut off loses it within ``deadstop.ledger.leases.LEASE`` seconds."""

    run: str
    settled = False
    """Set before `release()` where the cancel has its final outcome, on record."""

    @property
    @abstractmethod
    def held(self) -> bool:
        """Whether it still stands. Ask before each request that is sent. Never blocks."""

    @property
    def left(self) -> float:
        """For how many seconds it stands at the least, whatever happens: a request has to be over by then."""
        return math.inf if self.held else 0.0

    @abstractmethod
    def release(self) -> None:
        """Give it back. Again is fine. Never raises."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class Ledger(ABC):
    """The durable record of one home. Made by ``deadstop.ledger.connect(url)``; close it, or use it in a ``with``."""

    url: str
    """Its address, without any password."""

    lost: Callable[[], object] = staticmethod(_nothing)
    """Called when the home turns out to be another one than before, which has nothing of what was put in: the file of
    SQLite was taken away. Those that `enter`ed are in it, before anything else. It must not block, nor use the ledger;
    it may be called twice."""

    @abstractmethod
    def refresh(self) -> None:
        """See whether the home is another one than before. Then `lost` has been called when this returns. Cheap."""

    # Processes.

    @abstractmethod
    def enter(self, process: Process, *, now: float) -> None:
        """This process is here, listening at its address. Repeated, it is the sign of life that `orphans` looks at."""

    @abstractmethod
    def leave(self, owner: str, *, now: float) -> None:
        """That process has ended, or was found dead (its socket refuses). Its open runs no longer count as live."""

    @abstractmethod
    def processes(self) -> list[Process]:
        """Those that have not left, oldest first."""

    @abstractmethod
    def has_left(self, owner: str) -> bool:
        """Whether that process is on record as one that has left."""

    # Runs. A run that nobody cancels and that has no remote run need not be recorded at all.

    @abstractmethod
    def open_run(self, opening: Opening) -> RunRecord:
        """Record the run, and give it its epoch. Again, by the same owner and before `close_run`: the same record.

        A tombstone under that name is taken up: then the record's ``intent`` is there, and the run is born cancelled.
        One by an actor whom ``cancellers`` leaves out is refused instead, on record.
        """

    @abstractmethod
    def take_tombstone(self, opening: Opening) -> Optional[IntentRecord]:
        """As `open_run` if there is a tombstone under that name that has not expired; else nothing, at the price of a
        read."""

    @abstractmethod
    def close_run(self, run: str, epoch: int, *, now: float) -> None:
        """The scope has been left. Its remote runs go on."""

    @abstractmethod
    def record_remote(self, remote: RemoteRun, opening: Optional[Opening] = None, *, now: float) -> RemoteRun:
        """Record a remote run as soon as its id is known; return it as recorded, with its epoch filled in.

        ``opening`` records its run in the same transaction, and gives the epoch. Without it ``remote.epoch`` counts. A
        cancel of the run is recorded either before this, so that `intent` finds it now (I12), or after this, and
        finds the remote run. Recorded again it is what it was, with the newer status.

        Raises UsageError for ids that are empty or hold a slash, UnknownRunError for an epoch that is not there.
        """

    @abstractmethod
    def remote_status(self, remote: RemoteRun, status: Optional[str], *, terminal: bool, now: float) -> bool:
        """Note a status that was read. False, and nothing changes, if it was known to be over, or is unknown."""

    @abstractmethod
    def record_revival(self, remote: RemoteRun, status: Optional[str], *, by: str, now: float) -> None:
        """The remote run is at work although its cancel was confirmed. The outcome stays; the run is active again.

        Raises UnknownRunError if its run was never cancelled.
        """

    # Cancels.

    @abstractmethod
    def record_intent(
        self,
        intent: Intent,
        by: Process,
        *,
        opening: Optional[Opening] = None,
        park_until: Optional[float] = None,
        now: float,
    ) -> Recorded:
        """Record the wish to cancel, and with it close the fence of that epoch, in one transaction.

        ``intent.deadline`` and ``intent.at`` are unix seconds (the deadline may be infinite). The run is, in this
        order: that of ``opening``, which is recorded if need be; that of ``intent.epoch``; the newest live one of that
        name; the tombstone of that name; a new tombstone, if ``park_until`` is in the future.

        A later cancel of the same epoch joins the first: cause, reason and actor stay (I10), level and deadline only
        get stronger (I11), and it is kept in ``later``. A request id that this run has seen gives the same record and
        changes nothing (I8), also after the end. Without one, it gets one.

        Raises UnknownRunError if there is no such run to cancel and none to park for; CancelRefusedError if the cause
        is ``user`` and the run names its cancellers and ``intent.actor`` is not among them: that is on record, and
        nothing else has changed (I19).
        """

    @abstractmethod
    def intent(self, run: str, epoch: int = 0) -> Optional[IntentRecord]:
        """The intent of that epoch; of the newest one that has an intent, if 0."""

    @abstractmethod
    def give_up(self, run: str, epoch: int, *, by: str, now: float) -> bool:
        """The run's owner ``by`` does nothing more about its cancel, and may live on: it is anybody's (``left``).

        False, and nothing changes, if that is known, if ``by`` is not the owner, or if the outcome is final.
        """

    @abstractmethod
    def retract(self, run: str, epoch: int, request_id: str) -> bool:
        """A cancel that waits for a run to be opened waits no longer: its record goes.

        False, and nothing changes, if a run has taken it up. One that others have joined since stays.
        """

    @abstractmethod
    def open_intents(self, *, since: float = 0.0, limit: int = 1000) -> list[IntentRecord]:
        """Those that need work, oldest first: without an outcome, or unconfirmed and not refined yet. No tombstones.

        ``since`` leaves out those recorded before it: that is how old ones are given up.
        """

    @abstractmethod
    def parked(self, *, now: float, limit: int = 1000) -> list[IntentRecord]:
        """The tombstones that have not expired, oldest first: cancels of runs that nobody has recorded yet."""

    @abstractmethod
    def begin_attempt(self, run: str, epoch: int, target: str = "", *, by: str, now: float) -> int:
        """A request is about to be sent. Returns its number for that target, counted from 1 over all processes."""

    @abstractmethod
    def record_attempt(self, run: str, epoch: int, attempt: Attempt, target: str = "", *, by: str) -> None:
        """What is known of the attempt of that number. Its times are unix seconds. Again: the newer facts."""

    @abstractmethod
    def attempts(self, run: str, epoch: int) -> list[AttemptRecord]:
        """Every attempt of every process, as they were started."""

    @abstractmethod
    def settle(self, receipt: CancelReceipt, epoch: int, *, by: str, now: float) -> Settled:
        """Record the outcome of the cancel of ``receipt.run``, whole. Written once (I5): who comes later gets what is
        there. Only ``unconfirmed`` is refined, once, by ``cancelled`` or ``finished_first`` (I6).

        An unconfirmed receipt without a diagnosis gets the class ``unknown`` (I17).

        Raises UsageError for an outcome that is no end (``sent``, ``accepted``), UnknownRunError without an intent.
        """

    @abstractmethod
    def claim(self, run: str) -> Optional[Claim]:
        """The right to act on this run's cancel, or None if somebody has it. Does not wait.

        memory: among the threads of this ledger. SQLite: the process that makes the first claim is the reconciling one
        of that file, until it has given back all its claims; others get None. Postgres: over the whole fleet.
        """

    # Single flight, and limits.

    @abstractmethod
    def take_off(self, flights: Sequence[Flight], *, by: str, now: float) -> set[str]:
        """Which of these requests may be sent, by their tokens: of a remote run one at a time, over all processes and
        whatever it is cancelled by, its address or any scope (I7).

        It is told apart by its server, kind and ids. The right ends with `land`, when its owner leaves, and by itself.
        Postgres: by the database's clock.
        """

    @abstractmethod
    def land(self, tokens: Sequence[str]) -> None:
        """Those requests are over. Again is fine."""

    @abstractmethod
    def admit(
        self,
        server: str,
        permit: str,
        *,
        at_once: int,
        per_second: float,
        lasts: float,
        by: str,
        deadline: float,
        now: float,
    ) -> Optional[float]:
        """A place among the requests that all processes send to ``server``: at most ``at_once`` of them under way, and
        ``per_second`` begun in each second, evenly spaced (0: no limit).

        Returns when (unix seconds) the request may be sent: now, or later. None if no place is free now, or none before
        ``deadline``: ask again. The place is ``permit``'s until `dismiss`, until its owner leaves, or for ``lasts``
        seconds, which no request may take longer than.
        """

    @abstractmethod
    def dismiss(self, permit: str) -> None:
        """The request is over. Again is fine."""

    # Listings: newest first unless said otherwise, at most ``limit``.

    @abstractmethod
    def runs(self, run: Optional[str] = None, *, ended: bool = False, limit: int = 100) -> list[RunRecord]:
        """What is live: open, with remote runs at work, with a cancel under way, parked. With ``ended``, all."""

    @abstractmethod
    def life(self, run: str, epoch: int) -> Optional[RunRecord]:
        """That life of a run: who held it, and when. Its cancel and its remote runs are asked for apart."""

    @abstractmethod
    def remotes(self, run: str, epoch: int) -> list[RemoteRun]:
        """The remote runs of that run, oldest first."""

    @abstractmethod
    def remote(self, base_url: str, kind: str, ids: tuple[str, ...]) -> Optional[RemoteRun]:
        """The remote run at that exact address, and the run that it is on record under."""

    @abstractmethod
    def remotes_named(self, kind: str, ids: tuple[str, ...]) -> list[RemoteRun]:
        """What is on record of that remote run: once for each server that has one of those ids."""

    @abstractmethod
    def active_remotes(self, *, limit: int = 1000) -> list[RemoteRun]:
        """Every remote run that is not known to be over, oldest first."""

    @abstractmethod
    def orphans(self, *, silent: float, now: float, limit: int = 1000) -> list[RemoteRun]:
        """Remote runs to cancel because their owner died: it left, or gave no sign of life for ``silent`` seconds, and
        the grace of their run has passed since. Only of runs that ask for it (``Orphans.CANCEL``), without an intent.
        """

    @abstractmethod
    def receipts(self, run: Optional[str] = None, *, since: float = 0.0, limit: int = 100) -> list[OutcomeRecord]:
        """Outcomes, with their receipts; of a refined one the refinement."""

    @abstractmethod
    def refusals(self, run: Optional[str] = None, *, limit: int = 100) -> list[Refusal]:
        """Cancels that were refused (I19)."""

    @abstractmethod
    def revivals(self, run: str, epoch: int) -> list[Revival]:
        """Remote runs of that run that came back to life, oldest first."""

    # Keeping house.

    @abstractmethod
    def sweep(self, *, before: float, now: float, limit: int = 500) -> int:
        """Forget what ended before ``before``: one batch, at most ``limit`` runs, in one short transaction. Returns how
        many things went; call again until it is 0. Expired tombstones are settled as ``parked`` first.

        An intent without an outcome is never forgotten (I3).
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. Again is fine. Later calls raise LedgerUnavailable."""

    def __enter__(self: L) -> L:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()
