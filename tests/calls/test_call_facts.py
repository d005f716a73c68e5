"""What a receipt says of a call is so: of its attempt, its connection, and how long it took."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from worlds import until

from deadstop.testing import FakeOpenAI, faults


@dataclass(frozen=True)
class Elsewhere(faults.Fault):
    """The request is to be sent to another place."""

    to: str

    def before_headers(self, exchange: Any) -> None:
        exchange.answer(307, {}, {"location": self.to})


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50.0, tokens=1000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url, max_retries=1)
    yield one
    world.close(one)


def waiting(client: Any, name: str = "r") -> None:
    """Until the run's call waits for an answer's headers."""
    until(
        lambda: any(
            call.phase == "waiting_for_headers" for run in client.runs.list() for call in list(run.calls.values())
        ),
        "the wait",
    )


def cancelled(world: Any, client: Any, pending: Any) -> Any:
    """What the receipt says of the one call of the run."""
    receipt = world.run(client.runs.cancel, "r")
    with contextlib.suppress(Exception):
        pending.result()
    assert receipt.outcome == "cancelled", str(receipt)
    (call,) = receipt.calls
    return call


@pytest.mark.parametrize("status", [429, 503])
def test_a_second_attempt_has_nothing_of_the_first(world: Any, client: Any, server: FakeOpenAI, status: int) -> None:
    """The SDK sends it again, and no answer has come to that: there is no status to tell."""
    server.add(faults.Overloaded(status, "0.01"), times=1)
    server.add(faults.LostHeaders())
    pending = world.start(world.create, client, "r")
    server.wait_for(lambda requests: len(requests) == 2)
    waiting(client)
    attempt = cancelled(world, client, pending).attempt
    assert (attempt.number, attempt.status, attempt.first_byte) == (2, None, None)


def test_a_redirected_request_has_nothing_of_the_one_before(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Where it was sent on to has not answered: the redirect is not its status."""
    with FakeOpenAI() as other:
        server.add(Elsewhere(f"{other.base_url}/chat/completions"))
        other.add(faults.LostHeaders())
        pending = world.start(world.create, client, "r")
        other.wait_for(lambda requests: len(requests) == 1)
        waiting(client)
        attempt = cancelled(world, client, pending).attempt
    assert (attempt.number, attempt.status, attempt.first_byte) == (2, None, None)


def test_the_request_after_a_refused_stream_is_another_attempt(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A server that refuses what was added is asked again without it: nothing is told of that request but its own."""
    server.add(faults.RefuseStream(), times=1)
    server.add(faults.LostHeaders())
    pending = world.start(world.create, client, "r")
    server.wait_for(lambda requests: len(requests) == 2)
    waiting(client)
    attempt = cancelled(world, client, pending).attempt
    assert (attempt.number, attempt.status, attempt.first_byte) == (2, None, None)
