"""A server that gives up in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deadstop.testing.faults.base import Fault
from deadstop.testing.render_other import error

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class ErrorMidStream(Fault):
    """Ends the stream after `after_tokens` tokens with an event that holds an error, and without `[DONE]`.

    An answer that is not streamed becomes a 500 with the same error.
    """

    after_tokens: int = 0

    def before_token(self, exchange: Exchange, index: int) -> None:
        if index == self.after_tokens:
            exchange.fail(error("The server had an error while processing your request.", kind="server_error"))
