"""Between the cancels on this host's record and the jobs on the bus, through which hosts finish each other's."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Optional

from deadstop.core.model import CancelReceipt, Outcome
from deadstop.errors import LedgerError
from deadstop.fleet.job import Job, key_of
from deadstop.kinds import register as kinds
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import IntentRecord, Opening, Process, RemoteRun, RunRecord
from deadstop.ledger.rows import bare

if TYPE_CHECKING:
    from deadstop.runs.keeper import Keeper
    from deadstop.runs.kept import Kept
    from deadstop.runs.run import BaseRun

__all__ = ["adopt", "is_ours", "job_of", "offer", "withdraw"]

log = logging.getLogger("deadstop")

KEY = "deadstop.job"
"""Under which key of a run's metadata the record says which job it came from."""


def offer(keeper: Keeper, run: BaseRun, record: Optional[IntentRecord]) -> None:
    """A cancel is on record: have other hosts finish it should this process die. Only where they don't see the record,
    and only of remote runs, since calls die with it. Uses the ledger."""
    jobs, kept = keeper.member.jobs, keeper.kept(run)
    if jobs is None or record is None or not record.open or kept.claim is not None or kept.lent:
        return
    try:
        targets = [each for each in keeper.member.ledger.remotes(kept.name, kept.epoch) if not each.terminal]
    except LedgerError as error:
        log.warning("The cancel of run %r can't be finished by other hosts: %s", kept.name, error)
        return
    if not targets and run.remote is not None and run.remote.ref is not None and not run.remote.over:
        targets = [keeper.remote_record(run.remote, run)]  # cancelled by its address, and on record under its scope
    job = _job(key_of(record), record, keeper.member.process, targets)
    if job is not None:
        kept.job = job.key
        jobs.publish(job)


def withdraw(keeper: Keeper, kept: Kept, receipt: CancelReceipt) -> None:
    """A cancel's outcome is on record: what is final is nobody's job any more. Never blocks."""
    if receipt.outcome is Outcome.UNCONFIRMED:
        return
    if kept.claim is not None:
        kept.claim.settled = True
    elif kept.job is not None and keeper.member.jobs is not None:
        keeper.member.jobs.withdraw(kept.job)


def job_of(record: IntentRecord, run: RunRecord, targets: Iterable[RemoteRun]) -> Optional[Job]:
    """The job that a cancel on record is, or came from. None if there is nothing for other hosts to do."""
    if run.by is None:
        return None
    known = (run.metadata or {}).get(KEY)
    return _job(str(known or key_of(record)), record, run.by, targets)


def _job(key: str, record: IntentRecord, owner: Process, targets: Iterable[RemoteRun]) -> Optional[Job]:
    found = tuple(each for each in targets if not kinds.kind(each.kind).connected)  # the others died with their process
    if len({bare(each.base_url) for each in found}) != 1:
        return None
    return Job(key, record.intent, owner, found)


def is_ours(run: RunRecord) -> bool:
    """Whether it was opened where this record is, and is not another host's."""
    return KEY not in (run.metadata or {})


def adopt(ledger: Ledger, job: Job, by: Process) -> tuple[IntentRecord, RunRecord, list[RemoteRun]]:
    """Put another host's cancel on our record, unless it is there. Uses the ledger."""
    name, now = job.intent.run, time.time()
    found = _known(ledger, job)
    if found is None:
        opening = Opening(name, job.owner, job.intent.at, metadata={KEY: job.key})
        epoch = ledger.open_run(opening).epoch
        for each in job.targets:
            ledger.record_remote(replace(each, epoch=epoch), opening, now=now)
        ledger.record_intent(replace(job.intent, epoch=epoch), by, now=now)
        ledger.close_run(name, epoch, now=now)  # here nobody holds it
        found = _known(ledger, job)
    assert found is not None
    record, run = found
    remotes = {each.ref: each for each in (*job.targets, *ledger.remotes(name, run.epoch))}
    return record, run, list(remotes.values())


def _known(ledger: Ledger, job: Job) -> Optional[tuple[IntentRecord, RunRecord]]:
    for run in ledger.runs(job.intent.run, ended=True):
        if run.by is None or run.by.owner != job.owner.owner:
            continue
        record = ledger.intent(run.run, run.epoch)
        if record is not None and job.key in ((run.metadata or {}).get(KEY), key_of(record)):
            return record, run
    return None
