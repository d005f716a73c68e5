"""A cancel from another process of the host: it reaches the holder, or finishes what a dead one left behind."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fleet_homes import Child
from worlds import CHAT, until

from deadstop import CancelPolicy, RunCancellationTimeoutError, RunCancelledError
from deadstop.errors import LedgerUnavailable
from deadstop.fleet.post import Post, Sent, directory
from deadstop.ledger import rules
from deadstop.ledger.base import Ledger
from deadstop.testing import FakeOpenAI

sockets_alone = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
threads_alone = pytest.mark.parametrize("world", ["threads"], indirect=True)


@pytest.fixture
def holder(world: Any) -> str:
    """A child of the same sort."""
    return "tasks" if world.is_async else "threads"


@pytest.fixture
def client(world: Any, server: FakeOpenAI, url: str) -> Any:
    one = world.client(server.base_url, max_retries=0, runs_url=url)
    one.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
    yield one
    world.close(one)


def held(child: Any, holder: str, url: str, server: FakeOpenAI, *what: str, name: str = "chat-42") -> Child:
    """A child that holds a run; `what` is under way in it."""
    one: Child = child(holder, url, server.base_url, name, *what)
    for _ in what:
        assert one.line() == "ready"
    if "call" in what:
        server.wait_for(lambda requests: any(each.tokens_generated for each in requests), 20.0)
    return one


def test_a_cancel_reaches_the_process_that_holds_the_run(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, holder: str, ledger: Ledger
) -> None:
    """The caller there is freed at once, with who and why; here comes the receipt, of the call and the remote run."""
    other = held(child, holder, url, server, "remote", "call")
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop", actor="ann")
    assert other.line() == "cancelled chat-42 stop ann"
    assert (receipt.outcome, receipt.reason, receipt.actor) == ("cancelled", "stop", "ann")
    assert [each.kind for each in receipt.children] == ["response"]
    (run,) = server.runs
    assert (run.truth, run.cancels) == ("cancelled", 1)
    other.say("")
    other.end()
    assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]
    assert ledger.open_intents() == ledger.parked(now=0.0) == []


@threads_alone
def test_a_signal_that_was_lost_is_made_good(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any signal the holder finds the cancel on record, within about two seconds."""
    other = held(child, "threads", url, server, "call")
    client.runs._registry.keeper.member.signal = lambda message: (set(), False)
    announced = rules.announced  # by Postgres, with the record
    monkeypatch.setattr(rules, "announced", lambda *about: announced(*about)._replace(run="another"))
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop", wait="sent")
    assert receipt.outcome in ("parked", "sent")
    began = time.monotonic()
    assert other.line() == "cancelled chat-42 stop None"
    assert time.monotonic() - began < 6.0


def test_what_a_dead_holder_left_behind_is_cancelled(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, holder: str, ledger: Ledger
) -> None:
    """The holder was killed: its death is noticed at once, and its remote run is cancelled from here."""
    other = held(child, holder, url, server, "remote")
    until(ledger.active_remotes, "the remote run's record")
    other.kill()
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop", actor="ann")
    assert (receipt.outcome, receipt.reason, receipt.evidence) == ("cancelled", "stop", "status")
    (run,) = server.runs
    assert (run.truth, run.cancels) == ("cancelled", 1)
    assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]


