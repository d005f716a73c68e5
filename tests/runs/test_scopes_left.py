"""A scope that was left answers for what was begun in it, as do the scopes around it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from typing import Any, Callable

import anyio
import anyio.to_thread
import pytest
from remote_runs import QUICK, create, truth
from worlds import CHAT, until

from deadstop import RunCancelledError
from deadstop.calls.call import Call
from deadstop.core.model import Evidence
from deadstop.kinds import register as kinds
from deadstop.kinds.base import Ref
from deadstop.testing import FakeOpenAI, faults


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    one.runs.policy = QUICK
    yield one
    world.close(one)


def background(client: Any) -> Any:
    """Start a background response."""
    function, args, kwargs = create(client)
    return function(*args, **kwargs)


def chat(world: Any, client: Any, begin: Any, then: Any, turns: int = 1, **options: Any) -> Callable[[], Any]:
    """A program: in the scope `chat-42` some turns, each a scope of its own that is left, then `then(run)`."""
    if world.is_async:

        async def program() -> Any:
            async with client.runs.open("chat-42", **options) as run:
                for number in range(turns):
                    async with client.runs.open(f"turn-{number}"):
                        await begin()
                return await then(run)

    else:

        def program() -> Any:
            with client.runs.open("chat-42", **options) as run:
                for number in range(turns):
                    with client.runs.open(f"turn-{number}"):
                        begin()
                return then(run)

    return program


def holding(world: Any, event: threading.Event) -> Callable[[Any], Any]:
    """What a program does last: it waits for that."""

    async def hold(_run: Any) -> None:
        await anyio.to_thread.run_sync(event.wait, 20)

    return hold if world.is_async else lambda _run: event.wait(20)


def nothing(world: Any) -> Callable[[Any], Any]:
    async def leave(_run: Any) -> None:
        pass

    return leave if world.is_async else lambda _run: None


def outlasting(world: Any, client: Any, server: FakeOpenAI, then: Callable[[], Any]) -> Callable[[], Any]:
    """A program: in `chat-42` a `turn` that is left while a call of another thread or task goes on, then `then()`."""
    errors: list[BaseException] = []

    if world.is_async:

        async def call() -> None:
            try:
                await client.chat.completions.create(**CHAT)
            except RunCancelledError as error:
                errors.append(error)

        async def program() -> Any:
            async with anyio.create_task_group() as group:
                async with client.runs.open("chat-42"):
                    async with client.runs.open("turn"):
                        group.start_soon(call)
                        await anyio.to_thread.run_sync(generating, server)
                    await then()
            return errors

    else:

        def work() -> None:
            try:
                client.chat.completions.create(**CHAT)
            except RunCancelledError as error:
                errors.append(error)

        def program() -> Any:
            with client.runs.open("chat-42"):
                with client.runs.open("turn"):
                    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
                    thread.start()
                    generating(server)
                then()
            thread.join(20)
            return errors

    return program


def generating(server: FakeOpenAI) -> None:
    server.wait_for(lambda requests: any(each.tokens_generated for each in requests))


def test_a_cancel_reaches_what_an_inner_scope_left_behind(world: Any, client: Any, server: FakeOpenAI) -> None:
    """I2, I15: a background response of a turn that is over is cancelled with the conversation, and read back."""
    receipt = world.run(chat(world, client, lambda: background(client), lambda run: run.cancel()))
    assert (truth(server).truth, truth(server).cancels) == ("cancelled", 1)
    assert (receipt.outcome, receipt.evidence) == ("cancelled", "status")
    (turn,) = receipt.children
    assert (turn.run, turn.outcome) == ("turn-0", "cancelled")
    assert [each.kind for each in turn.children] == ["response"]


def test_so_it_is_for_every_step_of_an_agent(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The runs of all the steps that are over are cancelled, each once."""
    receipt = world.run(chat(world, client, lambda: background(client), lambda run: run.cancel(), turns=3))
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)] * 3
    assert [each.run for each in receipt.children] == ["turn-0", "turn-1", "turn-2"]


