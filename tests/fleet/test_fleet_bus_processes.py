"""The bus of a process: its thread, its connection, forks, addresses, and what it makes of nonsense."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_homes import Child
from nats_kit import NatsServer, nats_server, program
from worlds import CHAT, until

import deadstop
from deadstop import CancelPolicy, RunCancelledError
from deadstop.errors import LedgerUrlError
from deadstop.fleet.addresses import split
from deadstop.fleet.member import Member
from deadstop.fleet.roll import roll_call
from deadstop.testing import FakeOpenAI

real = pytest.mark.skipif(program() is None, reason="no NATS comes as a package for this platform")

ENDS = """
import sys
import deadstop

client = deadstop.OpenAI(api_key="k", base_url="http://127.0.0.1:9/v1", runs_url=sys.argv[1])
with client.runs.open("chat-42"):
    client.runs._registry.keeper.member.exchange.bus.ready(20.0, patient=False)
print(client.runs._registry.keeper.member.exchange.bus.up)
"""


@pytest.fixture
def bus() -> str:
    """The URL of a bus, with a space of the test's own."""
    return nats_server().space()


@pytest.fixture
def members(url: str) -> Iterator[Any]:
    """Makes members, and closes them after the test."""
    made: list[Member] = []

    def make(url: str) -> Member:
        made.append(Member(url))
        assert made[-1].exchange is not None
        return made[-1]

    yield make
    for each in made:
        each.close()


def client_at(server: FakeOpenAI, url: str) -> Any:
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    client.runs.policy = CancelPolicy(timeout=10.0)
    return client


def member_at(client: Any) -> Member:
    member: Member = client.runs._registry.keeper.member
    return member


@real
def test_a_child_of_a_fork_has_a_connection_of_its_own(server: FakeOpenAI, url: str, bus: str) -> None:
    """Its runs are found over the bus, and the parent goes on with the connection it had."""
    client = client_at(server, bus)
    exchange: Any = member_at(client).exchange
    until(lambda: exchange.bus.up, "the bus")
    mine = exchange.bus
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
    until(lambda: any(each.run == "of the child" for each in roll_call(member_at(client), 0.2)), "the child's run")
    receipt = client.runs.cancel("of the child", reason="stop", wait="accepted")
    assert receipt.outcome in ("accepted", "cancelled")
    assert os.read(reading, 100) == b"stop"
    os.waitpid(pid, 0)
    for each in (reading, writing):
        os.close(each)
    assert exchange.bus is mine
    assert mine.up
    client.close()


@real
def test_a_child_of_a_fork_does_not_outlive_its_parent_on_the_bus(
    members: Any, server: FakeOpenAI, child: Any, bus: str
) -> None:
    """The parent is killed and the child lives: the server sees the connection end, so the death is known at once."""
    other: Child = child("threads", bus, server.base_url, "chat-42", "fork", HOST="elsewhere")
    assert other.line() == "ready"
    member, found = members(bus), list[Any]()
    until(lambda: found.extend(roll_call(member, 0.2)) or found, "the run on the bus")
    assert member.exchange.there(found[0].owner) is True
    other.kill()
    until(lambda: member.exchange.there(found[0].owner) is False, "its end on the bus")


@real
@pytest.mark.parametrize("up", [True, False])
def test_a_bus_keeps_no_process_alive(url: str, up: bool) -> None:
    """A program that ends ends, without a word, whether the server is there or not."""
    server = NatsServer(up=up)
    try:
        command = [sys.executable, "-W", "error", "-X", "dev", "-c", ENDS, server.url()]
        path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50, check=False)
    finally:
        server.kill()
    assert (done.returncode, done.stdout) == (0, f"{up}\n"), done.stderr
    # Under -X dev asyncio tells of steps that took longer than 0.1 s, too: of a busy machine.
    said = [line for line in done.stderr.splitlines() if "can't be reached now" not in line]
    assert [line for line in said if not line.startswith("Executing <")] == []


@real
def test_a_process_that_closes_has_told_what_was_settled(members: Any, bus: str) -> None:
    """What is to be sent is sent first, then the connection ends, and so does the thread."""
    asker, holder = members(bus), members(f"memory: {bus}")
    heard, exchange = threading.Event(), holder.exchange
    until(lambda: asker.exchange.bus.up and exchange.bus.up, "both on the bus")
    asker.waiting["x"] = lambda message: heard.set()
    holder.answer(f"nats:{asker.exchange.bus._me}.in.x", {"do": "settled", "id": "x"})
    holder.close()
    assert heard.wait(20.0)
    assert not exchange.bus._thread.is_alive()
    until(lambda: asker.exchange.there(holder.process.owner) is False, "its end on the bus")


