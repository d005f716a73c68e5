"""The reconciler of this process: goes on with cancels that could not be confirmed, and looks at confirmed ones again.

It lives in the same threads and tasks as every request of ours, so it never keeps a process alive.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from deadstop.calls import timers
from deadstop.calls.errand import Result
from deadstop.core.diagnosis import diagnose
from deadstop.core.model import Cause, Evidence, Intent, Outcome
from deadstop.core.policy import CancelPolicy
from deadstop.runs.chase import Chase

if TYPE_CHECKING:
    from deadstop.runs.run import BaseRun

__all__ = ["Reconciler"]

log = logging.getLogger("deadstop")


class Reconciler:
    """What is still to be done for the remote runs of one client."""

    def __init__(self) -> None:
        self._chases: dict[int, Chase] = {}
        self._timers: dict[int, timers.Timer] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._chases)

    def unconfirmed(self, run: BaseRun, intent: Intent, policy: CancelPolicy) -> None:
        """A cancel's time is up, and the run may go on: keep trying, for `policy.give_up` seconds."""
        remote = run.remote
        if remote is None or remote.ref is None or remote.over or not policy.give_up or self._closed:
            return
        if id(remote) not in self._chases:
            self._chase(run, intent, policy.replace(timeout=policy.give_up))

    def revived(self, run: BaseRun) -> None:
        """A run that was read as cancelled is something else now. If it works on, it is cancelled again."""
        remote = run.remote
        assert remote is not None
        log.warning("Run %r was read as cancelled, and then as %r.", run.name, remote.word)
        if not remote.over and not self._closed and id(remote) not in self._chases:
            self._chase(
                run, run.intent(reason="it came back to life", cause=Cause.USER), run.registry.policy_for(run, None)
            )

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

    def _chase(self, run: BaseRun, intent: Intent, policy: CancelPolicy) -> None:
        remote: Any = run.remote
        now = time.monotonic()
        keeping = run.registry.keeping(run)
        settled = partial(self._settled, run)
        chase = Chase(remote, policy, settled=settled, let_go=_nothing, keeping=keeping)
        self._chases[id(remote)] = chase
        remote.channel.spawn(lambda: chase.begin(replace(intent, at=now, deadline=float("inf"), request_id=None)))

    def _settled(self, run: BaseRun, chase: Chase) -> None:
        self._chases.pop(id(chase.remote), None)
        outcome = chase.machine.outcome
        if outcome is Outcome.UNCONFIRMED:
            log.warning("Gave up on cancelling %r: %s", run.name, diagnose(chase.facts()))
        else:
            log.info("The cancel of %r went on after its timeout, and came to: %s.", run.name, outcome)

    def close(self) -> None:
        """The client is closed: nothing more is sent."""
        self._closed = True
        for chase in list(self._chases.values()):
            chase.stop()
        self._chases.clear()
        for timer in list(self._timers.values()):
            timer.stop()
        self._timers.clear()


def _nothing() -> None:
    pass
