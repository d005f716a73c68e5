"""What is known of a remote run from its making to its end: whose it is, whether it may be there at all, what to say of
it, and when to forget it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Callable

import pytest
from remote_runs import JSON, QUICK, begin, create, http_client, http_package, truth
from worlds import until

from deadstop import RunCancellationTimeoutError
from deadstop.testing import FakeOpenAI, faults


@dataclass(frozen=True)
class GatewayTimeout(faults.Fault):
    """The run is made, and who stands before the server does not wait for the answer."""

    def after_run(self, exchange: Any) -> None:
        if exchange.asked.action == "create":
            exchange.answer(504, {"error": {"message": "upstream timed out"}}, {"retry-after-ms": "1"})


@dataclass(frozen=True)
class HalfAnswer(faults.Fault):
    """The run is made, and its answer breaks off."""

    def before_write(self, exchange: Any, data: bytes) -> None:
        exchange.send_raw(data[: len(data) - 20])
        exchange.hang_up()


@dataclass(frozen=True)
class SecondRefused(faults.Fault):
    """The second request is refused, once `when()`."""

    when: Callable[[], Any]
    seen: list[Any] = field(default_factory=list)

    def before_headers(self, exchange: Any) -> None:
        self.seen.append(exchange)
        if len(self.seen) == 2:
            until(self.when, "the time to refuse")
            exchange.answer(429, {"error": {"message": "Not now."}}, {})


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=200, tokens=10_000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url, max_retries=0)
    one.runs.policy = QUICK
    yield one
    world.close(one)


@pytest.fixture
def retrying(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    """A client that tries each request twice."""
    one = world.client(server.base_url, max_retries=1)
    one.runs.policy = QUICK.replace(on_timeout="return")
    yield one
    world.close(one)


# Its making


@pytest.mark.parametrize("fault", [GatewayTimeout(), HalfAnswer()], ids=lambda value: type(value).__name__)
def test_a_refusal_after_a_lost_answer_is_no_proof(
    world: Any, retrying: Any, server: FakeOpenAI, fault: faults.Fault
) -> None:
    """The create's first attempt made a run that nobody knows of, its second one was refused: a run may be there."""
    refused = SecondRefused(lambda: retrying.runs.get("chat-42").cancelled)
    server.add(fault, path="/responses", times=1)
    server.add(refused, path="/responses")
    function, args, kwargs = create(retrying)
    pending = world.start(world.call, retrying, "chat-42", function, *args, **kwargs)
    until(lambda: len(refused.seen) == 2, "the second attempt")
    (child,) = world.run(retrying.runs.cancel, "chat-42").children
    pending.failure()
    assert truth(server).truth == "active"
    assert child.outcome == "unconfirmed", str(child)
    assert child.orphan_suspect is not None


def test_what_a_gateway_gave_up_on_is_told(world: Any, retrying: Any, server: FakeOpenAI) -> None:
    """The SDK's second attempt made a run, which is cancelled; and the first one may have made another."""
    server.add(GatewayTimeout(), path="/responses", times=1)
    begin(world, retrying, "chat-42")
    assert len(server.runs) == 2
    (child,) = world.run(retrying.runs.cancel, "chat-42").children
    assert child.outcome == "cancelled"
    assert child.orphan_suspect is not None


@pytest.mark.parametrize("status", [503, 429])
def test_a_create_that_is_tried_again_is_heard_out(world: Any, retrying: Any, server: FakeOpenAI, status: int) -> None:
    """A cancel that comes during the SDK's second attempt leaves that at its work: its answer tells whom to cancel."""
    server.add(faults.Overloaded(status, "0.01"), path="/responses", times=1)
    server.add(faults.CreateReplySlow(0.3))
    function, args, kwargs = create(retrying)
    pending = world.start(world.call, retrying, "chat-42", function, *args, **kwargs)
    server.wait_for_runs(lambda runs: len(runs) == 1)
    (child,) = world.run(retrying.runs.cancel, "chat-42", policy=QUICK.replace(timeout=10.0, grace=8.0)).children
    pending.failure()
    assert child.outcome == "cancelled", str(child)
    assert (truth(server).truth, truth(server).cancels) == ("cancelled", 1)


