"""Run scopes: what users hold, in every world."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from worlds import CHAT, until

from deadstop import (
    RunCancelledError,
)
from deadstop.calls import timers
from deadstop.runs.cancelling import Cancelling
from deadstop.testing import FakeOpenAI


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    yield one
    world.close(one)


def generating(server: FakeOpenAI, count: int = 1) -> None:
    server.wait_for(lambda requests: sum(each.state == "generating" for each in requests) == count)


def test_a_scope_stops_everything_in_it(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Two calls of one scope, in two threads or tasks: one cancel ends both, with one receipt."""
    if world.is_async:

        async def program() -> None:
            async with client.runs.open("chat-42"), anyio.create_task_group() as group:
                group.start_soon(lambda: client.chat.completions.create(**CHAT))
                group.start_soon(lambda: client.chat.completions.create(**CHAT))

    else:

        def program() -> None:
            with client.runs.open("chat-42"):
                context = contextvars.copy_context()

                def work() -> None:
                    with pytest.raises(RunCancelledError):
                        context.run(world.create, client)

                other = threading.Thread(target=work)
                other.start()
                try:
                    client.chat.completions.create(**CHAT)
                finally:
                    other.join(10)

    pending = world.start(program)
    generating(server, 2)
    receipt = world.run(client.runs.cancel, "chat-42", reason="user pressed stop", actor="alice")
    pending.failure()
    assert receipt.outcome == "cancelled"
    assert len(receipt.calls) == 2
    assert (receipt.reason, receipt.actor, receipt.cause) == ("user pressed stop", "alice", "user")
    server.wait_for(lambda requests: all(each.state == "disconnected" for each in requests))


