"""How a client's runs hear of remote runs: those that its calls bring, and how the known ones stand."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Optional

from deadstop.calls.tracker import Tracker
from deadstop.core.model import Evidence, Orphan
from deadstop.kinds.base import Ref

if TYPE_CHECKING:
    from deadstop.runs.registry import Registry
    from deadstop.runs.remote import Remote
    from deadstop.runs.run import BaseRun

__all__ = ["Birth", "Watch", "expect", "orphan_of"]


class Watch:
    """Listens to a call that asks about remote runs, and tells the registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def learned(self, ref: Ref, word: Optional[str]) -> None:
        """Nothing is born of a call that only asks."""

    def observed(self, ref: Ref, word: str, evidence: Evidence, asked_at: Optional[float]) -> None:
        self._registry.observe(ref, word, evidence, asked_at)

    def lost(self, never_ran: bool) -> None:
        """Nothing was expected."""


class Birth(Watch):
    """Listens to the call that is to bring the remote run of `run`."""

    def __init__(self, registry: Registry, run: BaseRun) -> None:
        super().__init__(registry)
        self._run, self._before = run, run.name

    def learned(self, ref: Ref, word: Optional[str]) -> None:
        remote = self._run.remote
        assert remote is not None
        self._registry.christen(self._run, ref, self._before)
        if remote.tracker.suspects:
            remote.orphan = orphan_of(remote.tracker)
        remote.born(ref)

    def lost(self, never_ran: bool) -> None:
        remote = self._run.remote
        assert remote is not None
        remote.unborn(never_ran, None if never_ran else orphan_of(remote.tracker))


def expect(registry: Registry, name: str, remote: Remote, around: Optional[BaseRun]) -> BaseRun:
    """The run of `remote`, which is about to be started in the scope `around`."""
    run = registry._run_class(registry, name, parent=around, policy=None, anonymous=True)
    run.remote = remote
    remote.listen(run.remote_changed)
    try:
        if around is not None:
            run.streamed_inside = around.streamed_inside
            run.cancellers = around.cancellers
            run.join_parent()
        registry._live[name] = run
        return run
    except BaseException:  # Ctrl-C: nobody starts it
        remote.unborn(True, None)
        raise


def orphan_of(tracker: Tracker) -> Orphan:
    """Where to look for the run that a call may have begun, whose id it did not tell."""
    kind, within = tracker.passing.kind, tracker.passing.within
    sent = tracker.sent_at
    when = (
        "" if sent is None else datetime.datetime.fromtimestamp(sent, datetime.timezone.utc).isoformat(" ", "seconds")
    )
    path = kind.create[0]
    for name, value in zip(kind.fields, within):
        path = path.replace("{" + name + "}", value)
    where = f"in GET {kind.lists}" if kind.lists else "in the provider's dashboard or logs"
    return Orphan(
        kind=kind.name,
        method="POST",
        path=path,
        sent_at=sent,
        suspects=max(tracker.suspects, 1),
        look=f"Look {where} for a {kind.name.replace('_', ' ')} made at about {when or 'that time'}, and cancel it "
        f"by its id: runs.cancel({kind.example!r}).",
    )
