"""Finishing what dead processes left behind: their cancels that are on record and not settled, and their orphans.

Whoever gets the ledger's claim does it, with its own client: so only for runs of that client's server. The status is
read first, since the dead one may have sent its cancel; then it is a cancel like any other.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Optional

from deadstop.calls import timers
from deadstop.core.model import CancelReceipt, Cause, Evidence, Intent, Outcome
from deadstop.errors import DeadstopError, UnknownRunError
from deadstop.fleet.job import Job, server_of
from deadstop.kinds import register as kinds
from deadstop.kinds.base import Ref
from deadstop.ledger.base import Claim
from deadstop.ledger.facts import IntentRecord, RemoteRun, RunRecord
from deadstop.ledger.rows import bare
from deadstop.runs.abroad import adopt, is_ours, job_of
from deadstop.runs.elsewhere import CUT_OFF, DIED
from deadstop.runs.kept import Kept, Recording

if TYPE_CHECKING:
    from deadstop.calls.errand import Result
    from deadstop.runs.keeper import Keeper
    from deadstop.runs.run import BaseRun

__all__ = ["PickUp"]

log = logging.getLogger("deadstop")

AGAIN = 5.0
"""How long (seconds) until an intent that could not be confirmed is tried again, doubled each time."""

AT_MOST = 300.0

MOST = 32
"""How many cancels one client finishes at once. The others are left for the next process, or the next look."""

STARTS = 2.0
"""How long (seconds) a client's loop may take to begin with a cancel before another client may have it."""

UNDER_WAY = 0.5
"""How long (seconds) a request of a dead process may still be on its way to the server: its status is read after."""