def test_a_create_whose_first_attempt_was_refused_may_have_made_a_run(
    world: Any, retrying: Any, server: FakeOpenAI
) -> None:
    """The refusal was for the first attempt. The second one has left, and nobody waits for its answer any more."""
    server.add(faults.Overloaded(429, "0.01"), path="/responses", times=1)
    server.add(faults.CreateReplySlow(600))
    function, args, kwargs = create(retrying)
    pending = world.start(world.call, retrying, "chat-42", function, *args, **kwargs)
    server.wait_for_runs(lambda runs: len(runs) == 1)
    world.run(retrying.runs.cancel, "chat-42", policy=QUICK.replace(timeout=0.3, on_timeout="return"))
    pending.failure()
    (child,) = retrying.runs.get("chat-42").children.values()
    until(lambda: child.remote.lost, "the end of the wait")
    assert truth(server).truth == "active"
    assert child.receipt.outcome == "unconfirmed", str(child.receipt)
    assert child.remote.orphan is not None


def test_a_create_that_was_refused_and_not_sent_again_made_none(world: Any, server: FakeOpenAI) -> None:
    """A second attempt that never got a connection proves no less than the refusal of the first one did."""
    limits = http_package(world).Limits(max_connections=1)
    client = world.client(server.base_url, max_retries=1, http_client=http_client(world, limits=limits))
    server.add(faults.Overloaded(429, "1"), path="/responses", times=1)
    function, args, kwargs = create(client)
    pending = world.start(world.call, client, "chat-42", function, *args, **kwargs)
    server.wait_for(lambda requests: bool(requests) and requests[0].finished_at is not None)
    holder = world.start(world.consume, client, "holder")
    server.wait_for(lambda requests: requests[-1].state == "generating")

    def second_waits() -> bool:
        calls = [call for run in client.runs.list() for call in list(run.calls.values()) if run.remote]
        return any(call.attempt.get("number") == 2 and call.phase == "waiting_for_pool" for call in calls)

    until(second_waits, "the wait for a connection")
    (child,) = world.run(client.runs.cancel, "chat-42").children
    pending.failure()
    assert (child.outcome, child.orphan_suspect) == ("cancelled", None)
    world.run(client.runs.cancel, "holder")
    holder.failure()
    world.close(client)


def test_an_answer_that_a_transport_had_at_hand_tells_the_id(world: Any) -> None:
    """The SDK was asked for a plain mapping, over a transport that shows nothing of what passes: its id is seen."""
    word = ["queued"]
    package = http_package(world)

    def answer(request: Any) -> Any:
        if request.url.path.endswith("/cancel"):
            word[0] = "cancelled"
        data = {"object": "response", "id": "resp_1", "status": word[0], "background": True}
        return package.Response(200, json=data)

    transport = package.MockTransport(answer)
    client = world.client("http://fake.test/v1", http_client=http_client(world, transport=transport))
    client.runs.policy = QUICK
    begin(world, client, "chat-42")
    (child,) = world.run(client.runs.cancel, "chat-42").children
    world.close(client)
    assert (child.run, child.outcome) == ("response:resp_1", "cancelled")


# What is said of it


