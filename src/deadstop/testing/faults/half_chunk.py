"""A server that sends half of something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class HalfChunk(Fault):
    """Sends `after_tokens` tokens, then half of the next event, then stalls for ever or closes.

    An answer that is not streamed is cut in the middle of its body.
    """

    after_tokens: int = 0
    then: str = "stall"

    def __post_init__(self) -> None:
        if self.then not in ("stall", "close"):
            raise ValueError(f'After half a chunk the server can "stall" or "close", not {self.then!r}.')

    def before_write(self, exchange: Exchange, data: bytes) -> None:
        if exchange.record.tokens_generated > self.after_tokens:
            exchange.send_raw(data[: len(data) // 2])
            if self.then == "close":
                exchange.hang_up()
            exchange.wait(None)