class PickUp:
    """What one client finishes for others: what is on record, and what is on the bus. Called in the ledger's reading
    thread."""

    def __init__(self, keeper: Keeper, base_url: str) -> None:
        self._keeper = keeper
        self._ledger = keeper.member.ledger
        self._base_url = bare(base_url)
        self.server = server_of(base_url)
        self._resting = False
        self._working: dict[tuple[str, int], _Returned] = {}
        self._tries: dict[tuple[str, int], tuple[int, float]] = {}
        self.finished = 0
        if keeper.member.jobs is not None:
            keeper.member.jobs.work(self)

    @property
    def busy(self) -> bool:
        """Whether something is being finished now."""
        return bool(self._working)

    def rest(self) -> None:
        """Begin nothing new from now on."""
        self._resting = True

    def __call__(self, wanted: list[IntentRecord]) -> None:
        if not self._look_after():
            return
        # Not by what is in `wanted`: a canceller that looks gives its own intent alone.
        long_ago = time.monotonic() - AT_MOST
        self._tries = {key: tried for key, tried in self._tries.items() if tried[1] > long_ago}
        for each in wanted:
            if len(self._working) < MOST:
                self._consider(each)
        self._orphans()

    def offered(self, jobs: list[Job]) -> None:
        """What other hosts left behind, and nobody has in hand."""
        for each in jobs if self._look_after() else ():
            if len(self._working) >= MOST or self._resting or self._keeper.member.closed:
                return
            try:
                self._consider_job(each)
            except (DeadstopError, ValueError) as error:
                log.warning("The cancel of %r, of another host, can't be finished here: %s", each.intent.run, error)

    def _look_after(self) -> bool:
        """Give back what can't be gone on with here. Whether anything new may be begun: if not, others are free to."""
        here = not self._keeper.closed and self._keeper.at_work()
        for mine in list(self._working.values()):
            if not (here and mine.held) or (mine.scope is None and mine.since + STARTS < time.monotonic()):
                mine.lose()
        return here and not self._resting

    def _consider_job(self, job: Job) -> None:
        member = self._keeper.member
        if any(bare(each.base_url) != self._base_url for each in job.targets) or member.alive(job.owner.owner):
            return  # another server's; or its bus alone is down
        claim = self._ledger.claim(job.intent.run)
        if claim is not None and member.jobs is not None:
            claim = member.jobs.claim(job, claim)
        if claim is None:
            return
        try:
            wanted, run, targets = adopt(self._ledger, job, member.process)
        except BaseException:
            claim.release()
            raise
        if wanted.open:
            self._begin(wanted, run, targets, claim)
        else:
            claim.settled = True  # its owner came to record that, and no further
            claim.release()

    def _consider(self, wanted: IntentRecord) -> None:
        key = (wanted.run, wanted.epoch)
        if key in self._working or self._tries.get(key, (0, 0.0))[1] > time.monotonic():
            return
        run = self._ledger.life(*key)
        left = wanted.left or key in self._keeper.member.left
        if run is None or (run.by is not None and not left and self._keeper.member.alive(run.by.owner)):
            return  # its holder's to finish
        # What lived on a connection has ended with it.
        connected = {name for name, kind in kinds.kinds().items() if kind.connected}
        targets = [each for each in self._targets(wanted) if each.kind not in connected]
        mine = [each for each in targets if each.base_url == self._base_url]
        others = [each for each in targets if each.base_url != self._base_url and not each.terminal]
        if left and not targets:
            return  # it is settled here, by the client that was closed
        if (targets and not mine) or (others and all(each.terminal for each in mine)):
            return  # another server's
        claim = self._ledger.claim(wanted.run)
        if claim is None:
            return
        try:
            now = self._ledger.intent(wanted.run, wanted.epoch)
            quicker = now is None or not now.open or (now.outcome is not None and wanted.outcome is None)
            if now is None or quicker or self._under_way(now):
                claim.release()  # it is somebody else's
                return
            dead = is_ours(run) and run.by is not None and self._keeper.member.ended(run.by.owner)
        except BaseException:
            claim.release()  # or it is kept, and renewed, for as long as this process lives
            raise
        job, jobs = job_of(now, run, targets), self._keeper.member.jobs
        if job is not None and jobs is not None:
            held = jobs.claim(job, claim, dead=dead)  # which gives the other one back if it gives none
        else:
            held = claim
        if held is not None:
            self._begin(now, run, mine, held, part=bool(others))

    def _begin(
        self, wanted: IntentRecord, run: RunRecord, targets: list[RemoteRun], claim: Claim, part: bool = False
    ) -> None:
        key = (wanted.run, wanted.epoch)
        tries = self._tries.get(key, (0, 0.0))[0]
        self._tries[key] = (tries + 1, time.monotonic() + min(AGAIN * 2**tries, AT_MOST))
        log.info("Cancel of %r goes on here: its holder is gone.", wanted.run)
        taken = self._working[key] = _Returned(self, key, claim)
        try:
            self._take_up(wanted, run, targets, taken, part)
            if self._keeper.closed:  # meanwhile
                taken.lose()
        except BaseException:
            taken.give_back()
            raise

    def _under_way(self, wanted: IntentRecord) -> bool:
        """Whether a process that lives, and was stopped or cut off while it acted, may have a request under way."""
        since = time.time() - self._keeper.registry.policy_for(None, None).attempt_timeout
        return any(
            each.ended is None and each.started > since and self._keeper.member.alive(each.owner)
            for each in self._ledger.attempts(wanted.run, wanted.epoch)
        )

    def _targets(self, wanted: IntentRecord) -> list[RemoteRun]:
        found = self._ledger.remotes(wanted.run, wanted.epoch)
        ref = kinds.parse(wanted.run) if ":" in wanted.run else None
        if ref is not None and not found:  # cancelled by its address, and on record under its scope
            found = self._ledger.remotes_named(ref.kind, ref.ids)
        return found

    def _take_up(
        self, wanted: IntentRecord, run: RunRecord, targets: list[RemoteRun], mine: _Returned, part: bool
    ) -> None:
        if not targets:
            by_address = ":" in wanted.run and kinds.parse(wanted.run) is not None  # and nothing is known of it
            ended = not by_address and (run.by is None or self._keeper.member.ended(run.by.owner))
            self._settle_alone(wanted, ended)
            mine.give_back()
            return

        def start() -> None:
            if self._working.get((wanted.run, wanted.epoch)) is not mine:
                return  # too late
            try:
                mine.scope = self._scope(wanted, targets, mine)
                self._keeper.kept(mine.scope).part = part
                _Finish(mine, mine.scope, wanted.intent).begin()
            except BaseException:
                mine.give_back()
                raise

        if not self._keeper.at_home(start):
            mine.give_back()

    def _settle_alone(self, wanted: IntentRecord, ended: bool) -> None:
        """Its process died, and with it everything that the run had under way; if it did `ended` for sure."""
        receipt = CancelReceipt(
            wanted.run,
            Outcome.CANCELLED if ended else Outcome.UNCONFIRMED,
            reason=wanted.intent.reason,
            actor=wanted.intent.actor,
            cause=wanted.intent.cause,
            level=wanted.intent.level,
            evidence=Evidence.TRANSPORT if ended else Evidence.NONE,
            elapsed=max(0.0, time.time() - wanted.intent.at),
            request_id=wanted.intent.request_id,
            note=DIED if ended else CUT_OFF,
        )
        self._ledger.settle(receipt, wanted.epoch, by=self._keeper.member.process.owner, now=time.time())

    def _scope(self, wanted: IntentRecord, targets: list[RemoteRun], claim: Claim) -> BaseRun:
        """A run like the one that the dead process held."""
        registry = self._keeper.registry
        scope = registry._run_class(registry, wanted.run)
        kept = scope.kept = Kept(wanted.run)
        kept.epoch = wanted.epoch
        recording = kept.recordings["it"] = Recording()
        recording.kept = True
        recording.done.set()
        kept.claim = claim
        for each in targets:
            child = registry.remote_run(Ref(each.kind, each.ids), each.status if each.terminal else None)
            before = child.cancelling
            if before is not None and before.came_to_nothing:  # here, when this was taken up before
                child = registry.anew(child)
            self._keeper.kept(child).born = True
            # What is unconfirmed is tried again by whoever gets the claim then, so nothing goes on without it.
            child.policy = registry.policy_for(child, None).replace(give_up=0)
            if child.parent is None:
                child.parent = scope
            scope.children[id(child)] = child
        return scope

    def _orphans(self) -> None:
        now = time.time()
        found = [each for each in self._ledger.orphans(silent=0.0, now=now) if each.base_url == self._base_url]
        if not found:
            return
        # The grace of one that is found dead only now counts from here: it is looked at again.
        there = {each.owner for each in self._ledger.processes()}
        living = {owner for owner in {each.owner for each in found} if self._keeper.member.alive(owner)}
        for each in found:
            if each.owner in there | living:
                continue
            intent = Intent(each.run, each.epoch, Cause.SHUTDOWN, "its owner died", at=now)
            try:
                self._ledger.record_intent(intent, self._keeper.member.process, now=now)
            except UnknownRunError:
                continue


