"""Scopes under attack: what outlives them, what shares them, and what cancels them from inside."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from worlds import CHAT, PATIENCE, Threads

import deadstop
from deadstop import RunCancelledError
from deadstop.runs.strike import strike as strike_run
from deadstop.testing import FakeOpenAI, faults

threads = Threads()


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=0, tokens=3) as one:
        yield one


@pytest.fixture
def client(server: FakeOpenAI) -> Iterator[Any]:
    with deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0) as one:
        yield one


def stalled(client: Any, server: FakeOpenAI, context: contextvars.Context) -> Any:
    """A call that waits for its headers, made in another thread, in `context`."""
    count = len(server.requests)
    server.add(faults.LostHeaders(), times=1)
    pending = threads.start(context.run, threads.create, client)
    server.wait_for(lambda requests: len(requests) > count and requests[-1].received_at is not None)
    return pending


def test_a_straggler_of_a_cancelled_scope_that_was_left(client: Any, server: FakeOpenAI) -> None:
    """I15: work that outlives the block of a cancelled run starts no call and no open child."""
    with client.runs.open("r") as run:
        context = contextvars.copy_context()
        run.cancel(reason="stop")
    with pytest.raises(RunCancelledError, match="stop"):
        context.run(threads.create, client)

    def open_child() -> bool:
        with client.runs.open("late child") as child:
            return bool(child.cancelled)

    assert context.run(open_child)
    assert server.requests == []


def test_a_straggler_of_a_child_that_was_left(client: Any, server: FakeOpenAI) -> None:
    """I15: a call whose own scope was left belongs to the nearest one that is open, and is stopped with it."""
    with client.runs.open("parent") as parent:
        with client.runs.open("child"):
            context = contextvars.copy_context()
        parent.cancel(reason="stop")
        with pytest.raises(RunCancelledError, match="stop"):
            context.run(threads.create, client)
    assert server.requests == []


def test_a_context_is_clean_again_after_scopes_that_overlap(client: Any) -> None:
    """Two scopes that end in the wrong order (suspended generators) leave no cancelled run behind in the context."""

    def program() -> Any:
        first, second = client.runs.open("first"), client.runs.open("second")
        first.__enter__()
        second.__enter__()
        first.cancel_soon()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        return client.chat.completions.create(**CHAT)

    assert contextvars.copy_context().run(program).choices


def test_a_scope_that_a_generator_has_left_elsewhere_is_over_where_it_was_entered(world: Any) -> None:
    """A worker or a task that began a generator is not for ever in the scope that was cancelled in another one."""

    def in_threads(client: Any) -> Any:
        def answer() -> Iterator[Any]:
            with client.runs.open("r") as run:
                yield
                run.check()

        generator = answer()
        next(generator)
        client.runs.cancel("r")
        with pytest.raises(RunCancelledError):
            threads.start(next, generator).result()
        with client.runs.open() as run:
            return client.chat.completions.create(**CHAT), run.cancelled

    async def in_tasks(client: Any) -> Any:
        async def answer() -> AsyncIterator[Any]:
            async with client.runs.open("r") as run:
                yield
                run.check()

        generator = answer()
        await generator.__anext__()
        await client.runs.cancel("r")

        async def go_on() -> None:
            with pytest.raises(RunCancelledError):
                await generator.__anext__()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
        async with client.runs.open() as run:
            return await client.chat.completions.create(**CHAT), run.cancelled

    with FakeOpenAI(rate=0, tokens=3) as server:
        client = world.client(server.base_url, max_retries=0)
        answer, cancelled = world.run(in_tasks if world.is_async else in_threads, client)
        assert answer.choices
        assert not cancelled
        world.close(client)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_sync_scope_that_another_task_has_left_is_over_where_it_was_entered(client: Any, backend: str) -> None:
    """Also for a sync client in a loop: one thread, and only its tasks tell who entered from who left."""

    def answer() -> Iterator[Any]:
        with client.runs.open("r") as run:
            yield
            run.check()

    async def program() -> Any:
        generator, entered, left = answer(), anyio.Event(), anyio.Event()
        made: list[Any] = []

        async def enter() -> None:
            next(generator)
            client.runs.cancel("r")
            entered.set()
            await left.wait()
            made.append(client.chat.completions.create(**CHAT))

        async def leave() -> None:
            await entered.wait()
            with pytest.raises(RunCancelledError):
                next(generator)
            left.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter)
            tasks.start_soon(leave)
        return made

    pytest.importorskip(backend)
    assert anyio.run(program, backend=backend)[0].choices


@pytest.mark.parametrize("how", ["cancel the parent", "cancel_all"])
def test_a_child_that_outlives_its_parent_is_cancelled_too(client: Any, server: FakeOpenAI, how: str) -> None:
    """I15: leaving a scope does not take what is still running in it out of reach."""
    opened, released = threading.Event(), threading.Event()

    def child() -> Any:
        with client.runs.open("child"):
            opened.set()
            released.wait(PATIENCE)
            return client.chat.completions.create(**CHAT)

    with client.runs.open("parent"):
        pending = threads.start(contextvars.copy_context().run, child)
        assert opened.wait(PATIENCE)
    receipts = client.runs.cancel_all() if how == "cancel_all" else [client.runs.cancel("parent")]
    released.set()
    assert isinstance(pending.failure(), RunCancelledError)
    assert [receipt.outcome for receipt in receipts] == ["cancelled"]
    assert server.requests == []


def test_names_that_look_made_up_stay_the_users(client: Any, server: FakeOpenAI) -> None:
    """I9: a run that a user calls call-7 is not replaced by the anonymous run of the seventh call."""
    server.rate = 20
    probe = client.chat.completions.create(**CHAT, stream=True)
    number = int(client.runs.list()[0].name.partition("-")[2])
    probe.response.close()
    opened = [client.runs.open(f"call-{number + ahead}") for ahead in range(1, 6)]
    stream = client.chat.completions.create(**CHAT, stream=True)
    for run in opened:
        assert client.runs.get(run.name) is run
        run.__enter__()
    for run in reversed(opened):
        run.__exit__(None, None, None)
    stream.response.close()


def test_cancelling_a_stream_of_a_scope_that_was_read_to_its_end(client: Any) -> None:
    """I2: a stream that ended by itself is not reported as cancelled."""
    with client.runs.open("r"):
        stream = client.chat.completions.create(**CHAT, stream=True)
        if not hasattr(stream, "close"):
            pytest.skip("this openai stops reading at [DONE], before the end of the answer")
        assert list(stream)
        assert client.runs.cancel(stream).outcome == "finished_first"


def test_two_cancels_of_one_stream_share_one_record(client: Any, server: FakeOpenAI) -> None:
    """I7, I10: whoever cancels a stream of a scope joins the cancel under way; the first reason stays."""
    server.rate = 20
    with client.runs.open("r"):
        stream = client.chat.completions.create(**CHAT, stream=True, max_tokens=1000)
        next(stream)
        registry = client.runs._registry
        first, second = registry.find(stream), registry.find(stream)  # as two threads would, at once
        first.cancel_soon(reason="first")
        receipt = client.runs.cancel(second, reason="second")
        assert receipt.reason == "first"
        assert receipt.later == (("second", None),)
        with pytest.raises(RunCancelledError, match="first"):
            next(stream)


def test_a_repeated_request_id_changes_nothing(client: Any) -> None:
    """I8: the same request, asked again, gets the same receipt, and leaves no trace on it."""
    with client.runs.open("r") as run:
        first = run.cancel(reason="one", request_id="q-1")
        assert run.cancel(reason="one", request_id="q-1") == first
        assert run.receipt == first


def test_a_run_can_be_entered_only_once(client: Any) -> None:
    """Entering a run that has ended is an error, not a scope whose calls belong to nobody."""
    run = client.runs.open("r")
    with run:
        pass
    with pytest.raises(deadstop.DeadstopError), run:
        pass


def test_a_callback_of_a_child_may_cancel_the_parent(client: Any, server: FakeOpenAI) -> None:
    """I1, I2: such a cancel returns in time, and confirms nothing while the parent's call is still blocked."""
    said: list[Any] = []

    def call_back(_run: Any) -> None:
        receipt = client.runs.cancel("parent", timeout=0.5, policy=deadstop.CancelPolicy(on_timeout="return"))
        said.append((str(receipt.outcome), pending.done))

    with client.runs.open("parent") as parent:
        pending = stalled(client, server, contextvars.copy_context())
        with client.runs.open("child") as child:
            child.on_cancel(call_back)
            canceller = threads.start(parent.cancel, timeout=5)
            receipt = canceller.result()
    assert receipt.outcome == "cancelled"
    assert receipt.calls, "the parent's call is missing on the record"
    assert isinstance(pending.failure(), RunCancelledError)
    assert said == [("accepted", False)] or said[0][1], f"{said}: confirmed while the caller was blocked"


