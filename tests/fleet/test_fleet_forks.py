"""Processes that are forked while a ledger is in use: what is the parent's stays the parent's."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import pytest
from fleet_homes import Child
from worlds import until

import deadstop
from deadstop import CancelPolicy
from deadstop.core.model import Intent
from deadstop.ledger import connect
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Process
from deadstop.testing import FakeOpenAI

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
