"""What a member of the fleet asks of those that hold runs in its process."""

from __future__ import annotations

import hashlib
from typing import Any, Callable, Protocol

from deadstop.ledger.facts import IntentRecord

__all__ = ["Ears", "Holder", "Message", "question_of"]

Message = dict[str, Any]


def question_of(run: str, request_id: str) -> str:
    """What the answers to a cancel are known by. Not the id of its request: that may be another run's, too, and need
    not be fit for a subject of the bus. Who finds the cancel on record comes to the same."""
    return hashlib.sha256(f"{run}\0{request_id}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Ears(list[Callable[[Message], None]]):
    """All who have asked one question, and wait for its answers."""

    def __call__(self, message: Message) -> None:
        for each in list(self):
            each(message)


class Holder(Protocol):
    """Whoever holds runs in this process: the registry of a client."""

    def holding(self) -> bool:
        """Whether there are runs to be cancelled by name."""

    def knows(self, name: str) -> bool:
        """Whether a run of that name is, or was lately, held here."""

    def took_up(self, message: Message) -> bool:
        """Whether that question was heard here before, and was about a run of this holder."""

    def heard(self, message: Message) -> bool:
        """Another process wants something. Whether it was for this holder, which has answered then. Must not block."""

    def catch_up(self) -> None:
        """Cancels of the runs held here may have been settled by others. May use the ledger."""

    def read_again(self, wanted: list[IntentRecord], parked: list[IntentRecord]) -> None:
        """The open intents, and the tombstones, as they stand. May use the ledger."""

    def forgotten(self) -> None:
        """The ledger has lost all that it had: put what is held here on record anew. Must not block."""

    def forked(self) -> None:
        """This is a child now: the runs that are known here are its parent's. Must not block."""
