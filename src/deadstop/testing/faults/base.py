"""What a fault may do: the hooks, in the order in which a request meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deadstop.testing.exchange import Exchange
    from deadstop.testing.run_exchange import RunExchange
    from deadstop.testing.wire import Wire


class Fault:
    """One way of misbehaving: a frozen dataclass that holds its parameters and overrides one hook.

    A hook may wait (`exchange.wait`, `wire.pause`), answer in the server's place (`exchange.answer`,
    `exchange.fail`), or end the connection (`exchange.hang_up`); all of these notice the peer's leaving.
    """

    def on_accept(self, wire: Wire) -> None:
        """A connection was accepted; nothing was read, no TLS yet."""

    def before_headers(self, exchange: Exchange) -> None:
        """A request was read completely; no work was done on it, and nothing answered."""

    def before_run(self, exchange: RunExchange) -> None:
        """A request about a remote run (`exchange.asked`, `exchange.run_now`) was read; nothing is done yet."""

    def after_run(self, exchange: RunExchange) -> None:
        """What was asked of the run is done; the answer has not been sent."""

    def before_end(self, exchange: RunExchange, status: str) -> bool:
        """A run's stream of events is about to tell that the run ended early, as `status`. Returns whether it does."""
        return True

    def before_token(self, exchange: Exchange, index: int) -> None:
        """Token number `index` (from 0) comes next; once more after the last one, before the answer's end.

        A streamed answer has sent its headers and its opening events by then, any other has sent nothing.
        """

    def before_write(self, exchange: Exchange, data: bytes) -> None:
        """`data` (events of a stream, or the body of any other answer) is about to be sent."""

    def on_disconnect(self, exchange: Exchange, writing: bool) -> bool:
        """The peer is gone; `writing` when a write has failed over it. Returns whether the work stops now."""
        return True


def overrides(fault: Fault, hook: str) -> bool:
    """Whether this fault has something to do at that hook."""
    return getattr(type(fault), hook) is not getattr(Fault, hook)