def test_neighbours_are_left_alone(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Cancelling one of two runs on the same client leaves the other to finish."""
    healthy = world.start(world.consume, client, "healthy", max_tokens=50)
    doomed = world.start(world.consume, client, "doomed")
    generating(server, 2)
    world.run(client.runs.cancel, "doomed")
    assert isinstance(doomed.failure(), RunCancelledError)
    assert healthy.result() >= 50


def test_a_deadline_cancels_the_scope(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A scope with a timeout is cancelled when it is over, and its calls say that it was the deadline."""
    pending = world.start(world.create, client, "r", scope={"timeout": 0.2})
    error = pending.failure()
    assert isinstance(error, RunCancelledError)
    assert error.cause == "deadline"
    assert "0.2" in str(error)
    until(lambda: client.runs.get("r").receipt is not None, "the receipt")
    assert client.runs.get("r").receipt.outcome == "cancelled"


def test_the_deadline_of_a_finished_scope_does_nothing(world: Any, client: Any, server: FakeOpenAI) -> None:
    """When the scope is left in time, its timer is gone, and with the last timer the thread."""
    server.rate = 0
    others = wanted()  # what earlier tests left in the background has deadlines of its own
    world.start(world.create, client, "r", scope={"timeout": 30}, max_tokens=2).result()
    until(lambda: wanted() <= others, "the end of the timer")
    until(
        lambda: wanted() or not any("deadlines" in thread.name for thread in threading.enumerate()),
        "the end of the timer thread",
    )


def wanted() -> set[timers.Timer]:
    """The timers of this process that have not fired and were not stopped."""
    return {each for each in list(timers._heap) if each._work is not None}


def nest(world: Any, client: Any, inner: Any) -> Any:
    """A program that opens `outer`, in it `inner`, and runs `inner(run)` there."""
    if world.is_async:

        async def program() -> Any:
            async with client.runs.open("outer"), client.runs.open("inner") as run:
                return await inner(run)

    else:

        def program() -> Any:
            with client.runs.open("outer"), client.runs.open("inner") as run:
                return inner(run)

    return program


def test_the_cancel_of_a_parent_cancels_its_children(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A nested scope is stopped with the one around it, and says so."""
    pending = world.start(nest(world, client, lambda run: client.chat.completions.create(**CHAT)))
    generating(server)
    receipt = world.run(client.runs.cancel, "outer", reason="stop")
    error = pending.failure()
    assert isinstance(error, RunCancelledError)
    assert (error.run, error.cause, error.reason) == ("inner", "parent", "stop")
    assert receipt.outcome == "cancelled"
    assert [child.run for child in receipt.children] == ["inner"]
    assert receipt.children[0].outcome == "cancelled"


def test_the_cancel_of_a_child_leaves_its_parent(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Cancelling the inner scope does not touch the outer one."""
    pending = world.start(nest(world, client, lambda run: client.chat.completions.create(**CHAT)))
    generating(server)
    world.run(client.runs.cancel, "inner")
    assert isinstance(pending.failure(), RunCancelledError)
    assert not client.runs.get("outer").cancelled


def test_a_child_of_a_cancelled_parent_is_born_cancelled(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A scope opened under a cancelled one never sends anything (I15)."""
    if world.is_async:

        async def program() -> None:
            async with client.runs.open("outer") as outer:
                outer.cancel_soon()
                async with client.runs.open("inner"):
                    await client.chat.completions.create(**CHAT)

    else:

        def program() -> None:
            with client.runs.open("outer") as outer:
                outer.cancel_soon()
                with client.runs.open("inner"):
                    client.chat.completions.create(**CHAT)

    assert isinstance(world.start(program).failure(), RunCancelledError)
    assert server.requests == []


def test_check_and_callbacks(world: Any, client: Any, server: FakeOpenAI) -> None:
    """`check()` raises once cancelled; callbacks are called once, also late ones; a failing one stops nothing."""
    called: list[str] = []

    def broken(run: Any) -> None:
        raise RuntimeError("mine")

    def body(run: Any) -> None:
        run.check()
        run.on_cancel(broken)
        run.on_cancel(lambda run: called.append(run.name))
        undo = run.on_cancel(lambda run: called.append("never"))
        undo()
        run.cancel_soon(reason="enough")
        run.cancel_soon(reason="again")
        run.on_cancel(lambda run: called.append("late"))
        with pytest.raises(RunCancelledError, match="enough"):
            run.check()

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("r") as run:
                body(run)

    else:

        def program() -> None:
            with client.runs.open("r") as run:
                body(run)

    world.start(program).result()
    assert called == ["r", "late"]
    receipt = client.runs.get("r").receipt
    assert receipt.reason == "enough", "the first cause sticks (I10)"
    assert [reason for reason, _ in receipt.later] == ["again"]


def test_everybody_who_cancels_gets_the_same_record(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Many cancels at once: one cancellation, one outcome, all reasons kept (I7, I8, I10)."""
    pending = world.start(world.create, client, "r")
    generating(server)
    cancels = [world.start(client.runs.cancel, "r", reason=f"reason {number}") for number in range(20)]
    receipts = [each.result() for each in cancels]
    assert isinstance(pending.failure(), RunCancelledError)
    assert {receipt.outcome for receipt in receipts} == {"cancelled"}
    assert len({receipt.reason for receipt in receipts}) == 1
    assert world.run(client.runs.cancel, "r").outcome == "cancelled", "and after the end"


def test_cancel_all(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Every live run goes, named or not; one receipt each."""
    pending = [world.start(world.create, client, name) for name in ("a", "b", None)]
    generating(server, 3)
    assert len(client.runs.list()) == 3
    receipts = world.run(client.runs.cancel_all, reason="shutdown")
    assert sorted(receipt.outcome for receipt in receipts) == ["cancelled"] * 3
    for each in pending:
        assert isinstance(each.failure(), RunCancelledError)
    assert client.runs.list() == []


class Child:
    """As much of a child's cancellation as its parent's looks at."""

    def __init__(self) -> None:
        self.looks, self.over, self.done = 0, False, self
        self._above: list[Any] = []

    def is_set(self) -> bool:
        self.looks += 1
        return self.over

    def __eq__(self, other: object) -> bool:
        self.looks += 1
        return self is other

    def __hash__(self) -> int:
        return id(self)


def test_of_thousands_of_children_each_is_looked_at_a_few_times(client: Any) -> None:
    """For each that came, and for each that had its outcome, all before it were looked at: seconds, for thousands."""
    run = client.runs.open("many")
    it = Cancelling(run, run.intent())
    it._begun = True
    children: Any = [Child() for _ in range(200)]
    for child in children:
        it.add_child(child)
        it.add_child(child)
    assert list(it._children) == children
    for child in children[:-1]:
        child.over = True
        it._news()
    run.end()
    assert max(child.looks for child in children[:-1]) < 10
    assert not it.done.is_set()


def test_a_child_that_comes_while_all_are_looked_at(client: Any) -> None:
    """Who cancels a scope again, in another thread, may find a new child: whoever is at the outcome goes on."""
    run = client.runs.open("many")
    it = Cancelling(run, run.intent())
    children: Any = [Child() for _ in range(3)]
    for child in children[:2]:
        child._still_unconfirmed = lambda: it.add_child(children[2])
        it.add_child(child)
    assert not it._still_unconfirmed()
    assert list(it._children) == children
    run.end()


def test_levels(world: Any, client: Any, server: FakeOpenAI) -> None:
    """`wait="sent"` and `wait="accepted"` do not wait for the end."""
    for wait in ("sent", "accepted"):
        pending = world.start(world.create, client, wait)
        server.wait_for(lambda requests: any(each.state == "generating" for each in requests))
        receipt = world.run(client.runs.cancel, wait, wait=wait)
        assert receipt.outcome in (wait, "cancelled")
        assert isinstance(pending.failure(), RunCancelledError)
        server.reset()


def test_a_name_that_is_made_up_is_nobodys(world: Any, client: Any) -> None:
    """A user may have given the very name that would be next: who gives none is not told that it is taken."""
    last = int(client.runs.open().name.partition("-")[2])
    given = {client.runs.open(f"run-{last + more}").name for more in (1, 2, 3)}
    assert client.runs.open().name not in given


def test_copies_share_the_runs(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A copy's call is cancelled through the original, and the other way round."""
    copy = client.with_options(timeout=30)
    assert type(copy) is type(client)
    pending = world.start(world.create, copy, "r")
    generating(server)
    assert world.run(client.runs.cancel, "r").outcome == "cancelled"
    assert isinstance(pending.failure(), RunCancelledError)


def test_wait(world: Any, client: Any, server: FakeOpenAI) -> None:
    """`wait()` gives the receipt of a cancel that somebody else asked for; None where nobody did."""
    pending = world.start(world.create, client, "r")
    generating(server)
    assert world.run(client.runs.wait, "r", timeout=0.01) is None
    client.runs.get("r").cancel_soon()
    assert world.run(client.runs.wait, "r", timeout=10).outcome == "cancelled"
    assert isinstance(pending.failure(), RunCancelledError)


def test_reset_replaces_the_pool_while_healthy_calls_finish(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A call under way ends on the old pool; what comes after goes over the new one; nothing stays open."""
    healthy = world.start(world.consume, client, max_tokens=20)
    generating(server)
    old = client._client._transport._pool
    assert world.run(client.runs.reset) >= 1
    assert client._client._transport._pool is not old
    server.rate = 0
    assert world.start(world.create, client, max_tokens=2).result().choices
    assert healthy.result() >= 20
    until(lambda: not old.connections, "the end of the old pool")
    assert not client._client.is_closed


def test_a_callback_that_means_to_leave_does_not_end_the_cancel(world: Any, client: Any, server: FakeOpenAI) -> None:
    """What it raises is no mere failure and comes out of `cancel()`; the receipt comes all the same."""

    def leave(_: Any) -> None:
        raise SystemExit(3)

    async def cancel_in_task(run: Any) -> Any:
        try:
            return await run.cancel()
        except SystemExit as error:  # not out of the loop
            return error

    def cancel(run: Any) -> Any:
        try:
            return run.cancel()
        except SystemExit as error:
            return error

    pending = world.start(world.create, client, "r")
    generating(server)
    run = client.runs.get("r")
    run.on_cancel(leave)
    assert isinstance(world.run(cancel_in_task if world.is_async else cancel, run), SystemExit)
    assert isinstance(pending.failure(), RunCancelledError)
    receipt = world.run(client.runs.wait, run, 5)
    assert receipt is not None
    assert receipt.outcome == "cancelled"
