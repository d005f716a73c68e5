"""A server with too much to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deadstop.testing.faults.base import Fault
from deadstop.testing.render_other import error

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange


@dataclass(frozen=True)
class Overloaded(Fault):
    """Refuses with `status` (429 or 503), a Retry-After header of `retry_after`, and `body` as the JSON."""

    status: int = 503
    retry_after: str | None = None
    body: Mapping[str, Any] | None = None

    def before_headers(self, exchange: Exchange) -> None:
        headers = {} if self.retry_after is None else {"retry-after": self.retry_after}
        kind = "rate_limit_error" if self.status == 429 else "server_error"
        refusal = error("The server is overloaded. Please try again later.", kind=kind)
        exchange.answer(self.status, refusal if self.body is None else self.body, headers)
