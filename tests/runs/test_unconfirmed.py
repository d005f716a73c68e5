"""A cancel that can not be confirmed in time says so, and is refined once."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from remote_runs import begin, http_client, http_package
from worlds import PATIENCE, Threads, until

from deadstop import Backoff, CancelPolicy, RunCancellationTimeoutError
from deadstop.testing import FakeOpenAI, faults


def test_an_opaque_transport_is_fenced_and_the_wait_is_bounded(world: Any) -> None:
    """A transport that can't be interrupted: the cancel says so in time, the late answer is not delivered."""
    probe = world.client("http://127.0.0.1:1/v1")
    package = __import__(
        next(c.__module__.partition(".")[0] for c in type(probe._client).__mro__ if c.__module__.startswith("httpx"))
    )
    world.close(probe)
    entered, release = threading.Event(), threading.Event()

    def handler(request: Any) -> Any:
        entered.set()
        release.wait(20)  # blocks whatever thread it is in: nothing can wake it
        return package.Response(200, json={"id": "x", "object": "chat.completion", "choices": [], "created": 1})

    kind = package.AsyncClient if world.is_async else package.Client
    client = world.client("http://fake.test/v1", http_client=kind(transport=package.MockTransport(handler)))
    if world.is_async:
        pytest.skip("a transport that blocks the loop blocks the canceller, too")
    pending = world.start(world.create, client, "r")
    assert entered.wait(10)
    with pytest.raises(RunCancellationTimeoutError) as caught:
        client.runs.cancel("r", timeout=0.2)
    assert str(caught.value) == "Run cancellation timed out after waiting for the operation to abort."
    assert caught.value.receipt.outcome == "unconfirmed"
    assert caught.value.diagnosis.klass == "caller_blocked"
    assert caught.value.receipt.calls[0].server_work == "runs_on"
    assert not pending.done
    release.set()
    late = pending.failure()
    assert isinstance(late, RunCancellationTimeoutError)
    assert late.diagnosis.klass == "caller_blocked"
    assert client.runs.get("r").receipt.outcome == "cancelled", "refined once it came back (I6)"
    world.close(client)


def test_on_timeout_return(world: Any) -> None:
    """`on_timeout="return"` gives the unconfirmed receipt instead of raising."""
    if world.is_async:
        pytest.skip("needs a transport that blocks its thread")
    probe = world.client("http://127.0.0.1:1/v1")
    package = __import__(
        next(c.__module__.partition(".")[0] for c in type(probe._client).__mro__ if c.__module__.startswith("httpx"))
    )
    entered, release = threading.Event(), threading.Event()

    def handler(request: Any) -> Any:
        entered.set()
        release.wait(20)
        return package.Response(500)

    client = world.client("http://fake.test/v1", http_client=package.Client(transport=package.MockTransport(handler)))
    pending = world.start(world.create, client, "r")
    assert entered.wait(10)
    receipt = client.runs.cancel("r", policy=CancelPolicy(timeout=0.1, grace=0.05, on_timeout="return"))
    assert receipt.outcome == "unconfirmed"
    assert not receipt.ok
    release.set()
    pending.failure()


