"""What a receipt counts as delivered: all that callers had been given in the run and below it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Callable

import pytest
from remote_runs import needs_named_events, stream
from worlds import CHAT

from deadstop.testing import FakeOpenAI


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=1000, tokens=1000) as one:
        yield one


class Program:
    """What a test does in one thread or task. In threads nothing of it is ever suspended."""

    def __init__(self, world: Any, client: Any) -> None:
        self.world = world
        self.runs = client.runs
        self.client = client

    @contextlib.asynccontextmanager
    async def scope(self, name: str) -> AsyncIterator[Any]:
        run = self.runs.open(name)
        if self.world.is_async:
            async with run:
                yield run
        else:
            with run:
                yield run

    async def do(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        return await value if hasattr(value, "__await__") else value

    async def take(self, count: int, opened: Any = None) -> Any:
        """A new stream, or `opened`, of which the caller is given so many events."""
        one = opened or await self.do(self.client.chat.completions.create, **CHAT, stream=True)
        for _ in range(count):
            await self.do(one.__anext__ if self.world.is_async else one.__next__)
        return one

    async def take_all(self, count: int) -> None:
        """The same, of a stream that is closed then."""
        one = await self.take(count)
        await self.close(one)

    async def close(self, opened: Any) -> None:
        response = opened.response  # older SDKs' streams can't be closed themselves
        await self.do(response.aclose if self.world.is_async else response.close)

    async def cancel(self, name: str) -> Any:
        return await self.do(self.runs.cancel, name)


@pytest.fixture
def play(world: Any, server: FakeOpenAI) -> Iterator[Callable[..., Any]]:
    """Runs a program, and gives what it returns."""
    client = world.client(server.base_url)

    def drive(program: Callable[[Program], Any]) -> Any:
        if world.is_async:
            return world.start(program, Program(world, client)).result()

        def at_once() -> Any:
            try:
                program(Program(world, client)).send(None)
            except StopIteration as end:
                return end.value

        return world.start(at_once).result()

    yield drive
    world.close(client)


def chunks(receipt: Any) -> list[int]:
    """What the receipt counts, and those below it."""
    return [receipt.delivered.chunks, *(each for child in receipt.children for each in chunks(child))]


def test_what_a_grandchild_was_given_counts_for_all_around_it(play: Any) -> None:
    """A stream two scopes down is in the receipt of each scope that was cancelled with it."""

    async def program(here: Program) -> Any:
        async with here.scope("a"), here.scope("b"), here.scope("c"):
            held = await here.take(7)
            return await here.cancel("a"), held

    receipt, _ = play(program)
    assert chunks(receipt) == [7, 7, 7]
    assert receipt.delivered == receipt.children[0].children[0].delivered


def test_a_childs_calls_that_are_over_count_for_its_parent(play: Any) -> None:
    """A parent counts what its child does: a stream that is over, and one under way."""

    async def program(here: Program) -> Any:
        async with here.scope("a"), here.scope("b"):
            await here.take_all(7)
            held = await here.take(3)
            return await here.cancel("a"), held

    receipt, _ = play(program)
    assert chunks(receipt) == [10, 10]
    assert receipt.delivered == receipt.children[0].delivered


def test_a_scope_that_was_left_leaves_its_sum_and_nothing_else(play: Any) -> None:
    """What was delivered in scopes that are over counts for the one around them, which holds on to none of them."""

    async def program(here: Program) -> Any:
        async with here.scope("a") as outer:
            for number in range(3):
                async with here.scope(f"b{number}"):
                    async with here.scope(f"c{number}"):
                        await here.take_all(2)
                        await here.take(3)  # and dropped
                    await here.take_all(1)
            left = dict(outer.children)
            return await here.cancel("a"), left

    receipt, left = play(program)
    assert chunks(receipt) == [18]
    assert not left


@pytest.mark.parametrize("still_open", [True, False])
def test_a_child_that_was_cancelled_before_counts_once(play: Any, still_open: bool) -> None:
    """A parent counts what was delivered in a child that was cancelled by itself, be it open still or left."""

    async def program(here: Program) -> Any:
        async with here.scope("a"):
            async with here.scope("b"):
                await here.take_all(2)
                held = await here.take(3)
                first = await here.cancel("b")
                if still_open:
                    return first, await here.cancel("a"), held
            return first, await here.cancel("a"), held

    first, second, _ = play(program)
    assert chunks(first) == [5]
    assert second.delivered == first.delivered


def test_a_stream_that_was_cancelled_by_itself_counts_for_its_scope(play: Any) -> None:
    """One call of a scope may be cancelled without the others: the scope counts it all the same, and once."""

    async def program(here: Program) -> Any:
        async with here.scope("a"):
            other = await here.take(2)
            held = await here.take(3)
            first = await here.do(here.runs.cancel, held)
            return first, await here.cancel("a"), other

    first, second, _ = play(program)
    assert (chunks(first), chunks(second)) == ([3], [5])


def test_the_events_of_a_remote_run_count_for_its_scope(play: Any) -> None:
    """A background stream belongs to its remote run; the scope counts it with that one, also when it is over."""
    needs_named_events()

    async def program(here: Program) -> Any:
        async with here.scope("a"):
            begin = stream(here.client)
            for closed in (True, False):
                one = await here.take(2, await here.do(begin))
                if closed:
                    await here.close(one)
            return await here.cancel("a"), one

    receipt, _ = play(program)
    assert sorted(chunks(receipt)) == [2, 2, 4]
