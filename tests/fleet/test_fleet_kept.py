"""What one client puts on record, and when; and that it never stands in the way of a cancel."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import openai
import pytest
from fleet_homes import SOURCES
from worlds import CHAT, until

import deadstop
from deadstop import CancelPolicy, RunCancelledError
from deadstop.core.model import Intent
from deadstop.errors import LedgerError, LedgerUnavailable, LedgerUrlError, UsageError
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Process
from deadstop.testing import FakeOpenAI

JSON = Dict[str, object]  # noqa: UP006
BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}


def begin(world: Any, client: Any, name: Any) -> Any:
    return world.run(world.call, client, name, client.post, "/responses", body=BACKGROUND, cast_to=JSON)


@pytest.fixture
def client(world: Any, server: FakeOpenAI, url: str) -> Any:
    one = world.client(server.base_url, max_retries=0, runs_url=url)
    one.runs.policy = CancelPolicy(timeout=5.0, recheck=0)
    yield one
    world.close(one)


def on_record(client: Any) -> None:
    """What was given to be written so far is written."""
    keeper = client.runs._registry.keeper
    assert keeper.member.writes.drain(20.0)


def test_without_a_ledger_nothing_of_it_is_imported() -> None:
    """A client without a ledger is as light as ever: no ledger, no fleet, no SQLite, no thread."""
    code = """
import sys, threading
import deadstop
client = deadstop.OpenAI(api_key="k", base_url="http://127.0.0.1:9/v1", max_retries=0)
with client.runs.open("chat") as run:
    run.cancel_soon()
names = [each for each in sys.modules if each.startswith(("deadstop.ledger", "deadstop.fleet", "deadstop.runs.keeper"))]
print(names, "sqlite3" in sys.modules, threading.active_count())
"""
    env = {"PYTHONPATH": SOURCES, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True, env=env)
    assert done.stdout.split("\n")[0] == "[] False 1"


@pytest.mark.parametrize("wrong", ["redis://x", "sqlite://x", "sqlite:///"])
def test_a_wrong_address_is_an_error_at_construction(wrong: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad URL is told at once: by the constructor, by `attach`, and where it comes from the environment."""
    with pytest.raises(LedgerUrlError):
        deadstop.OpenAI(api_key="k", runs_url=wrong)
    with pytest.raises(LedgerUrlError):
        deadstop.attach(openai.OpenAI(api_key="k"), url=wrong)
    monkeypatch.setenv("DEADSTOP_URL", wrong)
    with pytest.raises(LedgerUrlError):
        deadstop.AsyncOpenAI(api_key="k")
    with pytest.raises(LedgerUrlError):
        deadstop.attach(openai.AsyncOpenAI(api_key="k"))


def test_a_store_that_cant_be_used_is_an_error_at_construction(url: str) -> None:
    """A ledger that can't be opened is told by the constructor, not by the first cancel."""
    with pytest.raises(LedgerUnavailable):
        deadstop.OpenAI(api_key="k", runs_url="sqlite:////proc/nowhere/ledger.db")


def test_every_way_to_a_ledger_leads_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor, `attach` and the environment give a client the same ledger; its copies share it."""
    attached = openai.OpenAI(api_key="k")
    keepers = [
        deadstop.OpenAI(api_key="k", runs_url=url).runs._registry.keeper,
        deadstop.attach(attached, url=url)._registry.keeper,
        deadstop.AzureOpenAI(
            api_key="k", azure_endpoint="https://x.example.com", api_version="1", runs_url=url
        ).runs._registry.keeper,
    ]
    monkeypatch.setenv("DEADSTOP_URL", url)
    client = deadstop.OpenAI(api_key="k")
    keepers += [client.runs._registry.keeper, client.copy().runs._registry.keeper]
    assert len({keeper.member for keeper in keepers if keeper is not None}) == 1
    assert None not in keepers
    with pytest.raises(UsageError):
        deadstop.attach(attached, url="memory:")


def test_a_run_that_nobody_cancels_is_not_on_record(world: Any, client: Any, ledger: Ledger) -> None:
    """Calls in a scope that ends by itself cost no durable write."""
    with FakeOpenAI(rate=0, tokens=3) as quick:
        other = world.client(quick.base_url, runs_url=None)
        world.run(world.create, other, None)
        world.close(other)
    on_record(client)
    assert ledger.runs(ended=True) == []


def test_a_remote_run_is_on_record_once_its_id_is_known(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI
) -> None:
    """A remote run is recorded under its scope, with its address; without a scope under its own name."""
    begin(world, client, "chat-42")
    begin(world, client, None)
    on_record(client)
    found = {each.ref: each for each in ledger.active_remotes()}
    scoped, alone = ("response:" + "/".join(each.ids) for each in server.runs)
    assert (found[scoped].run, found[alone].run) == ("chat-42", alone)
    assert {each.base_url for each in found.values()} == {server.base_url}


def test_the_intent_is_kept_before_the_first_request_leaves(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI
) -> None:
    """While the intent of a remote run's cancel is not kept yet, nothing is sent; once it is, one cancel is."""
    begin(world, client, "chat-42")
    member = client.runs._registry.keeper.member
    original, held, sent = member.ledger.record_intent, threading.Event(), []

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert held.wait(0.5) is False
        sent.append(server.runs[0].cancels)
        return original(*args, **kwargs)

    member.ledger.record_intent = slow
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop", actor="ann")
    assert (sent, receipt.outcome, receipt.note) == ([0], "cancelled", receipt.note)
    on_record(client)
    (kept,) = ledger.receipts("chat-42")
    assert (kept.outcome, kept.receipt.reason, kept.receipt.actor) == ("cancelled", "stop", "ann")
    (attempt,) = ledger.attempts("chat-42", 1)
    assert (attempt.number, attempt.status) == (1, 200)
    assert abs(attempt.started - time.time()) < 60
    assert ledger.open_intents() == ledger.active_remotes() == ledger.runs() == []


