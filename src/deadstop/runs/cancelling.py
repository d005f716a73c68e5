"""One cancellation of one run: a state machine for each of its calls, and the receipt they add up to.

Nothing here waits. Events come from whoever has them (the canceller, the thread that leaves a call, a deadline), in
any thread and from signal handlers, so they are queued, and whoever gets the turn works the queue off. Nobody ever
waits for the turn: who had it looks at the queue again after giving it back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from deadstop.calls.call import Call
from deadstop.calls.completion import Completion
from deadstop.core.machine import (
    CallFinished,
    CallLeft,
    Cancellation,
    CancelRequested,
    DeadlinePassed,
    Effect,
    Event,
    GraceSpent,
    InterruptCall,
    step,
)
from deadstop.core.model import CancelReceipt, Cause, Intent, Level, Outcome
from deadstop.core.policy import CancelPolicy
from deadstop.errors import CancelRefusedError
from deadstop.runs import telling
from deadstop.runs.asking import ask_again
from deadstop.runs.chase import Chase
from deadstop.runs.inbox import make_way, work_off
from deadstop.runs.later import Later
from deadstop.runs.receipts import noted
from deadstop.runs.summary import as_known_now, later_of, sum_up
from deadstop.runs.waiting import Wanted
from deadstop.runs.waiting import intent as built

if TYPE_CHECKING:
    from deadstop.calls.loops import Loop
    from deadstop.runs.remote import Remote
    from deadstop.runs.run import BaseRun

__all__ = ["Asked", "Cancelling"]

Asked = Union[Intent, Wanted]
"""An intent, or what one is built from: a user's."""


