"""What a member of the fleet asks of those that hold runs in its process."""

from __future__ import annotations

from typing import Any, Protocol

from deadstop.ledger.facts import IntentRecord

__all__ = ["Holder", "Message"]

Message = dict[str, Any]


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
