"""Who goes on with cancels that others left: never a client that was closed, or whose event loop stands still."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import openai
import pytest
from fleet_homes import other_way
from worlds import until

import deadstop
from deadstop import CancelPolicy
from deadstop.core.model import Intent
from deadstop.errors import LedgerUnavailable
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Opening, Process, RemoteRun
from deadstop.runs import pickup
from deadstop.testing import FakeOpenAI, faults

JSON = Dict[str, object]  # noqa: UP006
BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}
DEAD = Process("gone:1:1", "gone", 1)


def left_by_the_dead(ledger: Ledger, server: FakeOpenAI, name: str = "chat-42") -> None:
    """A background response whose process is gone; its cancel is on record, and not settled."""
    with openai.OpenAI(api_key="k", base_url=server.base_url, max_retries=0) as plain:
        made: Any = plain.post("/responses", body=BACKGROUND, cast_to=JSON)
    now = time.time()
    remote = RemoteRun("response", (str(made["id"]),), server.base_url, name, 0, DEAD.owner, now)
    ledger.record_remote(remote, Opening(name, DEAD, now), now=now)
    ledger.record_intent(Intent(name, at=now), DEAD, now=now)


def client_of(server: FakeOpenAI, url: str, **policy: Any) -> Any:
    made = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)
    made.runs.policy = CancelPolicy(**{"timeout": 5.0, "recheck": 0, **policy})
    return made


def keeper_of(client: Any) -> Any:
    return client.runs._registry.keeper


def look(client: Any) -> None:
    """Have the open cancels read again now, and wait until that is done."""
    member = keeper_of(client).member
    member.read(member.read_again)
    assert member.reads.drain(20.0)


def finished(client: Any, ledger: Ledger, name: str = "chat-42") -> None:
    """Have that client look until the cancel is confirmed."""

    def confirmed() -> bool:
        look(client)
        return [each.outcome for each in ledger.receipts(name)] == ["cancelled"]

    until(confirmed, "another client to finish it")


@pytest.fixture
def worker(server: FakeOpenAI, url: str) -> Iterator[Any]:
    """A client that has nothing else to do."""
    with client_of(server, url) as made:
        yield made


@pytest.fixture
def standing(server: FakeOpenAI, url: str) -> Iterator[tuple[Any, asyncio.AbstractEventLoop]]:
    """An async client that was used on a loop that is not closed, and does nothing just now; and that loop."""
    loop = asyncio.new_event_loop()
    client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url=url)

    async def use() -> None:
        async with client.runs.open("something"):
            pass

    loop.run_until_complete(use())
    try:
        yield client, loop
    finally:
        loop.run_until_complete(client.close())
        loop.close()


def test_a_closed_client_takes_nothing_up(server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """It can send nothing any more, so it claims nothing, and another client finishes at once."""
    closed = client_of(server, url)
    made: Any = closed.post("/responses", body=BACKGROUND, cast_to=JSON)
    closed.runs.cancel(f"response:{made['id']}")
    closed.close()
    left_by_the_dead(ledger, server)
    look(closed)
    assert not keeper_of(closed).pick_up.busy
    with client_of(server, url) as worker:
        finished(worker, ledger)


def test_a_client_that_is_closed_gives_back_what_it_was_about(server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """It settles nothing that it can't confirm any more: the next client has the cancel, as if it were the first."""
    first = client_of(server, url, timeout=60.0)
    server.add(faults.Overloaded(503), path="/cancel")
    left_by_the_dead(ledger, server)
    look(first)
    server.wait_for(lambda records: any(each.path.endswith("/cancel") for each in records), 20.0)
    assert keeper_of(first).pick_up.busy
    first.close()
    server.clear()
    with client_of(server, url) as second:
        finished(second, ledger)
    assert not keeper_of(first).pick_up.busy
    assert [each.revision for each in ledger.receipts("chat-42")] == [0]  # nothing was settled before


