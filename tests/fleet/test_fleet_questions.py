"""What is asked over a bus, and to which question an answer belongs: the ids of requests are their users' own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from nats_kit import nats_server, program
from test_fleet_turns import client_of, member_of
from worlds import until

from deadstop import UnknownRunError
from deadstop.fleet.roll import roll_call
from deadstop.testing import FakeOpenAI

pytestmark = [
    pytest.mark.skipif(program() is None, reason="no NATS comes as a package for this platform"),
    pytest.mark.parametrize("url", ["sqlite"], indirect=True),
]


@pytest.fixture
def pair(server: FakeOpenAI, url: str) -> Iterator[Any]:
    """Two clients with a bus and no ledger, as of two processes: one holds runs, the other asks."""
    bus = nats_server().space()
    holder, asker = client_of(server, bus), client_of(server, bus.replace("127.0.0.1", "localhost"))
    yield holder, asker
    for each in (holder, asker):
        each.close()


def there(asker: Any, name: str) -> None:
    until(lambda: any(each.run == name for each in roll_call(member_of(asker), 0.2)), "the run on the bus")


@pytest.mark.parametrize("id", ["stop it", "stop.it", "stop > it", "*"])
def test_any_request_id_will_do(pair: Any, id: str) -> None:
    """It need not be fit for a subject of the bus."""
    holder, asker = pair
    with holder.runs.open("chat-42") as run:
        there(asker, "chat-42")
        receipt = asker.runs.cancel("chat-42", request_id=id)
        assert (receipt.outcome, receipt.request_id, run.cancelled) == ("cancelled", id, True)
    with pytest.raises(UnknownRunError):
        asker.runs.cancel("another", request_id=id)


def test_one_request_may_be_about_several_runs(pair: Any) -> None:
    """Each gets the answers that are about its own run."""
    holder, asker = pair
    told, free = [], threading.Event()
    with holder.runs.open("chat-42") as run:
        there(asker, "chat-42")
        member_of(holder).writes.submit(lambda: free.wait(20.0))
        asking = threading.Thread(target=lambda: told.append(asker.runs.cancel("chat-42", request_id="stop").outcome))
        asking.start()
        until(lambda: run.cancelled, "the cancel")
        with pytest.raises(UnknownRunError):
            asker.runs.cancel("another", request_id="stop")
        free.set()
        asking.join()
    assert told == ["cancelled"]


def test_all_who_ask_the_same_are_answered(pair: Any) -> None:
    """A request that is tried again while the first try is under way: both get the one receipt (I7, I8)."""
    holder, asker = pair
    told, free = [], threading.Event()
    with holder.runs.open("chat-42") as run:
        there(asker, "chat-42")
        member_of(holder).writes.submit(lambda: free.wait(20.0))
        asking = [
            threading.Thread(target=lambda: told.append(asker.runs.cancel("chat-42", request_id="stop").outcome))
            for _ in range(3)
        ]
        for each in asking:
            each.start()
        until(lambda: len(run.kept.replies) == 3, "the questions")
        free.set()
        for each in asking:
            each.join()
    assert told == ["cancelled"] * 3