def test_a_cancel_that_has_returned_is_on_record(world: Any, client: Any, ledger: Ledger) -> None:
    """A call's cancel strikes first; when it returns, who wanted it and why is kept, and soon what came of it."""
    call = world.start(world.create, client, "chat-42")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    assert world.run(client.runs.cancel, "chat-42", reason="stop", actor="ann").outcome == "cancelled"
    wanted = ledger.intent("chat-42")
    assert wanted is not None
    assert (wanted.intent.reason, wanted.intent.actor) == ("stop", "ann")
    assert isinstance(call.failure(), RunCancelledError)
    on_record(client)
    assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]


def test_a_ledger_that_is_down_stops_no_cancel(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Local cancels of calls and of remote runs happen all the same, and their receipts say that they are not kept."""
    member = client.runs._registry.keeper.member

    def down(*args: Any, **kwargs: Any) -> Any:
        raise LedgerUnavailable("The disk is full.")

    begin(world, client, "remote")
    assert member.writes.drain(20.0)
    for name in ("record_intent", "open_run", "record_remote", "settle"):
        setattr(member.ledger, name, down)
    call = world.start(world.create, client, "call")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    for name in ("call", "remote"):
        receipt = world.run(client.runs.cancel, name)
        assert receipt.outcome == "cancelled"
        assert "The disk is full." in receipt.note
    assert isinstance(call.failure(), RunCancelledError)
    assert server.runs[0].truth == "cancelled"
    with pytest.raises(LedgerError):
        world.run(client.runs.cancel, "of another process")


def test_a_ledger_that_does_not_answer_is_not_waited_for(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A remote run's cancel waits a second for its record, and then goes on without."""
    begin(world, client, "chat-42")
    member, free = client.runs._registry.keeper.member, threading.Event()
    member.writes.submit(lambda: free.wait(20.0))
    try:
        receipt = world.run(client.runs.cancel, "chat-42")
        assert receipt.outcome == "cancelled"
        assert "did not answer" in receipt.note
        assert server.runs[0].truth == "cancelled"
    finally:
        free.set()


def test_a_run_that_was_cancelled_before_it_was_opened_is_born_cancelled(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI
) -> None:
    """A cancel of a name that nobody holds is parked; the run that opens under it makes no call."""
    receipt = world.run(client.runs.cancel, "chat-42", reason="too late", actor="ann")
    assert receipt.outcome == "parked"
    call = world.start(world.create, client, "chat-42")
    error = call.failure()
    assert isinstance(error, RunCancelledError)
    assert (error.reason, error.actor) == ("too late", "ann")
    assert server.requests == []
    on_record(client)
    assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]
    assert ledger.parked(now=0.0) == []
    with FakeOpenAI(rate=0, tokens=3) as quick:  # once
        again = world.client(quick.base_url, runs_url=client.__dict__["_deadstop_url"])
        assert world.run(world.create, again, "chat-42", **{key: CHAT[key] for key in CHAT})
        world.close(again)


def test_a_cancel_that_was_recorded_before_its_scope_was_left_is_done(
    world: Any, client: Any, ledger: Ledger, server: FakeOpenAI
) -> None:
    """The canceller died before it could signal, and the scope was left before the record was read again: what the
    scope has begun is cancelled all the same, though its name is in use once more."""
    begin(world, client, "chat-42")
    before = time.time()
    call = world.start(world.create, client, "chat-42")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    assert cancelled_by_the_dead(client, ledger, before) == "cancelled"
    assert server.runs[0].truth == "cancelled"
    assert not call.done
    world.run(client.runs.cancel, "chat-42")
    assert isinstance(call.failure(), RunCancelledError)


def test_a_cancel_of_a_scope_that_had_nothing_left_has_an_outcome(world: Any, url: str, ledger: Ledger) -> None:
    """The same where all was over: it had finished first, and nobody looks at it again."""
    with FakeOpenAI(rate=0, tokens=3) as quick:
        client = world.client(quick.base_url, runs_url=url)
        world.run(world.create, client, "chat-42", {"cancellers": ["ann"]})
        assert cancelled_by_the_dead(client, ledger, time.time()) == "finished_first"
        world.close(client)


def cancelled_by_the_dead(client: Any, ledger: Ledger, at: float) -> str:
    """The first life of the run is cancelled by a process that dies then. What becomes of it."""
    on_record(client)
    by = Process("gone:1:1", "gone", 1)
    ledger.record_intent(Intent("chat-42", 1, actor="ann", at=at), by, now=time.time())
    member = client.runs._registry.keeper.member

    def settled() -> bool:
        member.read(member.read_again)
        on_record(client)
        return bool(ledger.receipts("chat-42"))

    until(settled, "an outcome")
    return ledger.receipts("chat-42")[0].outcome.value