class _Returned(Claim):
    """A claim that tells when it is given back."""

    def __init__(self, pick_up: PickUp, key: tuple[str, int], claim: Claim) -> None:
        self.run = claim.run
        self._pick_up = pick_up
        self._key = key
        self._claim = claim
        self.since = time.monotonic()
        self.scope: Optional[BaseRun] = None  # once it is being worked on

    @property
    def held(self) -> bool:
        return self._claim.held

    @property
    def left(self) -> float:
        return self._claim.left

    def release(self) -> None:
        receipt = None if self.scope is None else self.scope.receipt
        if receipt is not None and receipt.ok:  # what is unconfirmed is taken up again
            self._pick_up.finished += 1
        self.give_back()

    def give_back(self) -> None:
        """Nothing came of it here."""
        if self._pick_up._working.get(self._key) is self:
            del self._pick_up._working[self._key]
        self._claim.settled = self.settled
        self._claim.release()

    def lose(self) -> None:
        """It was not renewed in time, or nothing is done about it here any more: whoever has it now goes on."""
        log.info("Cancel of %r is another client's by now.", self.run)
        self._pick_up._tries.pop(self._key, None)  # the pause is for what the server did not confirm
        scope = self.scope
        for child in [] if scope is None else list(scope.children.values()):
            if child.cancelling is not None:
                child.cancelling.abandon()
            if child.parent is scope:
                child.parent = None  # should it come back to us, it is under another claim
        self.give_back()


class _Finish:
    """Reads how the remote runs stand, then cancels: the dead one may have sent its cancel, recorded or not."""

    def __init__(self, claim: Claim, scope: BaseRun, intent: Intent) -> None:
        self._claim = claim
        self._scope = scope
        self._intent = intent
        self._left = 1
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Never blocks."""
        timers.at(time.monotonic() + UNDER_WAY, self._look)

    def _look(self) -> None:
        if not self._claim.held:
            return
        registry = self._scope.registry
        for child in list(self._scope.children.values()):
            remote: Any = child.remote
            if not remote.over and remote.kind.readable:
                with self._lock:
                    self._left += 1
                timeout = registry.policy_for(child, None).attempt_timeout
                remote.channel.send(remote.kind.to_read(remote.ref), 0, timeout, _nothing, self._read(child))
        self._one_less()

    def _read(self, child: BaseRun) -> Any:
        asked_at = time.monotonic()

        def read(result: Result) -> None:
            remote: Any = child.remote
            found = remote.kind.take(result.data, within=remote.ref.ids) if isinstance(result.data, dict) else None
            if result.status == 200 and found is not None and found[0] == remote.ref and found[1] is not None:
                self._scope.registry.observe(found[0], found[1], Evidence.STATUS, asked_at)
            self._one_less()

        return read

    def _one_less(self) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last and self._claim.held:
            wanted = self._intent
            self._scope.request_cancel(
                self._scope.intent(
                    reason=wanted.reason,
                    actor=wanted.actor,
                    cause=wanted.cause,
                    level=wanted.level,
                    request_id=wanted.request_id,
                )
            )


def _nothing() -> None:
    pass