class _Held(dict):  # type: ignore[type-arg]
    """Holds the first canceller up between becoming the first and closing the fence, as the scheduler may."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.go_on = threading.Event(), threading.Event()

    def setdefault(self, key: Any, value: Any = None) -> Any:
        mine = not self  # the first of all, in whatever order
        got = super().setdefault(key, value)
        if mine:
            self.first.set()
            self.go_on.wait(PATIENCE)
        return got


@pytest.mark.parametrize("how", ["cancel_soon", "cancel"])
def test_whoever_joins_a_cancel_finds_the_fence_closed(client: Any, server: FakeOpenAI, how: str) -> None:
    """I2, I4: the second canceller's return promises as much as the first's, though the first was held up."""
    with client.runs.open("r") as run:
        pending = stalled(client, server, contextvars.copy_context())
        run.once = held = _Held()
        first = threads.start(run.cancel, reason="first")
        assert held.first.wait(PATIENCE)
        try:
            if how == "cancel":
                receipt = threads.start(run.cancel, timeout=2).result()
                assert receipt.outcome == "cancelled"
                assert pending.done, "confirmed while the caller was blocked"
            else:
                run.cancel_soon(reason="second")
                assert run.cancelled
                assert all(call.cancelled for call in run.calls.values())
        finally:
            held.go_on.set()
        assert first.result().outcome == "cancelled"
        pending.wait()


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A canceller that has interrupted is held up until this is set, before it begins with its books."""
    event = threading.Event()

    def strike(*args: Any) -> Any:
        event.wait(PATIENCE)
        return strike_run(*args)

    monkeypatch.setattr("deadstop.runs.blocking.strike", strike)
    return event


