"""`deadstop ps`, `cancel`, `receipts` and `reconcile`: what one terminal sees and does of every process's runs."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Optional

from deadstop.cli.extras import Console, Live, Table, escape
from deadstop.clients.drop_in import OpenAI
from deadstop.core.model import CancelReceipt, Outcome
from deadstop.errors import CancelRefusedError, DeadstopError, LedgerUnavailable, UsageError
from deadstop.fleet.member import KEEP, Member
from deadstop.fleet.members import member_of
from deadstop.fleet.roll import roll_call
from deadstop.kinds import register as kinds
from deadstop.ledger.facts import RunRecord
from deadstop.runs.keeper import Keeper
from deadstop.runs.pickup import PickUp

__all__ = ["CONFIRMED", "FINISHED", "UNCONFIRMED", "USAGE", "cancel", "ps", "receipts", "reconcile", "url_of"]

ANSWERS = 3.0
"""How long (seconds) `cancel --all` waits for each process to say what it holds: a busy one is not passed over."""

CONFIRMED, USAGE, UNCONFIRMED, FINISHED = 0, 2, 3, 4

WATCHED = 1.0
"""How often (seconds) `ps --watch` and `reconcile` look."""

SWEEP = 600.0
STOPPING = 10.0


def url_of(url: Optional[str]) -> str:
    """The ledger's address: given, from the environment, or this user's own file."""
    return url or os.environ.get("DEADSTOP_URL") or "sqlite:"


# What there is


def listing(member: Member, *, ended: bool) -> list[dict[str, Any]]:
    """Every run that is known: on record, and held by the processes of this host."""
    now, found = time.time(), []
    on_record = member.ledger.runs(ended=ended, limit=1000)
    known = {(each.run, each.epoch) for each in on_record}
    for each in on_record:
        holder = "" if each.by is None else f"{each.by.host}:{each.by.pid}"
        began = each.opened_at or each.cancelled_at or now
        row = {"run": each.run, "epoch": each.epoch, "state": state_of(each), "age": round(now - began, 1)}
        found.append({**row, "holder": holder, "remotes": each.remotes, "active": each.active, "calls": None})
    for held in roll_call(member):
        if (held.run, held.epoch) not in known:
            host, pid = held.owner.split(":")[:2]
            row = {"run": held.run, "epoch": held.epoch, "state": held.state, "age": round(held.age, 1)}
            found.append({**row, "holder": f"{host}:{pid}", "remotes": 0, "active": 0, "calls": held.calls})
    return found


def state_of(run: RunRecord) -> str:
    """In a word or two."""
    if run.outcome is not None:
        return run.outcome.value.replace("_", " ")
    if run.parked_until is not None:
        return "parked"
    if run.cancelled_at is not None:
        return "cancelling"
    return "open" if run.closed_at is None else "left" if run.active else "ended"


def ps(url: Optional[str], *, ended: bool, watch: bool, as_json: bool, console: Console) -> int:
    """Print the runs; with `watch` until interrupted."""
    member = member_of(url_of(url))
    if as_json:
        print(json.dumps(listing(member, ended=ended), indent=2))
        return CONFIRMED
    if not watch:
        console.print(_table(listing(member, ended=ended)))
        return CONFIRMED
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_table(listing(member, ended=ended)), refresh=True)
            time.sleep(WATCHED)
    return CONFIRMED


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("run", "state", "age", "holder", "remote runs")
    for each in rows:
        remotes = f"{each['active']} of {each['remotes']} at work" if each["remotes"] else ""
        cells = (each["run"], each["state"], f"{each['age']:.0f} s", each["holder"], remotes)
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


# Cancels


def cancel(
    url: Optional[str],
    target: Optional[str],
    *,
    every: bool,
    reason: Optional[str],
    actor: Optional[str],
    timeout: Optional[float],
    wait: str,
) -> int:
    """Cancel one run or all of them, print the receipts. The exit code."""
    if (target is None) is not every:
        print("deadstop: give the name or the address of a run, or --all.", file=sys.stderr)
        return USAGE
    key = os.environ.get("OPENAI_API_KEY")
    try:
        if target is not None and kinds.parse(target) is not None and not key:
            raise UsageError(f"To cancel {target}, set OPENAI_API_KEY, and OPENAI_BASE_URL if it is not OpenAI's.")
        client = OpenAI(api_key=key or "none", base_url=_base_url(), runs_url=url_of(url))
        keeper: Any = client.runs._registry.keeper
        if not key:
            keeper.pick_up.rest()  # the server would refuse it
        names = [target] if target is not None else _live_names(keeper.member)
        facts = {"reason": reason, "actor": actor or _user(), "wait": wait, "timeout": timeout}
        with contextlib.closing(client), ThreadPoolExecutor(max_workers=16) as pool:
            outcomes = list(pool.map(lambda name: _cancel_one(client, str(name), facts), names))
    except DeadstopError as error:
        print(f"deadstop: {error}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else UNCONFIRMED
    if not every:
        return outcomes[0]
    return next((code for code in (USAGE, UNCONFIRMED) if code in outcomes), CONFIRMED)


def _live_names(member: Member) -> list[str]:
    """Every run that other processes can name: those on record, and the named ones that are held."""
    found = [each.run for each in member.ledger.runs(limit=1000) if each.parked_until is None]
    found += [each.run for each in roll_call(member, ANSWERS) if each.named]
    return list(dict.fromkeys(found))


def _cancel_one(client: OpenAI, name: str, facts: dict[str, Any]) -> int:
    try:
        receipt: CancelReceipt = client.runs.cancel(name, **facts)
    except CancelRefusedError as error:
        print(f"deadstop: {error}", file=sys.stderr)
        return UNCONFIRMED
    except DeadstopError as error:
        known = getattr(error, "receipt", None)
        if known is None:
            print(f"deadstop: {error}", file=sys.stderr)
            return USAGE if isinstance(error, UsageError) else UNCONFIRMED
        receipt = known
    print(receipt)
    if receipt.note:
        print(f"  {receipt.note}")
    if receipt.outcome is Outcome.FINISHED_FIRST:
        return FINISHED
    return UNCONFIRMED if receipt.outcome in (Outcome.UNCONFIRMED, Outcome.PARKED) else CONFIRMED


def _base_url() -> Optional[str]:
    # The first releases of the SDK do not look for it themselves.
    return os.environ.get("OPENAI_BASE_URL") or None


def _user() -> Optional[str]:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return None


def receipts(url: Optional[str], run: Optional[str], *, limit: int, as_json: bool) -> int:
    """Print what cancels came to, the newest first."""
    found = member_of(url_of(url)).ledger.receipts(run, limit=limit)
    if as_json:
        print(json.dumps([{**each.receipt.to_dict(), "epoch": each.epoch, "at": each.at} for each in found], indent=2))
        return CONFIRMED
    for each in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.at))
        print(f"{at}  {each.receipt}")
    return CONFIRMED


# The reconciler


def reconcile(url: Optional[str], *, once: bool, keep: float = KEEP) -> int:
    """Finish what dead processes left behind, until SIGTERM or SIGINT; with `once` until there is nothing left."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("deadstop").setLevel(logging.INFO)
    for noisy in ("httpx", "httpx2", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    client = OpenAI(base_url=_base_url(), runs_url=url_of(url))
    keeper: Any = client.runs._registry.keeper
    print(f"Reconciling {keeper.member.ledger.url} at {client.base_url}", flush=True)
    failed = _work(keeper, stop, once, keep)
    pick_up: PickUp = keeper.pick_up
    pick_up.rest()
    until = time.monotonic() + STOPPING
    while pick_up.busy and time.monotonic() < until:
        time.sleep(0.02)
    client.close()
    keeper.member.close()
    print(f"{pick_up.finished} finished.", flush=True)
    if failed is None or not once:
        return CONFIRMED
    print(f"deadstop: what there is to finish could not be read: {failed}", file=sys.stderr)
    return UNCONFIRMED


def _work(keeper: Keeper, stop: threading.Event, once: bool, keep: float) -> Optional[Exception]:
    """What went wrong when the record was read last, if anything did."""
    member, swept, idle = keeper.member, 0.0, 0
    failed: Optional[Exception] = None
    tidy = threading.Event()
    if member.jobs is not None:
        member.jobs.ready()
    while not stop.is_set():
        looked, errors = threading.Event(), list[Exception]()
        member.read(member.read_again, partial(_told, looked, errors))
        if not looked.wait(STOPPING):
            errors.append(LedgerUnavailable(f"The ledger did not answer within {STOPPING:g} s."))
        failed = errors[0] if errors else None
        now = time.time()
        if now >= swept + SWEEP:
            swept = now
            tidy.clear()
            member.write(partial(_sweep, member, now - keep, now, tidy))
        jobs, pick_up = member.jobs, keeper.pick_up
        busy = (isinstance(pick_up, PickUp) and pick_up.busy) or (jobs is not None and jobs.busy)
        idle = 0 if busy else idle + 1
        if once and idle > 1 and tidy.is_set():
            break
        stop.wait(0.1 if once else WATCHED)
    return failed


def _told(looked: threading.Event, errors: list[Exception], _: object, error: Optional[Exception]) -> None:
    errors += [] if error is None else [error]
    looked.set()


def _sweep(member: Member, before: float, now: float, tidy: threading.Event) -> None:
    """One batch: what is to be put on record meanwhile comes before the next one."""
    more = 0
    try:
        more = member.ledger.sweep(before=before, now=now)
    finally:
        if more and not member._closed:
            member.write(partial(_sweep, member, before, now, tidy))
        else:
            tidy.set()