def test_a_deadline_reaches_what_an_inner_scope_left_behind(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The time of the outer scope is up: the run that an inner one began is cancelled."""
    done = threading.Event()
    pending = world.start(chat(world, client, lambda: background(client), holding(world, done), timeout=0.5))
    server.wait_for_runs(lambda runs: bool(runs) and runs[0].truth == "cancelled")
    done.set()
    pending.result()
    until(lambda: client.runs.get("chat-42").receipt is not None, "the receipt")
    assert client.runs.get("chat-42").receipt.outcome == "cancelled"


def test_a_cancel_by_name_reaches_it_when_all_were_left(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The outer scope was left as well, and its name still stands for what was begun in it and inside."""
    world.run(chat(world, client, lambda: background(client), nothing(world)))
    receipt = world.run(client.runs.cancel, "chat-42")
    assert (receipt.outcome, receipt.evidence) == ("cancelled", "status")
    assert (truth(server).truth, truth(server).cancels) == ("cancelled", 1)


def test_what_was_over_by_then_is_not_told_to_be_cancelled(world: Any, client: Any, server: FakeOpenAI) -> None:
    """I2: the run of the inner scope comes to its end as it is cancelled with the conversation."""
    server.add(faults.CompletesFirst())
    world.run(chat(world, client, lambda: background(client), nothing(world)))
    receipt = world.run(client.runs.cancel, "chat-42")
    assert (receipt.outcome, receipt.evidence) == ("finished_first", "status")


@pytest.mark.parametrize("how", ["around", "by name", "all"])
def test_a_call_that_outlasts_its_scope_is_cancelled(world: Any, client: Any, server: FakeOpenAI, how: str) -> None:
    """I4, I15: a call of another thread or task is still under way when its scope is left: it is cancelled with the
    scope around it, by the scope's own name, and with all."""
    cancels = {
        "around": lambda: client.runs.cancel("chat-42"),
        "by name": lambda: client.runs.cancel("turn"),
        "all": client.runs.cancel_all,
    }
    (error,) = world.start(outlasting(world, client, server, cancels[how])).result()
    assert isinstance(error, RunCancelledError)
    server.wait_for(lambda requests: requests[0].state == "disconnected")


def test_all_reaches_a_call_whose_scopes_were_left(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Nothing is open any more but a call: it is listed, and `cancel_all()` stops it, with one receipt for it."""
    left = threading.Event()
    seen: list[Any] = []

    def stop() -> None:
        left.wait(20)
        until(lambda: client.runs.get("chat-42").ended, "the end of the scope")
        seen.append([run.name for run in client.runs.list()])
        seen.append(world.run(client.runs.cancel_all))

    canceller = threading.Thread(target=stop)
    canceller.start()

    async def leave() -> None:
        left.set()

    pending = world.start(outlasting(world, client, server, leave if world.is_async else left.set))
    canceller.join(20)
    (error,) = pending.result()
    assert isinstance(error, RunCancelledError)
    assert seen[0] == ["turn"]
    assert [(each.run, each.outcome) for each in seen[1]] == [("turn", "cancelled")]
    assert client.runs.list() == []


def test_with_all_each_run_is_cancelled_once(world: Any, client: Any, server: FakeOpenAI) -> None:
    """What is cancelled with an open scope is not cancelled besides: one receipt for all of it."""
    receipts = world.run(chat(world, client, lambda: background(client), lambda run: client.runs.cancel_all(), turns=2))
    assert [(each.run, each.outcome, each.later) for each in receipts] == [("chat-42", "cancelled", ())]
    assert [(run.truth, run.cancels) for run in server.runs] == [("cancelled", 1)] * 2


def test_a_call_that_has_come_to_its_end_is_held_no_longer(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The call that outlasted its scope is over: its scope is none of the outer one's any more, nor in the list."""
    server.rate = 2000
    found: list[Any] = []

    def look() -> None:
        server.wait_for(lambda requests: requests[0].state == "completed")
        until(lambda: not client.runs.get("turn").calls, "the end of the call")
        found.extend((dict(client.runs.get("chat-42").children), [run.name for run in client.runs.list()]))

    async def look_async() -> None:
        await anyio.to_thread.run_sync(look)

    assert world.start(outlasting(world, client, server, look_async if world.is_async else look)).result() == []
    assert found == [{}, ["chat-42"]]


def test_thousands_of_turns_leave_nothing_behind(world: Any, client: Any) -> None:
    """A scope that is open for long holds the turns whose remote runs may be at work, and none that are over."""
    registry, made = client.runs._registry, list[Ref]()

    def begin() -> None:
        """A remote run whose create was answered."""
        ref = Ref("response", (f"resp_{len(made)}",))
        run = registry.unborn(kinds.kind("response"), registry.channel_to())
        registry.christen(run, ref)
        run.remote.born(ref)
        made.append(ref)

    async def begin_async() -> None:
        begin()

    def look(run: Any) -> Any:
        held = len(run.children)
        for ref in made:
            registry.observe(ref, "completed", Evidence.STATUS)
        return held, len(run.children), len(registry.outlasting), [each.name for each in registry.live()]

    async def look_async(run: Any) -> Any:
        return look(run)

    begins, looks = (begin_async, look_async) if world.is_async else (begin, look)
    assert world.run(chat(world, client, begins, looks, turns=2000)) == (2000, 0, 0, ["chat-42"])


def test_turns_without_anything_at_work_are_not_held(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A turn whose calls are over when it is left is gone from the outer scope at once."""
    server.rate = 0
    create = lambda: client.chat.completions.create(**CHAT, max_tokens=2)  # noqa: E731
    count = (lambda run: len(run.children)) if not world.is_async else None

    async def count_async(run: Any) -> int:
        return len(run.children)

    assert world.run(chat(world, client, create, count or count_async, turns=20)) == 0


def test_a_scope_that_is_entered_after_its_parent_was_left_belongs_to_the_one_around(
    world: Any, client: Any, server: FakeOpenAI
) -> None:
    """I15: it was opened in a turn, and entered when that was over: a cancel of the conversation reaches it."""
    if world.is_async:

        async def program() -> Any:
            async with client.runs.open("chat-42") as run:
                async with client.runs.open("turn"):
                    late = client.runs.open("late")
                async with late:
                    await run.cancel()
                    await client.chat.completions.create(**CHAT)

    else:

        def program() -> Any:
            with client.runs.open("chat-42") as run:
                with client.runs.open("turn"):
                    late = client.runs.open("late")
                with late:
                    run.cancel()
                    client.chat.completions.create(**CHAT)

    assert isinstance(world.start(program).failure(), RunCancelledError)
    assert server.requests == []


def test_a_call_begun_in_the_moment_its_scope_is_left_belongs_to_the_one_around(world: Any, client: Any) -> None:
    """I15: a thread has looked up its scope, another leaves that, the first begins its call: it is not out of reach."""
    registry = client.runs._registry

    def program() -> Any:
        outer, turn = (
            registry.open(name, timeout=None, metadata=None, policy=None, streamed_inside=None) for name in "ab"
        )
        outer.enter()
        turn.parent = outer
        turn.enter()
        turn.leave()
        turn.end()
        call = Call(turn, "POST", "/chat/completions", False, False)
        turn.add(call)
        held = call.run is outer, list(outer.calls.values()) == [call], dict(turn.calls)
        call.leave()
        outer.leave()
        outer.end()
        late = Call(turn, "POST", "/chat/completions", False, False)
        turn.add(late)
        listed = [run.name for run in registry.live()]
        late.leave()
        return (*held, listed, registry.live())

    assert world.run(program) == (True, True, {}, ["b"], [])