def test_a_clock_that_stands_still_does_not_unbind_the_wait(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in people's tests: `freezegun` stops `time.monotonic`, and the cancel is bounded all the same (I1)."""
    http, entered, release = http_package(world), threading.Event(), threading.Event()

    def block(request: Any) -> Any:
        entered.set()
        release.wait(20)
        return http.Response(500)

    async def block_task(request: Any) -> Any:
        with anyio.CancelScope(shield=True):
            return await anyio.to_thread.run_sync(block, request)

    transport = http.MockTransport(block_task if world.is_async else block)
    client = world.client("http://fake.test/v1", max_retries=0, http_client=http_client(world, transport=transport))
    pending = world.start(world.create, client, "r")
    assert entered.wait(10)
    now = time.monotonic()
    for module in ("waiting", "run", "concurrent" if world.is_async else "blocking"):
        monkeypatch.setattr(f"deadstop.runs.{module}.time", SimpleNamespace(monotonic=lambda: now))
    policy = CancelPolicy(timeout=0.3, grace=0.1, on_timeout="return")
    cancel = world.start(client.runs.cancel, "r", policy=policy)
    try:
        assert cancel.result().outcome == "unconfirmed"
    finally:
        release.set()
    pending.failure()
    world.close(client)


@pytest.mark.parametrize("give_up", [0.0, 600.0], ids=["given up", "in the background"])
@pytest.mark.parametrize("whole", [False, True], ids=["the scope", "everything"])
def test_who_asks_again_has_it_tried_again_and_waits_for_that(world: Any, whole: bool, give_up: float) -> None:
    """The server took no cancels for a while. The second press of the button is as good as the first."""
    with FakeOpenAI(rate=200, tokens=10_000) as server:
        client = world.client(server.base_url, max_retries=0)
        patient = Backoff(initial=30.0, maximum=30.0)
        client.runs.policy = CancelPolicy(timeout=0.4, give_up=give_up, recheck=0, backoff=patient)
        begin(world, client, "chat-42")
        server.add(faults.Overloaded(503), path="/cancel")
        with pytest.raises(RunCancellationTimeoutError):
            world.run(client.runs.cancel, "chat-42", reason="first", request_id="r-1")
        background = list(client.runs._registry.reconciler._chases.values())
        until(lambda: all(each.cancels for each in background), "the first try in the background")
        server.clear()
        began = time.monotonic()
        with pytest.raises(RunCancellationTimeoutError):
            world.run(client.runs.cancel, "chat-42", request_id="r-1", timeout=5.0)
        assert time.monotonic() - began < 1.0, "I8: the same request has the same answer"
        if whole:
            (receipt,) = world.run(client.runs.cancel_all, timeout=5.0)
        else:
            receipt = world.run(client.runs.cancel, "chat-42", reason="second", timeout=5.0)
        assert time.monotonic() - began < 2.5, "the server was asked at once"
        assert (receipt.outcome, receipt.reason, receipt.evidence) == ("cancelled", "first", "status")
        assert receipt.elapsed > 0.4
        assert (server.runs[0].truth, server.runs[0].cancels) == ("cancelled", 1)
        world.close(client)


@pytest.mark.parametrize("whole", [False, True], ids=["the scope", "everything"])
def test_who_has_more_time_than_the_first_goes_on_when_that_ones_is_up(world: Any, whole: bool) -> None:
    """Two press the button, one after the other, and the second is the more patient. The server takes no cancels at
    first: the first one is told so when its time is up, and the second has it tried again within its own."""
    with FakeOpenAI(rate=200, tokens=10_000) as server:
        client = world.client(server.base_url, max_retries=0)
        client.runs.policy = CancelPolicy(give_up=0, recheck=0, backoff=Backoff(initial=0.5, maximum=0.5))
        begin(world, client, "chat-42")
        server.add(faults.Overloaded(503), path="/cancel")
        first = world.start(client.runs.cancel, "chat-42", reason="first", timeout=1.0, request_id="r-1")
        server.wait_for_runs(lambda runs: client.runs.get("chat-42").cancelled)
        same = world.start(client.runs.cancel, "chat-42", timeout=20.0, request_id="r-1")
        if whole:
            second = world.start(client.runs.cancel_all, timeout=20.0)
        else:
            second = world.start(client.runs.cancel, "chat-42", timeout=20.0, request_id="r-2")
        until(lambda: client.runs.get("chat-42").cancelling._late or whole, "the second one")
        assert isinstance(first.failure(), RunCancellationTimeoutError)
        assert isinstance(same.failure(), RunCancellationTimeoutError), "I8: the same request has the same answer"
        server.clear()
        receipt = second.result()[0] if whole else second.result()
        assert (receipt.outcome, receipt.reason, receipt.evidence) == ("cancelled", "first", "status")
        assert receipt.elapsed >= 1.0
        assert (server.runs[0].truth, server.runs[0].cancels) == ("cancelled", 1)
        world.close(client)


def test_who_asks_again_waits_until_the_news_are_taken_in() -> None:
    """The first outcome is still being told, by a thread that has lost its turn, when the second one's request comes
    back: he is told what that came to, and not the old outcome."""
    world = Threads()
    with FakeOpenAI(rate=200, tokens=10_000) as server:
        client = world.client(server.base_url, max_retries=0)
        client.runs.policy = CancelPolicy(give_up=0, recheck=0, on_timeout="return")
        begin(world, client, "chat-42")
        server.add(faults.Overloaded(503), path="/cancel")
        telling, gate = threading.Event(), threading.Event()
        first = world.start(client.runs.cancel, "chat-42", timeout=0.5)
        until(lambda: client.runs.get("chat-42").cancelling is not None, "the first cancel")
        cancelling = client.runs.get("chat-42").cancelling
        until(lambda: cancelling._children, "the remote run's")
        cancelling.done.notify(lambda: (telling.set(), gate.wait(PATIENCE)))
        assert telling.wait(PATIENCE)
        server.clear()
        second = world.start(client.runs.cancel, "chat-42", timeout=PATIENCE)
        (chase,) = (child._chase for child in cancelling._children)
        until(lambda: second.done or any(callable(each) for each in chase._inbox), "the second one's answer")
        gate.set()
        assert second.result().outcome == "cancelled"
        first.wait()
        world.close(client)


def test_asking_again_in_vain_takes_its_own_timeout_and_no_longer(world: Any) -> None:
    """I1 for the second one, too; and what there is no hope for is not waited for."""
    with FakeOpenAI(rate=200, tokens=10_000) as server:
        client = world.client(server.base_url, max_retries=0)
        client.runs.policy = CancelPolicy(timeout=0.3, give_up=0.0, recheck=0, on_timeout="return")
        begin(world, client, "chat-42")
        server.add(faults.StaysCancelling(None), path="/cancel")
        assert world.run(client.runs.cancel, "chat-42").outcome == "unconfirmed"
        began = time.monotonic()
        assert world.run(client.runs.cancel, "chat-42", timeout=0.5).outcome == "unconfirmed"
        assert 0.4 < time.monotonic() - began < 1.5
        assert world.run(client.runs.cancel, "response:resp_nobody", timeout=5.0).outcome == "unconfirmed"
        began = time.monotonic()
        assert world.run(client.runs.cancel, "response:resp_nobody", timeout=5.0).outcome == "unconfirmed"
        assert time.monotonic() - began < 2.5
        world.close(client)
