"""What a receipt says of a call is so: of its attempt, its connection, and how long it took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from remote_runs import QUICK, create, http_client
from worlds import until

from deadstop.testing import FakeOpenAI, faults

PLAIN: Any = {"streamed_inside": False}


@dataclass(frozen=True)
class LastAnswer(faults.Fault):
    """A refusal, after which the server closes the connection."""

    def before_headers(self, exchange: Any) -> None:
        exchange.answer(503, {"error": {"message": "Not now."}}, {"connection": "close", "retry-after": "30"})


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


def reaches(client: Any, phase: str) -> None:
    """Until the call is there."""
    until(
        lambda: phase in [call.phase for run in client.runs.list() for call in list(run.calls.values())],
        f"the call that is {phase}",
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
    reaches(client, "waiting_for_headers")
    attempt = cancelled(world, client, pending).attempt
    assert (attempt.number, attempt.status, attempt.first_byte) == (2, None, None)


def test_a_redirected_request_has_nothing_of_the_one_before(world: Any, server: FakeOpenAI) -> None:
    """Where it was sent on to has not answered: the redirect is not its status."""
    client = world.client(server.base_url, http_client=http_client(world, follow_redirects=True))  # not all SDKs do
    with FakeOpenAI() as other:
        server.add(Elsewhere(f"{other.base_url}/chat/completions"))
        other.add(faults.LostHeaders())
        pending = world.start(world.create, client, "r")
        other.wait_for(lambda requests: len(requests) == 1)
        reaches(client, "waiting_for_headers")
        attempt = cancelled(world, client, pending).attempt
    world.close(client)
    assert (attempt.number, attempt.status, attempt.first_byte) == (2, None, None)


def test_the_request_after_a_refused_stream_is_another_attempt(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A server that refuses what was added is asked again without it: nothing is told of that request but its own."""
    server.add(faults.RefuseStream(), times=1)
    server.add(faults.LostHeaders())
    pending = world.start(world.create, client, "r")
    server.wait_for(lambda requests: len(requests) == 2)
    reaches(client, "waiting_for_headers")
    attempt = cancelled(world, client, pending).attempt
    assert (attempt.number, attempt.status, attempt.first_byte) == (2, None, None)


def test_the_connection_of_a_call_that_backs_off_is_kept(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A refusal that was read whole leaves a connection that can be used again: nobody was disconnected."""
    server.add(faults.Overloaded(503, "30"))
    pending = world.start(world.create, client, "r", scope=PLAIN)
    reaches(client, "backing_off")
    call = cancelled(world, client, pending)
    assert (call.phase, call.socket_closed, call.note) == ("backing_off", False, None)
    assert server.open_connections == 1


def test_a_connection_that_the_peer_has_closed_is_closed(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The server kept nothing open for the next attempt. It was not the cancel that it noticed."""
    server.add(LastAnswer())
    pending = world.start(world.create, client, "r", scope=PLAIN)
    reaches(client, "backing_off")
    call = cancelled(world, client, pending)
    assert (call.phase, call.socket_closed, call.note) == ("backing_off", True, None)
    server.wait_for(lambda _: server.open_connections == 0)


def test_a_create_that_was_heard_out_has_left_its_connection_open(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A call whose answer is needed is read to its end, and its connection goes back to the pool."""
    server.add(faults.CreateReplySlow(0.2), path="/responses")
    function, args, kwargs = create(client)
    pending = world.start(world.call, client, "r", function, *args, **kwargs)
    server.wait_for_runs(lambda runs: len(runs) == 1)
    receipt = world.run(client.runs.cancel, "r", policy=QUICK.replace(timeout=10))
    pending.failure()
    assert receipt.outcome == "cancelled"
    ((call,),) = [child.calls for child in receipt.children]
    assert (call.released, call.socket_closed, call.note) == (True, False, None)
    assert server.open_connections > 1  # that of the cancel as well


def test_the_note_on_a_disconnect_is_for_one_that_took_place(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A plain call that is cut off while its answer is awaited says that the server may not notice."""
    server.add(faults.LostHeaders())
    pending = world.start(world.create, client, "r", scope=PLAIN)
    reaches(client, "waiting_for_headers")
    call = cancelled(world, client, pending)
    assert call.socket_closed
    assert "not streamed" in call.note
    server.wait_for(lambda _: server.open_connections == 0)


def test_an_attempt_that_was_answered_has_ended_then(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The time of the SDK's backoff is not the server's: the attempt was over when that began."""
    server.add(faults.Overloaded(503, "30"))
    pending = world.start(world.create, client, "r")
    reaches(client, "backing_off")
    backing_off = time.monotonic()
    attempt = cancelled(world, client, pending).attempt
    assert attempt.status == 503
    assert attempt.started + attempt.first_byte <= attempt.ended <= backing_off


def test_a_call_that_is_over_grows_no_older(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A receipt may be made long after a call has left, when others have: it tells when that one did."""
    server.add(faults.LostHeaders())
    pending = world.start(world.create, client, "r")
    reaches(client, "waiting_for_headers")
    (call,) = client.runs.list()[0].calls.values()
    cancelled(world, client, pending)
    facts = call.facts()
    assert facts.attempt.ended <= pending.ended
    assert call.started + facts.elapsed <= pending.ended
    assert call.facts() == facts
