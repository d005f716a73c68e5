"""Processes that are forked while a ledger is in use: what is the parent's stays the parent's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Dict  # noqa: UP035

import pytest
from fleet_homes import Child, other_way
from worlds import CHAT, until

import deadstop
from deadstop import CancelPolicy, RunCancelledError
from deadstop.core.model import Intent
from deadstop.ledger import connect
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Process
from deadstop.testing import FakeOpenAI, faults

DEAD = Process("gone:1:1", "gone", 1)
database_alone = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@contextmanager
def forked(work: Callable[[Callable[[], Any], Callable[[], Any]], Any]) -> Iterator[int]:
    """A forked child does `work(ready, go_on)`, which says that it is ready, and waits until it may go on. The body
    begins once it is ready, and may take its time."""
    ready, go_on = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(lambda: os.write(ready[1], b"x"), lambda: os.read(go_on[0], 1))
        finally:
            os._exit(0)
    os.close(ready[1])
    try:
        assert os.read(ready[0], 1) == b"x", "the child failed"
        yield pid
    finally:
        os.write(go_on[1], b"x")
        os.waitpid(pid, 0)
        for each in (ready[0], *go_on):
            os.close(each)


def test_the_first_run_of_a_child_is_its_own(server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """A run that was opened right after the fork is on record as the child's: if that dies, it is left behind."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    keeper: Any = client.runs._registry.keeper
    assert keeper.member.writes.drain(20.0)

    def work(ready: Callable[[], Any], go_on: Callable[[], Any]) -> None:
        with client.runs.open("of the child", cancellers=["ann"]):
            ready()
            go_on()

    with forked(work) as pid:
        (run,) = ledger.runs("of the child")
        assert run.by is not None
        assert (run.by.pid, run.by.owner == keeper.member.process.owner) == (pid, False)
    client.close()


@pytest.fixture
def parent(server: FakeOpenAI, url: str) -> Iterator[Any]:
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    assert writes_of(client).drain(20.0)
    yield client
    client.close()


def writes_of(client: Any) -> Any:
    return client.runs._registry.keeper.member.writes


def begin(client: Any) -> None:
    """A remote run."""
    body: Any = {"model": "m", "input": "hi", "background": True}
    client.post("/responses", body=body, cast_to=Dict[str, object])  # noqa: UP006


def test_what_the_parent_has_yet_to_record_is_not_put_down_to_its_child(
    parent: Any, server: FakeOpenAI, ledger: Ledger
) -> None:
    """The ledger was slow, so the fork came in between: else the remote run would be an orphan at the child's end."""
    member, free = parent.runs._registry.keeper.member, threading.Event()
    writes_of(parent).submit(lambda: free.wait(20.0))

    def work(ready: Callable[[], Any], go_on: Callable[[], Any]) -> None:
        with parent.runs.open("of the child"):
            assert writes_of(parent).drain(20.0)
            member.read_again()
            assert writes_of(parent).drain(20.0)
            ready()
            go_on()

    with parent.runs.open("chat-42"):
        begin(parent)
        with forked(work):
            assert ledger.active_remotes() == []
        free.set()
        assert writes_of(parent).drain(20.0)
        assert [each.owner for each in ledger.active_remotes()] == [member.process.owner]
        assert [each.epoch for each in ledger.runs("chat-42")] == [1]


def test_a_child_answers_for_nothing_of_its_parent(parent: Any, server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """The child has a copy of the scope, with nothing in it: what that comes to is no outcome (I2)."""

    def work(ready: Callable[[], Any], go_on: Callable[[], Any]) -> None:
        with parent.runs.open("of the child", cancellers=["ann"]):
            assert writes_of(parent).drain(20.0)
            ready()
            go_on()

    asker = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=other_way(url))
    asker.runs.policy = CancelPolicy(timeout=1.0, on_timeout="return")
    with parent.runs.open("chat-42", cancellers=["ann"]), forked(work):
        begin(parent)
        assert writes_of(parent).drain(20.0)
        server.add(faults.IgnoresCancel())
        assert asker.runs.cancel("chat-42", actor="ann").outcome == "unconfirmed"
        assert server.runs[0].truth == "active"
        assert "cancelled" not in [each.outcome for each in ledger.receipts("chat-42")]
    asker.close()


def test_a_child_that_leaves_its_parents_scope_does_not_close_it(parent: Any, ledger: Ledger) -> None:
    """The parent is in it still, so it is on record as open."""
    with parent.runs.open("chat-42", cancellers=["ann"]) as run:

        def work(ready: Callable[[], Any], go_on: Callable[[], Any]) -> None:
            run.__exit__(None, None, None)
            assert writes_of(parent).drain(20.0)
            ready()

        with forked(work):
            assert [each.run for each in ledger.runs()] == ["chat-42"]
    assert writes_of(parent).drain(20.0)
    assert ledger.runs() == []


