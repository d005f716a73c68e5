"""A cancel that can not be confirmed in time says so, and is refined once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from deadstop import CancelPolicy, RunCancellationTimeoutError


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
