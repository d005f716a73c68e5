"""The handle that everything a call does notes itself on.

A `Call` is one call of the SDK, its retries included. Whatever blocks on the call's behalf (a name lookup, a
connect, a socket, a backoff) leaves a trace on the handle, so that whoever cancels knows what to interrupt.

No lock is held across a cancel. The rule that makes it safe from any thread and from a signal handler:

* the canceller first sets `cancelled`, then looks for what blocks;
* the caller first notes what it is about to block on, then looks at `cancelled`.

One of the two always sees the other.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from deadstop.calls.completion import Completion
from deadstop.calls.facts import facts_of
from deadstop.calls.interruption import Interruption, ReadInterruption
from deadstop.core.model import CallFacts, Interrupted, Phase, Streamed

if TYPE_CHECKING:
    from deadstop.calls.drain import Drain, Reader
    from deadstop.calls.loops import Loop
    from deadstop.calls.tracker import Tracker
    from deadstop.errors import DeadstopError

__all__ = ["Call", "Interruption", "ReadInterruption", "active_call", "current_call"]

current_call: ContextVar[Optional[Call]] = ContextVar("deadstop_call", default=None)
"""The call on whose behalf the current context talks to the network."""

GLANCE = 0.25
"""How long (seconds) a thread waits at most before it looks up. A signal interrupts nothing if the system gives it to
another thread, or just before the wait begins: its handler, which may be the one that cancels, is run only then."""

_ids = itertools.count(1)


def active_call() -> Optional[Call]:
    """The call that talks to the network here and now; None outside of one.

    A context is inherited by what is started in it (a thread, a task that a hook starts), and outlives the call. So a
    call that is over does not count, nor does a thread's call in another thread.
    """
    call = current_call.get()
    if call is None or call.phase is Phase.ENDED or (not call.in_task and call.home != threading.get_ident()):
        return None
    return call


class Owner(Protocol):
    """What a call belongs to: a run."""

    def remove(self, call: Call) -> None:
        """The call is over."""

    def error(self, call: Call) -> DeadstopError:
        """What the caller of the cancelled call gets."""


class Call:
    """One call of the SDK: where it is, and how to get it out of there.

    `cancelled` is a plain attribute because it is read once per event. It only ever goes from False to True.
    """

    resolves_first = False  # a task's connect looks names up by itself, and does not say how long that took

    __slots__ = (
        "__weakref__",
        "answer_within",
        "aside",
        "attempt",
        "body_closed",
        "cancelled",
        "canceller",
        "characters",
        "chunks",
        "closer",
        "completed",
        "connection",
        "drain",
        "exchanging",
        "finished",
        "gate",
        "handed_over",
        "hearer",
        "home",
        "id",
        "in_task",
        "interrupted",
        "last",
        "left",
        "left_at",
        "loop",
        "memory",
        "method",
        "multiplexed",
        "opaque",
        "path",
        "phase",
        "phase_at_cancel",
        "read_deadline",
        "reader",
        "reentered",
        "requeue",
        "run",
        "scope_waker",
        "sent",
        "shown",
        "socket",
        "started",
        "status",
        "stream_reset",
        "streamed",
        "streamed_inside",
        "thread",
        "tracker",
        "url",
        "usage",
        "waker",
    )

    def __init__(
        self,
        run: Owner,
        method: str,
        path: str,
        streamed: bool,
        streamed_inside: bool,
        in_task: bool = False,
        memory: Optional[dict[Any, Any]] = None,
        tracker: Optional[Tracker] = None,
    ) -> None:
        self.id = next(_ids)
        self.run = run
        self.method = method
        self.path = path
        self.started = time.monotonic()
        self.phase = Phase.CREATED
        self.phase_at_cancel: Optional[Phase] = None
        self.cancelled = False
        self.interrupted = Interrupted.NOTHING
        self.sent = False  # the first byte of a request may have left
        self.completed = False  # the whole answer was read
        self.finished = False  # the value is on its way to the caller: too late for the fence
        self.body_closed = False  # the response it got last was closed
        self.shown = False  # the HTTP response was taken out of the stream
        self.handed_over = False  # the SDK gave its caller a stream that is still being read
        self.multiplexed = False  # HTTP/2: the socket carries other calls too
        self.stream_reset = False  # and the server was told that this one is over
        self.requeue = False  # reset(): leave the old pool's queue and ask the new pool
        self.streamed = Streamed.ASKED if streamed else Streamed.PLAIN
        self.streamed_inside = streamed_inside
        self.status: Optional[int] = None  # of the answer to the request that is under way, or was last
        self.chunks = 0
        self.characters = 0
        self.answer_within: Optional[float] = None  # streamed inside: the time the whole answer may take
        self.read_deadline: Optional[float] = None
        self.home = threading.get_ident()  # the thread that made the call
        self.thread = self.home  # the thread that is (or was last) inside the transport
        self.reentered = False  # one exchange of it has asked a pool more than once
        self.exchanging = False  # inside a transport of ours: one that it wraps must not begin anew
        self.left = Completion()
        self.left_at: Optional[float] = None
        # Held while a thread is inside the transport on the call's behalf. Whoever gets it may close the response.
        self.gate = threading.Lock()
        self.socket: Optional[Any] = None  # the network stream the call is on, if it has one to itself
        self.connection: Optional[Callable[[], Any]] = None  # a weak reference to the one that the last request went on
        self.waker: Optional[Callable[[], None]] = None  # wakes what blocks without a socket
        self.scope_waker: Optional[Callable[[Optional[Loop]], None]] = None  # cancels the scope of a task's request
        self.closer: Optional[Callable[[], bool]] = None  # closes an open response while nobody reads it
        self.hearer: Optional[Callable[[], None]] = None  # reads an open response on, where its answer is needed
        self.in_task = in_task
        self.loop: Optional[Loop] = None  # that the task runs on
        self.canceller: Any = None  # the cancellation that got here first
        self.memory = {} if memory is None else memory  # what was learned of servers, for the client's life
        self.tracker = tracker  # of the remote runs that the call starts or asks about
        self.reader: Optional[Reader] = None  # the stream that the caller is given events from
        self.drain: Optional[Drain] = None  # of a cancelled stream that is read on for its usage
        self.last: Any = None  # the last event of the stream, delivered or drained
        self.usage: Optional[dict[str, Any]] = None  # as far as it was seen elsewhere
        self.url: Any = None  # where the last request went
        self.aside = False  # that request is for something that the call needs first, and nothing of the call itself
        self.opaque = False  # the transport offers nothing to interrupt: a mock, aiohttp, the user's own
        self.attempt: dict[str, Any] = {}

    # Interrupting

    def interrupt(self, here: Optional[Loop] = None) -> None:
        """Close the fence and wake whatever the call is blocked on. Idempotent; never blocks; any thread.

        The first time, it keeps on record where the call was. `here`: the loop of the task that cancels, if it is one,
        and no signal handler on top of it.
        """
        if self.phase_at_cancel is None:
            self.phase_at_cancel = self.phase
        self.cancelled = True
        if (self.tracker is not None or self.drain is not None) and self.held:
            return
        stream = self.socket
        if stream is not None and stream.interrupt(self):
            self.interrupted = Interrupted.SOCKET
        waker, scope_waker = self.waker, self.scope_waker
        if waker is not None:
            waker()
        if scope_waker is not None:
            scope_waker(here)

    def close_idle(self) -> bool:
        """Close the open response of a call that nobody is reading just now, here or soon. Whether that is so."""
        drain = self.drain
        if drain is not None and not drain.over:
            drain.begin()
            return False
        closer = self.closer
        return closer is not None and closer()

    def stopped(self) -> DeadstopError:
        """The error for the caller of this cancelled call; its open response is closed on the way."""
        self.close_idle()
        return self.run.error(self)

    def ending(self) -> BaseException:
        """What ends the reading of this cancelled call: its error where its caller reads the HTTP response itself."""
        return self.run.error(self) if self.shown else Interruption(self)

    @property
    def held(self) -> bool:
        """Whether a cancel leaves the call at its work for now: its answer is still to tell something.

        Which remote run to cancel, or what the cancelled stream has used.
        """
        return (self.tracker is not None and self.tracker.holds(self)) or self.drains

    @property
    def drains(self) -> bool:
        """Whether the cancelled stream is being read on, unseen."""
        return self.drain is not None and not self.drain.over

    def must_stop(self) -> bool:
        """Whether the call is cancelled, and nothing is expected of it any more."""
        return self.cancelled and ((self.tracker is None and self.drain is None) or not self.held)

    def release(self) -> None:
        """Nobody waits for the answer of a held call any more: interrupt it."""
        if self.tracker is not None:
            self.tracker.released = True
        if self.drain is not None:
            self.drain.over = True
        self.interrupt()

    def check(self) -> None:
        """Raise `Interruption` if the call is cancelled."""
        if self.cancelled:
            raise Interruption(self)

    def is_inside(self) -> bool:
        """Whether a thread is inside the SDK on the call's behalf, not between two events of a stream."""
        return not self.handed_over or self.gate.locked()

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`, or until the call is cancelled: then raise `Interruption`. Blocks the thread."""
        woken = threading.Event()
        previous, self.phase = self.phase, Phase.BACKING_OFF
        self.waker = woken.set
        try:
            left = seconds
            while left > 0 and not self.cancelled and not woken.wait(min(left, GLANCE)):
                left -= GLANCE  # counted: people's tests stop the clock
        finally:
            self.waker = None
        if self.cancelled:
            if self.interrupted is Interrupted.NOTHING:
                self.interrupted = Interrupted.WAKE
            raise Interruption(self)
        self.phase = previous

    # What the transports note

    def timeout(self, seconds: Optional[float]) -> Optional[float]:
        """The read timeout to use now: `seconds`, cut to what is left of the whole answer's (see `streamed`)."""
        if self.read_deadline is None:
            return seconds
        left = max(self.read_deadline - time.monotonic(), 0.001)
        return left if seconds is None else min(seconds, left)

    def note(self, **facts: Any) -> None:
        """Keep facts about the current attempt: dns, connect, tls, first_byte (seconds), request_id, error."""
        self.attempt.update(facts)

    def begin_exchange(self, *, opaque: bool, request: Any = None) -> None:
        """A request is about to enter the transport. Raises `Interruption` when it must not (I13)."""
        if self.cancelled:
            raise Interruption(self)
        # The SDK, or the user's auth, may get itself a token first, by the same transport.
        path = b"" if request is None else request.url.raw_path.partition(b"?")[0]  # decoding it takes longer
        self.aside = path.endswith(b"/token") and not self.path.endswith("/token")
        self.opaque = opaque
        self.thread = threading.get_ident()
        self.attempt = {"number": self.attempt.get("number", 0) + 1, "started": time.monotonic()}
        self.status = self.connection = None
        self.phase = Phase.UNKNOWN if opaque else Phase.WAITING_FOR_POOL
        self.sent = self.sent or (opaque and not self.aside)  # nobody tells us when an opaque transport sends
        self.completed = False
        self.read_deadline = None
        if self.tracker is not None:
            self.tracker.begin(opaque and not self.aside)

    def enter_again(self) -> None:
        """A transport around ours sends the request anew. Raises `Interruption` when it must not (I13)."""
        if self.cancelled:
            raise Interruption(self)
        stream, self.socket = self.socket, None
        if stream is not None:
            stream.let_go(self)  # the connection is the pool's again, for whoever comes
        self.phase, self.reentered = Phase.WAITING_FOR_POOL, True
        self.status = self.connection = self.read_deadline = None

    def sending(self, multiplexed: bool) -> None:
        """Bytes of the request are about to leave. Raises `Interruption` when they must not."""
        self.waker = None
        if self.aside:
            self.check()
            self.phase, self.multiplexed = Phase.SENDING, multiplexed
            return
        before, self.sent = self.sent, True  # first, then the look: a canceller that finds it sent may hold the call
        if self.cancelled and not (before and self.held):
            self.sent = before
            raise Interruption(self)
        self.phase = Phase.SENDING
        self.multiplexed = multiplexed
        if self.tracker is not None:
            self.tracker.sending()

    def request_sent(self) -> None:
        """The request has left; the wait for the answer begins."""
        self.phase = Phase.WAITING_FOR_HEADERS
        if self.answer_within is not None:
            self.read_deadline = time.monotonic() + self.answer_within

    def headers_read(self, status: int) -> None:
        """The answer has begun."""
        self.status = status
        self.phase = Phase.READING
        self.attempt["first_byte"] = time.monotonic() - self.attempt["started"]

    def requeued(self, error: BaseException) -> bool:
        """Whether `error` only means that the call was sent over to another pool while it waited for a connection.

        What the pool fails with then depends on it: without assertions (`python -O`) it is another error than with.
        """
        asked, self.requeue = self.requeue, False
        return asked and self.phase is Phase.WAITING_FOR_POOL and isinstance(error, Exception)

    def failed(self, error: BaseException) -> None:
        """The exchange ended with `error`."""
        if self.tracker is not None:
            self.tracker.failed()
        if isinstance(error, Exception):
            self.note(error=f"{type(error).__name__}: {error}", ended=time.monotonic())

    def leave(self, again: bool = True) -> None:
        """The call is over: it has left the transport, its caller is (about to be) free. `again`: if it breaks off."""
        drain = self.drain
        if drain is not None and not drain.over:
            if drain.claim():  # nobody has begun it, and there is nothing left to read
                drain.finish()
            return  # whoever drains lets it leave
        if self.phase is not Phase.ENDED or not again:
            try:
                self.phase = Phase.ENDED
                self.reader = self.waker = self.scope_waker = self.closer = self.hearer = self.socket = None
                if self.tracker is not None:
                    self.tracker.end(self)
                self.left.done = True
                if self.left.waiters:
                    self.left.set()
                self.left_at = time.monotonic()  # after that: somebody waits for it
                self.run.remove(self)
            except BaseException:
                if again:
                    self.leave(again=False)
                raise

    def facts(self) -> CallFacts:
        """The call as it stands now, for receipts."""
        return facts_of(self)

    def __repr__(self) -> str:
        flag = ", cancelled" if self.cancelled else ""
        return f"<Call {self.id} {self.method} {self.path}: {self.phase}{flag}>"