@real
def test_nonsense_on_the_bus_does_not_end_the_listening(members: Any, bus: str) -> None:
    """What is no message, or one of a version that does not exist yet, is passed over; no reply goes astray."""
    from nats.aio.client import Client

    member, heard = members(bus), threading.Event()
    one = member.exchange.bus
    until(lambda: one.up, "the bus")
    member.waiting["x"] = lambda message: heard.set()
    strays: list[Any] = []

    async def send() -> None:
        client, address = Client(), bus.rpartition("/")[0]
        await client.connect(address)

        async def stray(message: Any) -> None:
            strays.append(message)

        await client.subscribe("foreign", cb=stray)
        odd: list[Any] = [[1], {"do": "dance"}, {"do": "list", "id": "y", "reply": "nats:foreign"}, {"do": ["x"]}]
        for each in (b"", b"\xff", b"[" * 100_000, *(json.dumps(each).encode() for each in odd)):
            await client.publish(f"{one._me}.in.z", each)
            await client.publish(f"{one._top}.all", each)
        await client.publish(f"{one._me}.in.x", json.dumps({"do": "have", "id": "x"}).encode())
        await asyncio.get_running_loop().run_in_executor(None, heard.wait, 20.0)
        await client.close()

    asyncio.run(send())
    assert heard.is_set()
    assert strays == []


@real
def test_two_spaces_of_one_server_do_not_hear_each_other(members: Any, server: FakeOpenAI) -> None:
    """A run is found by its name in its own space alone."""
    here, there = nats_server().space(), nats_server().space()
    client = client_at(server, here)
    with client.runs.open("chat-42"):
        for address, found in ((f"memory: {here}", ["chat-42"]), (there, [])):
            other = members(address)
            until(lambda one=other: one.exchange.bus.up and member_at(client).exchange.bus.up, "the bus")  # type: ignore[misc]
            assert [each.run for each in roll_call(other)] == found
    client.close()


@real
def test_a_run_that_ended_is_held_no_more(members: Any, server: FakeOpenAI, bus: str) -> None:
    """The server knows no holder, however often a run of that name was opened, cancelled or not."""
    client = client_at(server, bus)
    other = members(f"memory: {bus}")
    one = member_at(client).exchange.bus  # type: ignore[union-attr]
    until(lambda: one is not None and one.up and other.exchange.bus.up, "the bus")
    answers: list[str] = []
    told = threading.Event()

    def hear(message: Any) -> None:
        answers.append(message["do"])
        told.set()

    def ask(at: float) -> str:
        told.clear()
        asked = uuid.uuid4().hex
        other.waiting[asked] = hear
        other.exchange.signal({"do": "cancel", "id": asked, "run": "chat-42", "epoch": 7, "at": at})
        assert told.wait(20.0)
        return answers[-1]

    for at in (0.0, time.time() + 60.0, 0.0):  # an earlier life of that name is meant, or whichever there is
        with client.runs.open("chat-42") as run:
            until(lambda: ask(at) == "none", "the subscription")  # noqa: B023
            assert run.cancelled is (at > 0.0)
        until(lambda: ask(at) == "nobody", "its end")  # noqa: B023
    client.close()


@real
def test_a_wrong_password_is_a_warning_without_it(members: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The server's word is told, once for an outage, and neither the name nor the password."""
    server = NatsServer("--user", "ann", "--pass", "secret")
    try:
        with caplog.at_level(logging.WARNING, "deadstop"):
            wrong = members(f"nats://ann:hunter2@127.0.0.1:{server.port}")
            assert not wrong.exchange.bus.ready(20.0, patient=False)
        assert "Authorization" in caplog.text
        assert "hunter2" not in caplog.text
        assert "ann" not in caplog.text
        right = members(f"nats://ann:secret@127.0.0.1:{server.port}")
        assert right.exchange.bus.ready(20.0, patient=True)
    finally:
        server.kill()


def test_an_address_has_a_ledger_and_a_bus() -> None:
    """Either, or both with a space between; a path may hold spaces; the bus has servers, and a space of its own."""
    assert split("sqlite:////var/a b/x.db") == ("sqlite:////var/a b/x.db", None)
    ledger, bus = split("sqlite:////var/a b/x.db  tls://u:p@one,nats://two:5222/blue ")
    assert ledger == "sqlite:////var/a b/x.db"
    assert bus == (("tls://u:p@one:4222", "nats://two:5222"), "blue", None, "tls://one:4222,nats://two:5222/blue")
    assert split("nats://[::1]")[0] == "memory:"
    assert split("nats://h?creds=/a.creds")[1] == (("nats://h:4222",), "default", "/a.creds", "nats://h:4222")


@pytest.mark.parametrize(
    "wrong",
    [
        *("nats://", "nats://user:hunter2@", "nats://h:x", "nats://h/a/b", "nats://h/a.b", "nats://h?x=1"),
        *("nats://h/a,nats://h/b", "sqlite: nats://h:99999", "nats://h,redis://i", "nats://h#x"),
    ],
)
def test_a_wrong_address_of_a_bus_is_a_usage_error(wrong: str, url: str) -> None:
    """It says what to give, and no password; nothing was opened."""
    with pytest.raises(LedgerUrlError) as refused:
        Member(wrong)
    assert "hunter2" not in str(refused.value)


def test_credentials_that_can_not_be_read_are_a_usage_error(url: str) -> None:
    """A file that is not there, or nkeys that is not: known when the client is made."""
    with pytest.raises(LedgerUrlError, match="credentials"):
        Member("nats://127.0.0.1:9?creds=/nowhere/app.creds")