def test_what_a_close_interrupts_is_settled_by_who_goes_on(server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """Even if the request under way fails before the client looks what it had in hand."""
    first = client_of(server, url, timeout=60.0)
    server.add(faults.CancelReplySlow(30.0))
    left_by_the_dead(ledger, server)
    look(first)
    server.wait_for(lambda records: any(each.path.endswith("/cancel") for each in records), 20.0)
    go_on = threading.Event()
    keeper_of(first).member.reads.submit(lambda: go_on.wait(20.0))
    first.close()
    until(lambda: not keeper_of(first).pick_up.busy, "the end of its request")
    assert ledger.receipts("chat-42") == []
    go_on.set()
    server.clear()
    with client_of(server, url) as second:
        finished(second, ledger)
    assert [each.revision for each in ledger.receipts("chat-42")] == [0]


def test_a_copy_that_is_closed_ends_nothing_of_the_others(server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """A copy with an HTTP client of its own closes that one alone: the client goes on for others."""
    with client_of(server, url) as client:
        http = type(client._client)()
        client.with_options(http_client=http).close()
        left_by_the_dead(ledger, server)
        finished(client, ledger)


def test_what_a_closed_client_left_unconfirmed_is_another_client_s(
    server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """Its process lives, and nobody in it goes on: another client of that process does."""
    client = client_of(server, url, timeout=1.0, attempt_timeout=0.5, on_timeout="return")
    server.add(faults.Overloaded(503), path="/cancel")
    with client.runs.open("chat-42"):
        client.post("/responses", body=BACKGROUND, cast_to=JSON)
    assert client.runs.cancel("chat-42").outcome == "unconfirmed"
    client.close()
    server.clear()
    with client_of(server, url) as worker:
        finished(worker, ledger)
    assert server.runs[0].truth == "cancelled"


def test_a_cancel_that_reaches_a_closed_client_is_another_client_s(
    server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """It was asked for after the client was closed: unconfirmed there, and then finished by one that can send."""
    client = client_of(server, url, timeout=0.5, on_timeout="return")
    with client.runs.open("chat-42"):
        client.post("/responses", body=BACKGROUND, cast_to=JSON)
        client.close()
        assert client.runs.cancel("chat-42").outcome == "unconfirmed"
    with client_of(server, url) as worker:
        finished(worker, ledger)
    assert server.runs[0].truth == "cancelled"


def test_what_a_closed_client_left_unconfirmed_is_another_process_s(
    server: FakeOpenAI, url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process lives on without a client for that server, and says so on record: another process goes on, and is
    told at once."""
    monkeypatch.setattr("deadstop.fleet.member.RESTING", 60.0)  # how long it would be until it looks by itself
    client = client_of(server, url, timeout=1.0, attempt_timeout=0.5, on_timeout="return")
    with client_of(server, other_way(url)) as worker:
        server.add(faults.Overloaded(503), path="/cancel")
        with client.runs.open("chat-42"):
            client.post("/responses", body=BACKGROUND, cast_to=JSON)
        assert client.runs.cancel("chat-42").outcome == "unconfirmed"
        look(worker)
        assert not keeper_of(worker).pick_up.busy  # its holder is at it
        told = threading.Event()
        keeper_of(worker).member.read_again = told.set
        client.close()
        server.clear()
        assert told.wait(20.0)
        assert [each.left for each in ledger.open_intents()] == [True]
        del keeper_of(worker).member.read_again
        finished(worker, ledger)
    assert keeper_of(client).member.alive(keeper_of(client).member.process.owner)
    assert server.runs[0].truth == "cancelled"


def test_a_cancel_that_reaches_a_closed_client_is_another_process_s(
    server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """The same where it was asked for after the client was closed; also while nothing is settled yet."""
    client = client_of(server, url, timeout=0.5, on_timeout="return")
    with client_of(server, other_way(url)) as worker:
        with client.runs.open("chat-42"):
            client.post("/responses", body=BACKGROUND, cast_to=JSON)
            client.close()
            assert client.runs.cancel("chat-42").outcome == "unconfirmed"
        finished(worker, ledger)
    assert server.runs[0].truth == "cancelled"


def test_who_cancels_what_was_given_up_waits_for_whoever_goes_on(server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """Its process holds the name, lives and answers, and will do nothing: that is not the last word."""
    client = client_of(server, url, timeout=0.5, attempt_timeout=0.5, on_timeout="return")
    server.add(faults.Overloaded(503), path="/cancel")
    with client.runs.open("chat-42"):
        client.post("/responses", body=BACKGROUND, cast_to=JSON)
    assert client.runs.cancel("chat-42").outcome == "unconfirmed"
    client.close()
    until(lambda: [each.left for each in ledger.open_intents()] == [True], "the fact on record")
    server.clear()
    with client_of(server, other_way(url), timeout=15.0) as other:
        assert other.runs.cancel("chat-42").outcome == "cancelled"
    assert server.runs[0].truth == "cancelled"


def test_that_nobody_is_at_it_is_put_on_record_once_the_ledger_is_there(
    server: FakeOpenAI, url: str, ledger: Ledger
) -> None:
    """The ledger is down when the client is closed. The process says so later; till then it knows by itself."""
    client = client_of(server, url, timeout=1.0, attempt_timeout=0.5, on_timeout="return")
    server.add(faults.Overloaded(503), path="/cancel")
    with client.runs.open("chat-42"):
        client.post("/responses", body=BACKGROUND, cast_to=JSON)
    assert client.runs.cancel("chat-42").outcome == "unconfirmed"
    member = keeper_of(client).member
    assert member.writes.drain(20.0)
    give_up = member.ledger.give_up
    member.ledger.give_up = down
    client.close()
    assert member.writes.drain(20.0)
    assert [each.left for each in ledger.open_intents()] == [False]
    member.ledger.give_up = give_up
    look(client)
    assert member.writes.drain(20.0)
    assert [each.left for each in ledger.open_intents()] == [True]


def down(*args: Any, **kwargs: Any) -> Any:
    raise LedgerUnavailable("The disk is full.")


def test_what_an_open_client_goes_on_with_is_nobody_else_s(server: FakeOpenAI, url: str, ledger: Ledger) -> None:
    """It is not closed, so it alone tries again: the others take nothing of it."""
    with client_of(server, url, timeout=0.5, attempt_timeout=0.5, on_timeout="return") as client:
        server.add(faults.Overloaded(503), path="/cancel")
        with client.runs.open("chat-42"):
            client.post("/responses", body=BACKGROUND, cast_to=JSON)
        assert client.runs.cancel("chat-42").outcome == "unconfirmed"
        for way in (url, other_way(url)):
            with client_of(server, way) as worker:
                look(worker)
                assert not keeper_of(worker).pick_up.busy


def test_a_client_whose_loop_stands_still_takes_nothing_up(
    standing: tuple[Any, asyncio.AbstractEventLoop], worker: Any, server: FakeOpenAI, ledger: Ledger
) -> None:
    """As in a notebook between two cells: what the dead left is not claimed there, and finished by others."""
    client, _ = standing
    left_by_the_dead(ledger, server)
    keeper_of(client).pick_up(ledger.open_intents())
    assert not keeper_of(client).pick_up.busy
    finished(worker, ledger)


def test_a_loop_that_does_not_begin_in_time_loses_it(
    standing: tuple[Any, asyncio.AbstractEventLoop],
    worker: Any,
    server: FakeOpenAI,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop runs, and is blocked: another client has the cancel, and the late beginning does nothing."""
    client, loop = standing
    monkeypatch.setattr(pickup, "STARTS", 0.0)
    monkeypatch.setattr(keeper_of(client), "at_work", lambda: True)
    begun: list[Any] = []
    monkeypatch.setattr(pickup._Finish, "begin", begun.append)
    left_by_the_dead(ledger, server)
    keeper_of(client).pick_up(ledger.open_intents())
    assert keeper_of(client).pick_up.busy
    keeper_of(client).pick_up([])
    assert not keeper_of(client).pick_up.busy
    loop.run_until_complete(asyncio.sleep(0))
    assert begun == []
    monkeypatch.undo()
    finished(worker, ledger)
