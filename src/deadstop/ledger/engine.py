"""What a home must do for the book: run its queries in transactions, and hand out claims."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional, Protocol, TypeVar

from deadstop.ledger.base import Claim

__all__ = ["Announcement", "Engine", "Transaction"]

T = TypeVar("T")


class Announcement(NamedTuple):
    """A cancel as its listeners are told of it: a hint, the record counts. ``left``: seconds to its deadline, or None
    (clocks of hosts differ); ``by``: the process that asked."""

    run: str
    request_id: str
    by: str
    left: Optional[float]


class Transaction(Protocol):
    """Named queries, run inside one transaction."""

    def one(self, query: str, **values: Any) -> Optional[Any]:
        """The first row, or None."""

    def all(self, query: str, **values: Any) -> list[Any]:
        """Every row."""

    def do(self, query: str, **values: Any) -> int:
        """How many rows were changed."""

    def lock(self, run: str) -> None:
        """Until the end of the transaction, nobody else writes about this run."""

    def insert(self, queries: tuple[str, ...], told: Announcement, **values: Any) -> None:
        """Several inserts, none of which sees the rows of the others. With the commit, whoever listens is told of the
        cancel, where the home has a way to. One round trip at the most."""


class Engine(Protocol):
    """One home. Every error of its driver comes out as a LedgerError."""

    url: str

    begun: Callable[[Transaction], object]
    """What is done first in the first transaction of what may be another home than before: of a new connection to a
    file. May be called again."""

    def refresh(self) -> None:
        """If the home is another one than before, begin there."""

    def write(self, job: Callable[[Transaction], T]) -> T:
        """Run ``job`` in one transaction and commit; what it raises rolls back. It may be run more than once."""

    def read(self, job: Callable[[Transaction], T]) -> T:
        """Run ``job`` against what is committed."""

    def claim(self, run: str) -> Optional[Claim]: ...

    def close(self) -> None: ...