def test_a_child_may_cancel_its_parents_scope(parent: Any, ledger: Ledger) -> None:
    """What it wants is on record, and its parent's to do."""
    with parent.runs.open("chat-42", cancellers=["ann"]) as run:

        def work(ready: Callable[[], Any], go_on: Callable[[], Any]) -> None:
            parent.runs.cancel("chat-42", actor="ann", reason="enough")
            assert writes_of(parent).drain(20.0)
            ready()

        with forked(work):
            until(lambda: run.cancelled, "the cancel")
    until(lambda: writes_of(parent).drain(1.0) and ledger.receipts("chat-42"), "the outcome")
    (found,) = ledger.receipts("chat-42")
    assert (found.receipt.reason, found.owner) == ("enough", parent.runs._registry.keeper.member.process.owner)


def test_a_cancel_by_a_child_goes_to_its_parent(parent: Any, server: FakeOpenAI) -> None:
    """I2: the child has a copy of the run, and a call in it. What it is told is what came of the parent's."""
    called = threading.Event()
    errors: list[BaseException] = []

    def call() -> None:
        try:
            with parent.runs.open("chat-42"):
                for _ in parent.chat.completions.create(**CHAT, stream=True, max_tokens=10_000):
                    called.set()
        except RunCancelledError as error:
            errors.append(error)

    def work(ready: Callable[[], Any], go_on: Callable[[], Any]) -> None:
        found = parent.runs.cancel("chat-42", reason="enough", timeout=10)
        assert (found.outcome, len(found.calls)) == ("cancelled", 1)
        ready()

    thread = threading.Thread(target=call)
    thread.start()
    assert called.wait(20.0)
    with forked(work):
        thread.join(20.0)
    assert [str(each) for each in errors] == ["Run 'chat-42' was cancelled: enough."]


def test_a_child_that_cancels_all_it_knows_puts_nothing_on_record_for_its_parent(parent: Any, ledger: Ledger) -> None:
    """As a signal handler does that it has from its parent, whose run is on record, and could be found there."""
    with parent.runs.open("chat-42", cancellers=["ann"]) as run:
        begin(parent)
        assert writes_of(parent).drain(20.0)

        def work(ready: Callable[[], Any], go_on: Callable[[], Any]) -> None:
            for each in parent.runs.list():
                each.cancel_soon(actor="ann", reason="SIGTERM")
            assert writes_of(parent).drain(20.0)
            ready()

        with forked(work):
            assert ledger.open_intents() == []
            assert ledger.intent("chat-42") is None
    assert not run.cancelled


def test_who_cancels_a_scope_cancels_what_a_child_does_in_it(
    parent: Any, server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """The child was forked inside: its share of the scope has a name of its own, and hears of a cancel all the same."""

    def work(ready: Callable[[], Any], go_on: Callable[[], Any]) -> None:
        begin(parent)
        assert writes_of(parent).drain(20.0)
        ready()
        until(lambda: run.cancelled, "the cancel")
        go_on()

    asker = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=other_way(url))
    with parent.runs.open("chat-42") as run:
        begin(parent)
        with forked(work):
            assert asker.runs.cancel("chat-42", reason="enough", timeout=10).outcome == "cancelled"
            until(lambda: [each.truth for each in server.runs] == ["cancelled", "cancelled"], "the end of both")
    asker.close()


@database_alone
def test_a_child_gives_back_no_claim_of_its_parent(url: str, ledger: Ledger) -> None:
    """The lock is the parent's session's: the child lets go of its copy, and the parent has it still."""
    claim = ledger.claim("chat-42")
    assert claim is not None

    def work(ready: Callable[[], Any], go_on: Callable[[], Any]) -> None:
        claim.release()
        ready()
        go_on()

    with forked(work):
        assert claim.held
        with connect(url) as other:
            assert other.claim("chat-42") is None
    claim.release()
    with connect(url) as other:
        taken = other.claim("chat-42")
        assert taken is not None
        taken.release()


@database_alone
def test_a_child_does_not_keep_its_parent_alive(
    server: FakeOpenAI, url: str, ledger: Ledger, child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent is killed and the child lives: the server sees the sessions end, and the runs are left behind."""
    monkeypatch.setattr("deadstop.fleet.wire.RETURN", 0.0)  # the tests' database may have been started just now
    other: Child = child("threads", url, server.base_url, "chat-42", "remote", "fork")
    assert [other.line(), other.line()] == ["ready", "ready"]
    until(ledger.active_remotes, "the remote run's record")
    other.kill()
    worker = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    worker.runs.policy = CancelPolicy(timeout=5.0, recheck=0)
    now = time.time()
    ledger.record_intent(Intent("chat-42", at=now), DEAD, now=now)
    member: Any = worker.runs._registry.keeper.member  # type: ignore[union-attr]

    def cancelled() -> bool:
        member.read(member.read_again)
        assert member.reads.drain(20.0)
        return server.runs[0].truth == "cancelled"

    until(cancelled, "the end of what it left behind")
    worker.close()
