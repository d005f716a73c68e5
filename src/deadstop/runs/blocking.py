"""Runs for threads."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, Union, cast

from deadstop.calls.closed import cut_off
from deadstop.core.model import CancelReceipt, Level, Outcome
from deadstop.core.policy import CancelPolicy
from deadstop.errors import CancelRefusedError, RunCancellationTimeoutError
from deadstop.kinds.servers import ServerProfile, profile_for
from deadstop.runs.cancelling import Cancelling
from deadstop.runs.checks import NOTHING, checked_facts, checked_name, checked_policy, entered_before, wrong_with
from deadstop.runs.keeping import PATIENCE
from deadstop.runs.registry import Registry
from deadstop.runs.run import BaseRun
from deadstop.runs.strike import hit, strike
from deadstop.runs.waiting import (
    ANY,
    FACTS,
    FIRST,
    HEAD_START,
    LOOK,
    NEVER,
    RECORDING,
    SETTLING,
    Facts,
    Terms,
    Wanted,
    Wish,
    answer,
    away_answer,
    first_wait,
    goals,
    next_moment,
    overdue,
    somebody_elses,
    stuck,
    terms,
    wish,
)

__all__ = ["Run", "Runs"]

Target = Union[str, BaseRun, Any]


class Run(BaseRun):
    """A scope of a sync client: what is started inside it is stopped with it. Use it as a context manager::

        with client.runs.open("chat-42", timeout=60) as run:
            reply = client.chat.completions.create(model="gpt-4o", messages=[...])

    When the block is left, streams that are still open in it are closed, and reading on is a `UsageError`. Leaving a
    cancelled scope raises nothing by itself: the calls in it do, and `check()`.
    """

    __slots__ = ()

    def cancel(
        self,
        *,
        reason: Optional[str] = None,
        actor: Optional[str] = None,
        wait: Union[Level, str, None] = None,
        timeout: Optional[float] = None,
        policy: Optional[CancelPolicy] = None,
        request_id: Optional[str] = None,
    ) -> CancelReceipt:
        """As `Runs.cancel` for this run."""
        return cancel(self, wish(wait, timeout, policy), checked_facts(reason, actor, request_id))

    def __enter__(self) -> Run:
        if self._entered or self.ended:
            raise entered_before(self.name)
        try:
            self.enter()
            if self.registry.keeper is not None:
                looked = self.registry.keeper.look(self)
                if looked is not None:
                    looked.wait(PATIENCE)
            return self
        except BaseException:  # Ctrl-C: nobody will leave what was not entered
            try:
                self.leave()
            finally:
                self.end()
            raise

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            for call in self.leave():
                if call.handed_over:  # a stream that was left open; what is still under way in another thread goes on
                    cut_off(call)
        finally:
            try:
                self.end()
            finally:
                if not self.ended:  # Ctrl-C, before it had begun
                    self.end()

    if not TYPE_CHECKING:  # type checkers refuse it by themselves

        def __aenter__(self) -> Any:
            raise wrong_with(self, "with", "async with")

        __aexit__ = __aenter__  # asked for first


class Runs:
    """The runs of a sync client and its copies: `client.runs`. All of it is safe from any thread."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def policy(self) -> Optional[CancelPolicy]:
        """The policy of cancels whose run has none of its own. None: from the environment or the file."""
        return self._registry.policy

    @policy.setter
    def policy(self, policy: Optional[CancelPolicy]) -> None:
        self._registry.policy = None if policy is None else checked_policy(policy)

    @property
    def streamed_inside(self) -> bool:
        """Whether scopes stream inside unless told otherwise. True at first."""
        return self._registry.streamed_inside

    @streamed_inside.setter
    def streamed_inside(self, on: bool) -> None:
        self._registry.streamed_inside = bool(on)

    @property
    def server(self) -> Optional[ServerProfile]:
        """What is known of the server behind the client; None: recognised by its host and its answers.

        Set a `ServerProfile`, or the name of a known one (`"ogx"`).
        """
        return self._registry.server

    @server.setter
    def server(self, server: Union[ServerProfile, str, None]) -> None:
        self._registry.server = None if server is None else profile_for(server)

    def open(
        self,
        name: Optional[str] = None,
        *,
        timeout: Optional[float] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        policy: Optional[CancelPolicy] = None,
        streamed_inside: Optional[bool] = None,
        cancellers: Optional[Iterable[str]] = None,
        orphans: str = "leave",
        orphan_grace: float = 0.0,
    ) -> Run:
        """A run scope, to be entered with `with`. Every call made inside, by any client of ours, belongs to it.

        `name` is what to cancel it by, at most 1000 bytes of UTF-8 without NUL (one is made up when there is none);
        `timeout` (seconds) cancels it when it is over; `metadata` is yours; `policy` is the default of its cancels.
        Inside, a chat completion or response that is not streamed is *streamed inside*, so that closing its connection
        really stops the server, and put together again; `streamed_inside=False` turns that off.

        `cancellers` are the actors who may cancel it; without it, anybody may. `orphans="cancel"` has its remote runs
        cancelled should this process die, `orphan_grace` seconds after. With either the run is on record from the
        start, where the client uses a ledger.

        Raises `RunAlreadyOpenError` if a run of that name is open, `UsageError` for anything it can't work with.
        """
        return self._registry.open(  # type: ignore[return-value]
            name,
            timeout=timeout,
            metadata=metadata,
            policy=policy,
            streamed_inside=streamed_inside,
            cancellers=cancellers,
            orphans=orphans,
            orphan_grace=orphan_grace,
        )

    def cancel(
        self,
        target: Target,
        *,
        reason: Optional[str] = None,
        actor: Optional[str] = None,
        wait: Union[Level, str, None] = None,
        timeout: Optional[float] = None,
        policy: Optional[CancelPolicy] = None,
        request_id: Optional[str] = None,
    ) -> CancelReceipt:
        """Cancel a run, and say what came of it. Bounded: it returns or raises after at most `timeout` seconds.

        `target` is a run's name, a run, or a stream that came from this client. From the moment this is called
        nothing of the run is delivered any more. `wait` says what to wait for: `confirmed` (the default: every call
        has left the transport, its socket is closed, its caller is free), `accepted` or `sent`. From a signal handler
        or a callback that runs inside the run's own call the end can't be waited for: the receipt says `accepted`.

        Raises `RunCancellationTimeoutError` when it was not confirmed in time (or returns an `unconfirmed` receipt,
        with `on_timeout="return"`), `CancelRefusedError`, `UnknownRunError`, `UsageError`.
        """
        asked = ANY if wait is None and timeout is None and policy is None else wish(wait, timeout, policy)
        facts, registry = (reason, actor, request_id), self._registry
        if facts != NOTHING:
            checked_facts(*facts)
        if registry.keeper is not None:
            bounds = terms(registry, None, asked, time.monotonic())
            away = registry.keeper.away(target, bounds, dict(zip(FACTS, facts)))
            if isinstance(away, BaseRun):
                return cancel(away, asked, facts)
            if away is not None:
                receipt = _elsewhere(away, bounds)
                if receipt is not None:
                    return receipt
        run = registry._live.get(target) if type(target) is str else None  # as nearly always
        return cancel(run or registry.find(target), asked, facts)

    def cancel_all(
        self,
        *,
        reason: Optional[str] = None,
        actor: Optional[str] = None,
        wait: Union[Level, str, None] = None,
        timeout: Optional[float] = None,
        policy: Optional[CancelPolicy] = None,
    ) -> list[CancelReceipt]:
        """Cancel every live run, all at once, within one `timeout` (seconds). One receipt for each.

        Never raises for a run that could not be confirmed: its receipt says so.
        """
        wanted = (wish(wait, timeout, policy), time.monotonic(), checked_facts(reason, actor))
        asked = terms(self._registry, None, *wanted[:2])._replace(on_timeout="return")
        started = self._registry.cancel_all_soon(reason=reason, actor=actor, deadline=asked.deadline)
        receipts = []
        for each in started:
            with contextlib.suppress(CancelRefusedError):  # known by its address, and on record in somebody's run
                receipts.append(_wait(each, asked, wanted))
        return receipts

    def get(self, name: str) -> Run:
        """The run of that name, live or ended lately. Raises `UnknownRunError`."""
        return cast(Run, self._registry.get(checked_name(name)))

    def list(self) -> list[Run]:
        """The runs that have not ended, oldest first; a call outside of any scope is one, too."""
        return cast("list[Run]", self._registry.live())

    def wait(self, target: Target, timeout: Optional[float] = None) -> Optional[CancelReceipt]:
        """Wait at most `timeout` seconds for the end of a cancel that somebody has asked for.

        The receipt; None if there is none by then, or nobody has cancelled.
        """
        run = self._registry.find(target)
        cancelling = run.cancelling
        if cancelling is None:
            return None
        cancelling.done.wait(timeout)
        return cancelling.receipt

    def reset(self) -> int:
        """Replace the connection pools of the client and its copies by fresh ones. The way out of a poisoned pool (S9).

        Calls under way finish on the old pool and its idle connections are closed; calls that wait for a connection
        go over to the new one. Returns how many pools were replaced. An HTTP client that is yours is not closed.
        """
        return cast(int, self._registry.reset())