class Cancelling:
    """The cancellation of a run. All who cancel it share this one (I7)."""

    # What is not known at first is set here: the sockets wait for what `__init__` does.
    _policy: Optional[CancelPolicy] = None
    _chase: Optional[Chase] = None  # of the remote run that this run is
    refusal: Optional[CancelRefusedError] = None  # who asked for it may not
    _told = False  # that the chase has come to something, and what follows from it is under way
    _begun = False
    _redone = False  # that it was broken off, and is done anew
    follower: Optional[int] = None  # the thread that is doing the book-keeping
    _settled_at: Optional[float] = None
    _timed_out: AbstractSet[int] = frozenset()
    _final: Optional[CancelReceipt] = None
    _timeout_receipt: Optional[CancelReceipt] = None
    _context: Optional[Context] = None  # of whoever asked first, for telemetry
    _children: Collection[Cancelling] = ()  # a dict, once there are any: in order, and quick to say who is in it
    _over = 0  # how many of them, from the first on, are known to have an outcome: there may be thousands
    done = Later(Completion)  # set when there is an outcome
    chasing = Later(Completion)  # set when the chase of the remote run has begun
    _machines = Later[dict[int, Cancellation]](dict)
    _above = Later[list["Cancelling"]](list)  # those that have this one among their children
    _late = Later[list[Intent]](list)
    _inbox = Later[list[Union[tuple[Optional[int], Optional[Event]], Callable[[], None]]]](list)
    _once = Later[dict[str, Any]](dict)  # whose turn it is, and the like: its `setdefault` is atomic

    def __init__(self, run: BaseRun, intent: Asked, struck: Sequence[Call] = ()) -> None:
        self.run = run
        self._intent = intent
        # Nothing was left to cancel. (What is known of a remote run's end is the chase's business.)
        over = run.ended and not run.calls and not run.children and run.remote is None
        self.finished_before = over and not struck
        self.calls: dict[int, Call] = {call.id: call for call in struck}  # whose fence is closed

    @property
    def intent(self) -> Intent:
        """Who wants it, and why. Built when somebody asks: the sockets come first."""
        intent = self._intent
        if not isinstance(intent, Intent):
            intent = self._intent = built(self.run, intent)  # by two threads at once: then two that are equal
        return intent

    @property
    def why(self) -> tuple[Optional[str], Optional[str], Cause]:
        """The reason, the actor and the cause, without building the intent: who was interrupted asks for them."""
        it = self._intent
        return (it.reason, it.actor, it.cause) if isinstance(it, Intent) else (*it[2][:2], Cause.USER)

    # What happened

    def add_child(self, child: Cancelling) -> None:
        """A child is cancelled as well."""
        if child not in self._children:
            self.__dict__.setdefault("_children", {})[child] = None
            child._above.append(self)

    def interrupt(self, here: Optional[Loop] = None, struck: Sequence[Call] = ()) -> None:
        """Abort the calls, those of children first: every fence is closed by now. `struck`: those that were."""
        for child in list(self._children):
            child.interrupt(here)
        calls = list(self.calls.values())
        for call in calls:
            if call not in struck:
                call.interrupt(here)
        for call in calls:
            # Who holds the gate is inside, is being interrupted, and closes by itself.
            if call.tracker is not None and call.held:
                if call.hearer is not None:
                    call.hearer()
            elif not call.gate.locked():
                call.close_idle()

    def has_remotes(self) -> bool:
        """Whether there are remote runs to be cancelled, here or in a child."""
        return self.run.remote is not None or any(child.has_remotes() for child in list(self._children))

    def follow(self, policy: Optional[CancelPolicy] = None) -> None:
        """Do the book-keeping of a strike. Once; whoever comes second finds it done or being done.

        `policy` is that of this cancel, where the canceller gave one.
        """
        mine = object()
        try:
            if self._once.setdefault("follower", mine) is mine:
                self.follower = threading.get_ident()
                self._follow(policy)
                self.follower = None
        except BaseException as error:
            if self._once.get("follower") is mine:
                self.follower = None
                del self._once["follower"]  # for whoever comes next
                if not isinstance(error, Exception) and not self._redone:  # Ctrl-C, say: it is done all the same
                    self._redone = True
                    self.follow(policy)
            raise

    def _follow(self, policy: Optional[CancelPolicy]) -> None:
        if not self._begun:
            self._begin(policy)
        for call in list(self.calls.values()):
            call.left.notify(self._left(call))
        self._work()

    def _begin(self, policy: Optional[CancelPolicy]) -> None:
        self._policy = policy
        if self.run.registry.keeper is not None:
            self.run.registry.keeper.cancelled(self)
        for child in list(self._children):
            child.follow(policy)
        for call in list(self.calls.values()):
            self._machines[call.id] = Cancellation.new("in_flight")
            if call.finished:
                self._inbox.append((call.id, CallFinished(at=time.monotonic())))
            self._inbox.append((call.id, CancelRequested(at=self.intent.at, intent=self.intent)))
        if self.run.remote is not None and "chase" not in self._once:
            self._chase_remote(self.run.remote)
        self._context = telling.requested(self.run, self.intent)
        self._begun = True

    def _chase_remote(self, remote: Remote) -> None:
        policy = self.run.registry.policy_for(self.run, self._policy)
        keeping = self.run.registry.keeping(self.run)
        chase = self._chase = Chase(remote, policy, settled=self._caught, let_go=self._release, keeping=keeping)
        self.chasing.set()
        # Elsewhere: a signal handler may have come by on top of anything.
        if not remote.channel.spawn(lambda: chase.begin(self.intent)):
            chase.begin(self.intent)
        self._once["chase"] = True  # is under way

    def _caught(self, chase: Chase) -> None:
        registry = self.run.registry
        if self.refusal is not None:
            return
        if chase.machine.outcome is Outcome.UNCONFIRMED and not chase.hopeless:
            registry.reconciler.unconfirmed(self.run, self.intent, chase.policy)
        elif chase.machine.outcome is Outcome.CANCELLED and chase.remote.ref is not None:
            registry.reconciler.recheck(self.run, chase.policy)
        elif chase.hopeless:
            self.run.end()  # there is no such run, or it is not ours: it is not to be listed for ever
        self._told = True  # not as soon as the machine says so: another thread may read that and answer
        self._news()

    def _release(self) -> None:
        """Nobody waits for what a held call might still tell: interrupt it."""
        for call in list(self.calls.values()):
            if not call.left.is_set():
                call.release()
                call.close_idle()

    def join(self, asked: Asked) -> None:
        """Somebody else wants the same. The first reason stays; this one is appended (I10), once (I8)."""
        self._pick_up()
        intent = asked if isinstance(asked, Intent) else built(self.run, asked)
        known = [each.request_id for each in (self.intent, *self._late)]
        if intent.request_id is not None and intent.request_id in known:
            return
        self._late.append(intent)
        if self.run.registry.keeper is not None:
            self.run.registry.keeper.joined(self.run, intent)
        for number in list(self._machines):
            self._inbox.append((number, CancelRequested(at=time.monotonic(), intent=intent)))
        if self._chase is not None:
            self._chase.feed(CancelRequested(at=time.monotonic(), intent=intent))
        self._work()
        ask_again(self, intent)

    def grace_spent(self) -> None:
        """The first interruption had its time: interrupt again whatever is still there."""
        self._tell_all(GraceSpent(at=time.monotonic()))

    def deadline_passed(self) -> None:
        """Time is up: what has not left by now stays unconfirmed, until it does leave."""
        for child in list(self._children):
            child.deadline_passed()
        if self._chase is not None:
            self._chase.deadline_passed()
        self._tell_all(DeadlinePassed(at=time.monotonic()))

    def _left(self, call: Call) -> Callable[[], None]:
        def tell() -> None:
            # What came to its end while it was drained was cancelled all the same: its caller got nothing of it.
            kind = CallFinished if call.finished or (call.completed and call.drain is None) else CallLeft
            self._inbox.append((call.id, kind(at=time.monotonic())))
            self._work()

        return tell

    def _tell_all(self, event: Event) -> None:
        make_way(self._once)
        for number in list(self._machines):
            if self.calls[number].left.is_set():  # whose word was lost, if Ctrl-C came just then
                self._left(self.calls[number])()
            self._inbox.append((number, event))
        self._work()

    @property
    def came_to_nothing(self) -> bool:
        """Whether the remote run's cancel was not confirmed, or was taken from us, and nobody here goes on with it."""
        chase, remote = self._chase, self.run.remote
        if chase is None or remote is None or remote.over or self.run.registry.reconciler.chases(remote):
            return False
        return chase.stopped or (self._told and chase.machine.outcome is Outcome.UNCONFIRMED)

    def abandon(self) -> None:
        """Send nothing more for the remote run, and hear nothing more of it."""
        if self._chase is not None:
            self._chase.stop()

    # What follows

    def _news(self) -> None:
        """Something that this one waits for has come. Put in the queue, so that whoever is at work looks once more."""
        self._inbox.append((None, None))
        self._work()

    def _work(self) -> None:
        work_off(self._once, self._inbox, self._work_off)

    def after(self, tell: Callable[[], None]) -> None:
        """Have `tell()` called when what has come by now is worked off and settled, by whoever is at it."""
        self._inbox.append(tell)
        self._work()

    def _work_off(self) -> None:
        while self._inbox:
            first = self._inbox[0]
            number, event = (None, None) if callable(first) else first
            if number in self._machines and event is not None:
                self._machines[number], effects = step(self._machines[number], event)
                self._perform(number, effects)
            elif callable(first):
                self._settle()
                first()
            del self._inbox[0]  # not before: where Ctrl-C breaks this off, whoever comes next finds it there
        self._settle()

    def _pick_up(self) -> None:
        """Ctrl-C may have broken off what was being done here, or for a child: it is done now."""
        for child in list(self._children):
            child._pick_up()
        if self._chase is not None:
            self._chase.pick_up()
        make_way(self._once)
        self._work()

    def _perform(self, number: int, effects: Iterable[Effect]) -> None:
        # The strike has closed the fence and interrupted once. Again is harmless, and what the grace asks for.
        for effect in effects:
            call = self.calls[number]
            if isinstance(effect, InterruptCall) and not call.left.is_set() and not call.held:
                call.interrupt()
                call.close_idle()

    def _settle(self) -> None:
        if not self._begun or not self._children_over():
            return
        if not self.run.cancelled and not self.finished_before:  # its fence is still to be closed
            return
        if any(not machine.ended for machine in self._machines.values()):
            return
        if self.run.remote is not None and not self._told:
            return
        unconfirmed = {n for n, machine in self._machines.items() if machine.outcome is Outcome.UNCONFIRMED}
        if self._final is not None and (self._final.outcome is not Outcome.UNCONFIRMED or self._still_unconfirmed()):
            self.done.set()  # nothing new; but Ctrl-C may have come before that
            return
        self._settled_at = time.monotonic()
        receipt = self.snapshot()
        if unconfirmed and self._timeout_receipt is None:
            self._timed_out = unconfirmed
            self._timeout_receipt = receipt
        if (before := self._final) is None or before.outcome is Outcome.UNCONFIRMED:
            self._final = receipt
            self.run.settled(receipt)
        # First, so that what its caller knows of can be flushed. It only puts it in a queue.
        telling.settled(self.run, self.intent, receipt, before, self._context)
        self.done.set()
        if receipt.outcome is not Outcome.UNCONFIRMED and "sure" in self._once:
            self._once["sure"].set()
        for above in list(self._above):
            above._news()

    def _children_over(self) -> bool:
        """Whether all children have an outcome. Asked as each of them gets one, so it goes on from where it came to."""
        if not self._children:
            return True
        children, over = list(self._children), self._over
        while over < len(children) and children[over].done.is_set():
            over += 1
        self._over = over  # by two threads at once: true of either number
        return over == len(children)

    # What is known

    @property
    def receipt(self) -> Optional[CancelReceipt]:
        """The receipt, once there is an outcome. An unconfirmed one may be replaced, once (I6)."""
        final = self._final
        if final is None:
            return None
        if len(final.later) != len(self._late):
            final = self._final = replace(final, later=later_of(self))
        final = self._final = noted(final, self.run.kept)
        final = self._final = as_known_now(final, self)
        return final

    def _still_unconfirmed(self) -> bool:
        mine = [*self._machines.values(), *([self._chase.machine] if self._chase is not None else [])]
        here = any(machine.outcome is Outcome.UNCONFIRMED for machine in mine)
        return here or any(child._still_unconfirmed() for child in list(self._children))

    def _receipts(self, level: Optional[Level]) -> tuple[CancelReceipt, ...]:
        return tuple(child.receipt or child.snapshot(level) for child in list(self._children))

    def timed_out(self, call: Call) -> Optional[CancelReceipt]:
        """The receipt of the cancel that did not see `call` leave in time; None if it did."""
        return self._timeout_receipt if call.id in self._timed_out else None

    def snapshot(self, level: Optional[Level] = None) -> CancelReceipt:
        """The receipt as it would be now. With a `level`, short of confirmed, for whoever waits for no more."""
        return sum_up(self, level)
