"""The reconciler of this process: goes on with cancels that could not be confirmed, and looks at confirmed ones again.

It lives in the same threads and tasks as every request of ours, so it never keeps a process alive.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable

from deadstop.calls import timers
from deadstop.calls.errand import Result
from deadstop.core.diagnosis import diagnose
from deadstop.core.model import Cause, Evidence, Intent, Outcome
from deadstop.core.policy import CancelPolicy
from deadstop.runs.chase import Chase
from deadstop.runs.receipts import evidence_on

if TYPE_CHECKING:
    from deadstop.runs.remote import Remote
    from deadstop.runs.run import BaseRun

__all__ = ["Reconciler"]

log = logging.getLogger("deadstop")

ASK_AGAIN = 15.0
"""Seconds after which a server that has taken a cancel, and let the run work on, is asked again. Doubles each time."""


class Reconciler:
    """What is still to be done for the remote runs of one client."""

    def __init__(self) -> None:
        self._chases: dict[int, Chase] = {}
        self._timers: dict[int, timers.Timer] = {}
        self._over: dict[int, list[Callable[[], None]]] = {}  # whom to tell when the chase after that remote run ends
        self._closed = False

    def __len__(self) -> int:
        return len(self._chases)

    def chases(self, remote: Remote) -> bool:
        """Whether the cancel of that remote run goes on here."""
        return id(remote) in self._chases

    def unconfirmed(self, run: BaseRun, intent: Intent, policy: CancelPolicy) -> None:
        """A cancel's time is up, and the run may go on: keep trying, for `policy.give_up` seconds."""
        remote = run.remote
        if remote is None or remote.ref is None or remote.over or not policy.give_up or self._closed:
            return
        if id(remote) not in self._chases:
            self._chase(run, intent, policy, time.monotonic() + policy.give_up, ASK_AGAIN)

    def again(self, run: BaseRun, intent: Intent, until: float, over: Callable[[], None]) -> None:
        """Somebody asks for a cancel that was not confirmed once more, and waits until the moment `until`: so the
        server is asked now, not when the next pause is over. `over()` is called when nobody tries any more."""
        remote = run.remote
        if remote is None or remote.ref is None or remote.over or self._closed:
            over()
            return
        self._over.setdefault(id(remote), []).append(over)
        policy = run.registry.policy_for(run, None)

        def begin(free: Callable[[], None]) -> None:
            free()
            going = self._chases.pop(id(remote), None)
            ends = max(until, intent.at + policy.give_up)
            if going is not None:
                going.stop()
                ends = max(ends, going.until)
            if remote.over or self._closed:
                self._tell(id(remote))
            else:
                self._chase(run, intent, policy, ends, ASK_AGAIN)

        remote.in_turn(begin)  # what is under way is not interrupted

    def revived(self, run: BaseRun) -> None:
        """A run that was read as cancelled is something else now. If it works on, it is cancelled again."""
        remote = run.remote
        assert remote is not None
        log.warning("Run %r was read as cancelled, and then as %r.", run.name, remote.word)
        if not remote.over and not self._closed and id(remote) not in self._chases:
            policy = run.registry.policy_for(run, None)
            again = run.intent(reason="it came back to life", cause=Cause.USER)
            self._chase(run, again, policy, time.monotonic() + max(policy.give_up, policy.timeout), ASK_AGAIN)

    def recheck(self, run: BaseRun, policy: CancelPolicy) -> None:
        """A run was read as cancelled: look at it once more, `policy.recheck` seconds from now."""
        remote = run.remote
        if remote is None or not policy.recheck or not remote.kind.readable or self._closed:
            return
        key, asked_at = id(remote), [0.0]

        def look() -> None:
            self._timers.pop(key, None)
            if not self._closed and remote.ref is not None:
                asked_at[0] = time.monotonic()
                remote.channel.send(remote.kind.to_read(remote.ref), 0, policy.attempt_timeout, _nothing, read)

        def read(result: Result) -> None:
            ids = () if remote.ref is None else remote.ref.ids
            found = remote.kind.take(result.data, within=ids) if isinstance(result.data, dict) else None
            if result.status == 200 and found is not None and found[0] == remote.ref and found[1] is not None:
                run.registry.observe(found[0], found[1], Evidence.STATUS, asked_at[0])

        self._timers[key] = timers.at(time.monotonic() + policy.recheck, look)

    def _chase(self, run: BaseRun, intent: Intent, policy: CancelPolicy, until: float, stretch: float) -> None:
        """Chase until the moment `until` (monotonic seconds), in stretches: each sends the cancel anew."""
        remote: Any = run.remote
        now = time.monotonic()
        keeping = run.registry.keeping(run)

        def settled(chase: Chase) -> None:
            unconfirmed = chase.machine.outcome is Outcome.UNCONFIRMED
            if unconfirmed and time.monotonic() < until and not chase.hopeless and not self._closed:
                chase.stop()  # the next one hears of the run from here on, and takes this one's place
                self._chase(run, intent, policy, until, stretch * 2)
                return
            self._chases.pop(id(remote), None)
            if not unconfirmed:
                log.info(
                    "The cancel of %r went on after its timeout, and came to: %s.", run.name, chase.machine.outcome
                )
            else:
                log.warning("Gave up on cancelling %r: %s", run.name, diagnose(evidence_on(chase)))
            self._tell(id(remote))

        bounded = policy.replace(timeout=max(min(until - now, stretch), 0.001))
        chase = Chase(remote, bounded, settled=settled, let_go=_nothing, keeping=keeping)
        chase.until = until
        self._chases[id(remote)] = chase
        if self._closed:  # meanwhile
            self._chases.pop(id(remote), None)
            self._tell(id(remote))
            return
        wanted = replace(intent, at=now, deadline=float("inf"), request_id=None)
        if not remote.channel.spawn(lambda: chase.begin(wanted)):  # it goes on once there is a loop again
            chase.begin(wanted)

    def drop(self, remote: Remote) -> None:
        """Send nothing more for that remote run."""
        chase = self._chases.pop(id(remote), None)
        if chase is not None:
            chase.stop()
        self._tell(id(remote))

    def _tell(self, key: int) -> None:
        for over in self._over.pop(key, ()):
            over()

    def close(self) -> None:
        """The client is closed: nothing more is sent."""
        self._closed = True
        for chase in list(self._chases.values()):
            chase.stop()
        self._chases.clear()
        for key in list(self._over):
            self._tell(key)
        for timer in list(self._timers.values()):
            timer.stop()
        self._timers.clear()


def _nothing() -> None:
    pass