@threads_alone
def test_a_holder_that_dies_of_its_cancel_does_not_keep_anybody_waiting(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took the cancel up and ended before it was on record: that is the outcome, and no cancel stays parked."""
    if url.startswith("postgres"):  # the tests' database may have been started just now
        monkeypatch.setattr("deadstop.fleet.wire.RETURN", 0.0)
    held(child, "threads", url, server, "die")
    began = time.monotonic()
    receipt = world.run(client.runs.cancel, "chat-42", reason="stop")
    assert (receipt.outcome, receipt.evidence) == ("cancelled", "transport")
    assert time.monotonic() - began < 4.0
    assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]
    assert ledger.parked(now=0.0) == []


@threads_alone
def test_a_stopped_holder_is_waited_for_within_the_timeout(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str
) -> None:
    """A holder that is stopped says nothing: the cancel ends with its timeout, and takes effect when it goes on."""
    other = held(child, "threads", url, server, "remote", "call")
    os.kill(other.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(RunCancellationTimeoutError):
            world.run(client.runs.cancel, "chat-42", reason="stop", timeout=1.0)
        assert time.monotonic() - began < 3.0
    finally:
        os.kill(other.pid, signal.SIGCONT)
    assert other.line() == "cancelled chat-42 stop None"
    until(lambda: server.runs[0].truth == "cancelled", "the cancel of the remote run")


@threads_alone
def test_a_name_that_ended_here_may_be_held_elsewhere(
    world: Any, server: FakeOpenAI, child: Any, url: str, client: Any
) -> None:
    """The run of that name that ended here is not taken for the one that another process holds now."""
    with FakeOpenAI(rate=0, tokens=3) as quick:
        here = world.client(quick.base_url, runs_url=url)
        here.runs.policy = CancelPolicy(timeout=10.0)
        world.run(world.create, here, "chat-42")
        assert world.run(here.runs.cancel, "chat-42").outcome == "finished_first"
        other = held(child, "threads", url, server, "call")
        assert world.run(here.runs.cancel, "chat-42", reason="stop").outcome == "cancelled"
        assert other.line() == "cancelled chat-42 stop None"
        world.close(here)


def test_a_run_of_another_client_of_this_process_is_found(
    world: Any, client: Any, server: FakeOpenAI, url: str
) -> None:
    """Clients that share a ledger cancel each other's runs by name without a detour."""
    call = world.start(world.create, client, "chat-42")
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    other = world.client(server.base_url, runs_url=url)
    assert world.run(other.runs.cancel, "chat-42", reason="stop").outcome == "cancelled"
    assert isinstance(call.failure(), RunCancelledError)
    world.close(other)


@threads_alone
def test_a_cancel_that_waits_for_less_returns_sooner(
    world: Any, client: Any, server: FakeOpenAI, child: Any, url: str
) -> None:
    """`accepted` is answered once the holder has said that the run is its own; `sent` once it is on record."""
    other = held(child, "threads", url, server, "call")
    assert world.run(client.runs.cancel, "chat-42", wait="accepted").outcome in ("accepted", "cancelled")
    assert other.line() == "cancelled chat-42 None None"


def test_a_child_of_a_fork_is_a_process_of_its_own(server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """A forked child has an entry and a socket of its own, and its runs are found."""
    import deadstop

    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    client.runs.policy = CancelPolicy(timeout=10.0)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with client.runs.open("of the child"):
                client.chat.completions.create(**CHAT)
        except RunCancelledError as error:
            os.write(writing, str(error.reason).encode())
        finally:
            os._exit(0)
    server.wait_for(lambda requests: any(each.tokens_generated for each in requests), 20.0)
    receipt = client.runs.cancel("of the child", reason="stop", wait="accepted")
    assert receipt.outcome in ("accepted", "cancelled")
    assert os.read(reading, 100) == b"stop"
    os.waitpid(pid, 0)
    for each in (reading, writing):
        os.close(each)
    client.close()


# The socket


@sockets_alone
def test_a_socket_is_this_users_alone(url: str, tmp_path: Path) -> None:
    """Its mode is 0600, that of its directory 0700; a directory that is open to others is refused."""
    where = directory()
    post = Post(where)
    assert (where.stat().st_mode & 0o777, os.stat(post.address).st_mode & 0o777) == (0o700, 0o600)
    post.close()
    assert not os.path.exists(post.address)
    where.chmod(0o755)
    with pytest.raises(LedgerUnavailable):
        directory()
    where.chmod(0o700)


@sockets_alone
def test_a_dead_socket_is_noticed_at_once(url: str) -> None:
    """A message to a process that was killed says so, and its socket is taken away."""
    post = Post(directory())
    address = post.address + ".dead"
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(address)
    dead.close()
    assert post.send(address, {"do": "ping"}) is Sent.DEAD
    assert not os.path.exists(address)
    post.close()


@sockets_alone
def test_nonsense_does_not_end_the_listening(url: str, server: FakeOpenAI) -> None:
    """What is no message, or one of a version that does not exist yet, is passed over."""
    import deadstop

    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, runs_url=url)
    member = client.runs._registry.keeper.member
    sender, heard = Post(directory()), threading.Event()
    member.waiting["x"] = lambda message: heard.set()
    for each in (b"", b"\xff", b"[1]", b'{"do": "cancel", "run": "x", "cause": "new"}', b'{"do": "dance"}'):
        sender._socket.sendto(each, member.post.address)
    sender.send(member.post.address, {"do": "have", "id": "x"})
    assert heard.wait(20.0)
    sender.close()
    client.close()