def cancel(run: BaseRun, asked: Wish, facts: Facts) -> CancelReceipt:
    """Cancel `run` as asked, from this thread."""
    if run.cancellers is not None:
        reason, actor, _ = facts
        run.refuse(actor, reason)
    at = time.monotonic()
    wanted, struck = (asked, at, facts), None
    try:
        calls = hit(run, wanted, asked)
        if calls:
            # At once, so that who was interrupted, and the server, get the processor; the rest can wait.
            NEVER.acquire(True, HEAD_START)
        struck = strike(run, wanted, asked, None, calls)
        first = first_wait(struck, asked)
        if first is not None:
            first.left.wait(min(FIRST, asked.timeout or FIRST), 0.0 if calls else HEAD_START)
    finally:  # also if a signal handler means to leave
        struck = strike(run, wanted, asked) if struck is None else struck
        struck.follow(asked.policy)
    try:
        return _wait(struck, terms(run.registry, run, asked, at), wanted)
    except CancelRefusedError:
        anew = somebody_elses(struck, facts)
        if anew is None:
            raise
    return cancel(anew, asked, facts)


def _wait(cancelling: Cancelling, asked: Terms, wanted: Wanted) -> CancelReceipt:
    waited = -math.inf  # until when, though the clock may stand still: people's tests stop it
    for goal in goals(cancelling, asked, wanted):
        while not goal.is_set() and not stuck(cancelling):
            now = max(time.monotonic(), waited)
            until = next_moment(asked, now)
            if goal.wait(until - now):
                break
            waited = max(until, now)
            if overdue(cancelling, asked, waited):
                if asked.on_timeout != "detach":
                    goal.wait(SETTLING)
                break
    receipt = answer(cancelling, asked)
    if receipt.outcome is Outcome.UNCONFIRMED:
        if asked.on_timeout == "reset":
            cancelling.run.registry.reset()
        if asked.on_timeout in ("raise", "reset"):
            raise RunCancellationTimeoutError(receipt=receipt)
    return receipt


def _elsewhere(away: Any, asked: Terms) -> Optional[CancelReceipt]:
    """The answer to a cancel of a run that other processes may hold; None if nobody does, and it is known here."""
    away.begin()
    try:
        while not away.done.wait(min(LOOK, max(asked.deadline - time.monotonic(), 0.0))):
            away.look()
            if time.monotonic() >= asked.deadline:
                away.done.wait(RECORDING)  # its holder has the same deadline
                break
    finally:
        away.end()
    return away_answer(away, asked)