def test_a_cancel_that_the_users_code_sent_is_seen(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The server has accepted somebody's cancel and is slow: nobody is told that no cancel left this process."""
    data = begin(world, client, None, "batch")
    server.add(faults.StaysCancelling(None), path="/cancel")
    world.run(client.post, f"/batches/{data['id']}/cancel", cast_to=JSON)
    with pytest.raises(RunCancellationTimeoutError) as caught:
        # To connect on a busy machine took 0.3 s once, and then that is what it is diagnosed as, rightly.
        world.run(client.runs.cancel, f"batch:{data['id']}", timeout=1.0)
    assert truth(server).cancels == 1
    assert caught.value.receipt.reads[0].status == 200
    assert caught.value.diagnosis.klass in ("server_slow", "server_ignored"), caught.value.diagnosis


def test_a_run_that_was_not_known_yet_once_is_not_gone(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The first read of its status found nothing, the later ones did: the diagnosis goes by those."""
    data = begin(world, client)
    server.add(faults.IgnoresCancel(), path="/cancel")
    server.add(faults.Overloaded(404), path=data["id"], times=1)
    with pytest.raises(RunCancellationTimeoutError) as caught:
        world.run(client.runs.cancel, f"response:{data['id']}", timeout=0.8)
    assert caught.value.diagnosis.klass == "server_ignored", caught.value.diagnosis


# Its end, and what is kept of it


def test_an_upload_that_was_completed_is_over(world: Any, client: Any, server: FakeOpenAI) -> None:
    """What the user's own requests say of a run counts: it is live no longer, and no cancel is sent for it."""
    data = begin(world, client, "chat-42", "upload")
    world.run(client.post, f"/uploads/{data['id']}/complete", body={"part_ids": []}, cast_to=JSON)
    assert truth(server).status == "completed"
    assert client.runs.list() == []
    assert world.run(client.runs.cancel, "chat-42").outcome == "finished_first"
    assert truth(server).cancels == 0


class Watched(dict):  # type: ignore[type-arg]
    """Calls `then()` after the first entry that is taken out."""

    then: Any = None

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        if self.then is not None:
            self.then()
            self.then = None


def test_a_run_that_is_just_getting_its_name_is_cancelled_with_all(world: Any, client: Any, server: FakeOpenAI) -> None:
    """There is no moment at which it is not among the runs, and none at which it is two."""
    registry, struck = client.runs._registry, []
    registry._live = Watched(registry._live)
    registry._live.then = lambda: struck.extend(registry.cancel_all_soon())
    function, args, kwargs = create(client)
    world.start(world.call, client, None, function, *args, **kwargs)
    until(lambda: registry._live.then is None, "the name")
    assert len(struck) == 1
    until(lambda: truth(server).truth == "cancelled", "the end of the run")


def test_a_run_that_is_not_there_is_not_listed_for_ever(world: Any, client: Any) -> None:
    """A cancel of an id that the server does not know leaves nothing behind once it has given up."""
    policy = QUICK.replace(on_timeout="return")
    receipts = [world.run(client.runs.cancel, f"response:resp_{number}", policy=policy) for number in range(3)]
    assert [each.outcome for each in receipts] == ["unconfirmed"] * 3
    assert client.runs.list() == []


def test_of_more_runs_than_a_client_holds_the_oldest_are_forgotten(
    world: Any, client: Any, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells a client of the ends of most remote runs. It forgets none that an open scope, or a cancel, is about;
    and what it has forgotten can be cancelled by its address."""
    monkeypatch.setattr("deadstop.runs.registry.HELD", 5)
    function, args, kwargs = create(client)

    async def hold_in_tasks() -> int:
        async with client.runs.open("worker") as scope:
            for _ in range(8):
                await function(*args, **kwargs)
            return len(scope.children)

    def hold() -> int:
        with client.runs.open("worker") as scope:
            for _ in range(8):
                function(*args, **kwargs)
            return len(scope.children)

    assert world.start(hold_in_tasks if world.is_async else hold).result() == 8
    first = server.runs[0].id
    for number in range(20):
        begin(world, client, f"chat-{number}" if number % 2 else None)
    assert len(client.runs.list()) == 5
    assert f"response:{first}" not in [run.name for run in client.runs.list()]
    assert world.run(client.runs.cancel, f"response:{first}").outcome == "cancelled"
    assert truth(server, 0).truth == "cancelled"


def test_the_answer_that_told_of_a_run_is_not_kept_with_it(world: Any, client: Any) -> None:
    """A run may live for days, and what its create was answered may be large."""
    begin(world, client)
    (run,) = client.runs.list()
    assert sum(map(len, run.remote.tracker._chunks)) == 0
