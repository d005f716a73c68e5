"""Signals from outside: nonsense, forgeries, callbacks that leave, and processes that do not read theirs."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import closing
from typing import Any

import pytest
from remote_runs import JSON
from worlds import until

import deadstop
from deadstop import CancelPolicy
from deadstop.core.model import Intent
from deadstop.fleet.member import Member
from deadstop.fleet.post import Post, Sent, directory
from deadstop.ledger.base import Ledger
from deadstop.testing import FakeOpenAI

BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}
DEEP = 7900  # brackets: more than a JSON parser goes down, and no more than Postgres notifies of
sockets_alone = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
database_alone = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@pytest.fixture
def client(server: FakeOpenAI, url: str) -> Any:
    one = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    one.runs.policy = CancelPolicy(timeout=5.0, recheck=0)
    yield one
    one.close()


def member_of(client: Any) -> Member:
    found: Member = client.runs._registry.keeper.member
    return found


@database_alone
def test_a_hint_that_is_a_cancel_itself_is_not_believed(client: Any, url: str) -> None:
    """Over a database a cancel is read in the record, and whoever may notify may not cancel. Nonsense that can't be
    parsed does not end the listening: a cancel that is on record is heard after both."""
    import psycopg

    member, other = member_of(client), Member(url)
    assert member.wire is not None
    assert member.wire.listening.wait(20.0)
    assert other.writes.drain(20.0)
    with client.runs.open("forged") as forged, client.runs.open("real", cancellers=["ann"]) as real:
        with psycopg.connect(url, autocommit=True) as connection:
            for hint in ('{"do": "cancel", "run": "forged", "reason": "forged"}', "[" * DEEP):
                connection.execute("SELECT pg_notify('deadstop_all', %s)", [hint])
        now = time.time()
        other.ledger.record_intent(Intent("real", actor="ann", at=now), other.process, now=now)
        until(lambda: real.cancelled, "the cancel that is on record")
        assert not forged.cancelled
        assert member._listener.is_alive()
    other.close()


@sockets_alone
def test_nonsense_does_not_end_the_listening(client: Any) -> None:
    """A message that is nested deeper than a JSON parser goes is passed over, and the next one is heard."""
    member, sender = member_of(client), Post(directory())
    assert isinstance(member.post, Post)
    with client.runs.open("chat-42") as run:
        sender._socket.sendto(b"[" * 60_000, member.post.address)
        told = {"do": "cancel", "id": "x", "run": "chat-42", "epoch": 0, "reply": None}
        assert sender.send(member.post.address, told) is Sent.TAKEN
        until(lambda: run.cancelled, "the cancel")
    sender.close()


def test_a_callback_that_means_to_leave_ends_no_thread_of_ours(
    client: Any, server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """`sys.exit()` in a callback, on a cancel by another process: it is seen through, and so is the next one."""
    member, other = member_of(client), Member(url)
    assert member.writes.drain(20.0)
    assert other.writes.drain(20.0)
    for number, name in enumerate(("chat-42", "chat-43")):
        with client.runs.open(name) as run:
            client.post("/responses", body=BACKGROUND, cast_to=JSON)
            assert member.writes.drain(20.0)
            run.on_cancel(lambda _: sys.exit(1))
            now = time.time()
            other.ledger.record_intent(Intent(name, at=now), other.process, now=now)
            other.signal({"do": "cancel", "id": "x", "run": name, "epoch": 1, "reply": None})
            until(lambda: server.runs[number].truth == "cancelled", "the cancel")  # noqa: B023
    assert member._listener.is_alive()
    assert member.reads.drain(20.0)
    other.close()


@sockets_alone
def test_a_process_that_does_not_read_holds_up_nobody(url: str) -> None:
    """One process is stopped and its socket full: who sends to it is not held up, nor are messages for others; also
    while another thread waits for messages on the sender's socket."""
    with closing(Post(directory())) as mine, closing(Post(directory())) as stopped, closing(Post(directory())) as third:
        waiting = threading.Event()

        def listen() -> None:
            waiting.set()
            while mine.receive(10.0) != {"do": "wake"}:
                pass

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        assert waiting.wait(20.0)
        began = time.monotonic()
        for _ in range(2000):
            sent = mine.send(stopped.address, {"do": "ping"})
            if time.monotonic() - began > 8.0:
                break
        assert time.monotonic() - began < 8.0, "a single send has waited for as long as the other thread does"
        assert sent is Sent.UNSURE
        assert mine.send(third.address, {"do": "cancel"}) is Sent.TAKEN
        assert third.receive(5.0) == {"do": "cancel"}
        mine.wake()
        thread.join(20.0)
        assert not thread.is_alive()