def test_who_was_hit_needs_nothing_more_of_the_canceller(
    client: Any, server: FakeOpenAI, go_on: threading.Event
) -> None:
    """I2, I10, I15: the canceller is held up once it has interrupted. The caller knows why, nothing more begins, and
    somebody else's cancel has all of it on its receipt."""
    with client.runs.open("r") as run:
        pending = stalled(client, server, contextvars.copy_context())
        first = threads.start(run.cancel, reason="first", actor="ann")
        error: Any = pending.failure()
        assert (type(error), error.reason, error.actor) == (RunCancelledError, "first", "ann")
        with pytest.raises(RunCancelledError, match="first"):
            contextvars.copy_context().run(threads.create, client)
        run.cancel_soon(reason="second")
        receipt = client.runs.wait(run, PATIENCE)
        assert (receipt.outcome, receipt.reason, len(receipt.calls)) == ("cancelled", "first", 1)
        go_on.set()
        assert first.result().later == (("second", None),)
    assert len(server.requests) == 1


def test_what_begins_while_the_canceller_looks_is_on_the_receipt(
    client: Any, server: FakeOpenAI, go_on: threading.Event
) -> None:
    """A call that begins between the look at the calls and the flag, and is free before the books are begun."""
    with client.runs.open("r") as run:
        pending = [stalled(client, server, contextvars.copy_context())]
        run.once = held = _Held()
        canceller = threads.start(run.cancel)
        assert held.first.wait(PATIENCE)
        pending.append(stalled(client, server, contextvars.copy_context()))
        held.go_on.set()
        assert [type(each.failure()) for each in pending] == [RunCancelledError] * 2
        go_on.set()
        assert len(canceller.result().calls) == 2


def test_a_child_that_is_opened_while_the_canceller_looks_is_fenced_at_once(
    client: Any, server: FakeOpenAI, monkeypatch: Any
) -> None:
    """I4, I15: the canceller does not look away before the fence of all that is below is closed."""
    said: list[bool] = []

    class Never:
        def acquire(self, *_: Any) -> None:
            said.append(client.runs.get("child").cancelled)

    monkeypatch.setattr("deadstop.runs.blocking.NEVER", Never())

    def child() -> Any:
        with client.runs.open("child"):
            return threads.create(client)

    with client.runs.open("r") as run:
        pending = stalled(client, server, contextvars.copy_context())
        run.once = held = _Held()
        canceller = threads.start(run.cancel)
        assert held.first.wait(PATIENCE)
        server.add(faults.LostHeaders(), times=1)
        below = threads.start(contextvars.copy_context().run, child)
        server.wait_for(lambda requests: len(requests) == 2 and requests[1].received_at is not None)
        held.go_on.set()
        receipt = canceller.result()
        assert all(said)
        assert (len(receipt.calls), len(receipt.children[0].calls)) == (1, 1)
        assert [type(each.failure()) for each in (pending, below)] == [RunCancelledError] * 2
