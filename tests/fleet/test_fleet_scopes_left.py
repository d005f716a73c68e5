"""A scope whose inner scopes were left, or that was left itself, with remote runs at work, cancelled from elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio.to_thread
import pytest
from fleet_homes import other_way
from remote_runs import create
from worlds import until

from deadstop import CancelPolicy
from deadstop.ledger.base import Ledger
from deadstop.testing import FakeOpenAI


@pytest.fixture
def client(world: Any, server: FakeOpenAI, url: str) -> Iterator[Any]:
    one = world.client(server.base_url, max_retries=0, runs_url=url)
    yield one
    world.close(one)


@pytest.fixture
def stranger(world: Any, server: FakeOpenAI, url: str) -> Iterator[Any]:
    """The client of another member of the fleet, as of another process."""
    one = world.client(server.base_url, max_retries=0, runs_url=other_way(url))
    one.runs.policy = CancelPolicy(timeout=10.0, recheck=0)
    yield one
    world.close(one)


def chat(world: Any, client: Any, left: threading.Event, go: threading.Event, **options: Any) -> Any:
    """A program: in `chat-42` a turn with a background response, which is left; then it waits for `go`."""
    function, args, kwargs = create(client)

    async def tasks() -> None:
        async with client.runs.open("chat-42", **options):
            async with client.runs.open("turn"):
                await function(*args, **kwargs)
            left.set()
            await anyio.to_thread.run_sync(go.wait, 20)

    def threads() -> None:
        with client.runs.open("chat-42", **options):
            with client.runs.open("turn"):
                function(*args, **kwargs)
            left.set()
            go.wait(20)

    return tasks if world.is_async else threads


@pytest.mark.parametrize("cancellers", [None, ["ann"]], ids=["", "on record"])
@pytest.mark.parametrize("outer", ["open", "left"])
def test_a_cancel_from_elsewhere_reaches_what_an_inner_scope_left_behind(
    world: Any, client: Any, stranger: Any, server: FakeOpenAI, ledger: Ledger, outer: str, cancellers: Any
) -> None:
    """I2, I15: whoever cancels a conversation that another process holds has the runs of its turns cancelled, too, and
    the next conversation of that name is not meant."""
    left, go = threading.Event(), threading.Event()
    pending = world.start(chat(world, client, left, go, cancellers=cancellers))
    assert left.wait(20)
    if outer == "left":
        go.set()
        pending.result()
    until(ledger.active_remotes, "the remote run's record")
    receipt = world.run(stranger.runs.cancel, "chat-42", actor="ann", reason="stop")
    go.set()
    pending.result()
    assert (receipt.outcome, receipt.reason) == ("cancelled", "stop")
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)]
    until(lambda: not ledger.open_intents(), "the outcome on record")
    assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]
    assert ledger.parked(now=0.0) == []


@pytest.mark.parametrize("cancellers", [None, ["ann"]], ids=["", "on record"])
def test_a_conversation_that_is_over_is_closed_on_record(
    world: Any, client: Any, server: FakeOpenAI, ledger: Ledger, cancellers: Any
) -> None:
    """Once the runs of its turns are known to be over, so is the conversation on record."""
    left, go = threading.Event(), threading.Event()
    go.set()
    world.start(chat(world, client, left, go, cancellers=cancellers)).result()
    world.run(client.runs.cancel, f"response:{server.runs[0].id}")
    until(lambda: not ledger.active_remotes(), "the end of the run on record")
    until(lambda: not ledger.runs(), "the end of the scopes on record")
