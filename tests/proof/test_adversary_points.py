"""Cancel at every point: one clean run to count the points, then one run for each, with the cancel exactly there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Callable

import pytest
from remote_runs import begin
from worlds import CHAT, PATIENCE, Threads, until

import deadstop
from deadstop import CancelPolicy, RunCancelledError, telemetry
from deadstop.testing import FakeOpenAI, faults

NEVER = 1 << 40
PLACES = tuple(f"{os.sep}{name}" for name in ("deadstop", "httpcore", "httpx", "h11", f"openai{os.sep}_"))
SHAPES = ("plain in a scope", "stream in a scope", "stream")
STEP = 197
"""Every so many lines a cancel, for threads: all of them take minutes. A prime, so that no loop is in step with it."""

STEP_OF_CANCEL = 11
"""The same for the lines of a cancel, which are fewer."""


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=0, tokens=3) as one:
        yield one


def nothing_left(client: Any) -> bool:
    pool = client._client._transport._pool
    idle = all(each.is_idle() or each.is_closed() for each in pool.connections)
    return client.runs.list() == [] and pool._requests == [] and idle


class Lines:
    """Calls `fire` at the n-th line that this thread runs in the SDK, its transports and our own code."""

    def __init__(self, at: int, fire: Callable[[], Any]) -> None:
        self.count, self._at, self._fire = 0, at, fire
        self.fired_in = ""

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: Any, _event: str, _arg: Any) -> Any:
        return self._line if self.looks_at(frame.f_code) else None

    def looks_at(self, code: Any) -> bool:
        """Whether its lines are among them."""
        name = code.co_filename
        return any(place in name for place in PLACES) and "testing" not in name and "tests" not in name

    def does_something(self, _frame: Any) -> bool:
        """Whether the line counts."""
        return True

    def _line(self, frame: Any, event: str, _arg: Any) -> Any:
        if event == "line" and self.does_something(frame):
            self.count += 1
            if self.count == self._at:
                self.fired_in = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                self._fire()
        return self._line if self.count < self._at else None


@pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else is tracing")
@pytest.mark.parametrize("shape", SHAPES)
def test_at_every_line_of_a_threads_call(server: FakeOpenAI, shape: str) -> None:
    """A cancel at any line, as from a signal handler: confirmed, nothing left, nothing sent twice."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=2)

    def call(at: int, cancelled: list[Any]) -> Lines:
        def fire() -> None:
            for run in client.runs.list():
                run.cancel_soon(reason="here")
                cancelled.append(run)

        def consume() -> None:
            reply: Any = client.chat.completions.create(**{**CHAT, "model": f"m{at}"}, stream=shape != SHAPES[0])
            for _ in reply:
                pass

        with Lines(at, fire) as lines:
            if shape.endswith("scope"):
                with client.runs.open("r"):
                    consume()
            else:
                consume()
        return lines

    call(NEVER, [])
    last = call(NEVER, []).count
    assert last > 1000
    for at in range(1, last, STEP):
        cancelled: list[Any] = []
        with contextlib.suppress(RunCancelledError):
            call(at, cancelled)
        for run in cancelled:
            receipt = run.cancel(timeout=2)
            assert receipt.outcome in ("cancelled", "finished_first"), f"line {at}: {receipt}"
        until(lambda: nothing_left(client), f"the end, after a cancel at line {at}")
    for at in range(1, last, STEP):
        assert sum(each.model == f"m{at}" for each in server.requests) <= 1, f"line {at}: sent again"
    client.close()
    server.wait_for(lambda _: server.open_connections == 0)


@pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else is tracing")
@pytest.mark.parametrize("how", ["cancel", "cancel_soon"])
@pytest.mark.parametrize("shape", ["plain", "with a policy", "with a callback", "with a child"])
def test_ctrl_c_at_any_line_of_a_canceller(server: FakeOpenAI, shape: str, how: str) -> None:
    """I1, I2, I6: a cancel that Ctrl-C broke off has no false receipt, and is not half done for good: whoever cancels
    next has it confirmed."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0)
    client.chat.completions.create(**CHAT)
    server.add(faults.LostHeaders())
    policy = CancelPolicy(timeout=PATIENCE) if shape == "with a policy" else None
    undo = telemetry.add_hook(lambda _: None)
    called: list[Any] = []

    def leave() -> None:
        raise KeyboardInterrupt

    def cancel(at: int) -> Lines:
        def call() -> Any:
            with client.runs.open(f"r{at}", streamed_inside=False, policy=policy) as run:
                if shape == "with a callback":
                    run.on_cancel(called.append)
                if shape == "with a child":
                    with client.runs.open(f"child {at}", streamed_inside=False):
                        return client.chat.completions.create(**{**CHAT, "model": f"m{at}"})
                return client.chat.completions.create(**{**CHAT, "model": f"m{at}"})

        def counted(receipt: Any) -> int:
            return sum(len(each.calls) for each in (receipt, *receipt.children))

        called.clear()
        calling = Threads().start(call)
        server.wait_for(lambda seen: seen[-1].model == f"m{at}" and seen[-1].received_at is not None)
        run = client.runs.get(f"r{at}")
        with Lines(at, leave) as lines, contextlib.suppress(KeyboardInterrupt):
            getattr(run, how)()
        where = f"left at line {at}, {lines.fired_in}"
        assert run.receipt is None or counted(run.receipt) == 1, where
        if run.cancelled and os.path.join("runs", "run.py") not in lines.fired_in:  # taken, not yet called
            assert len(called) == (shape == "with a callback"), where
        receipt = client.runs.cancel(run, timeout=PATIENCE)
        assert (receipt.outcome, counted(receipt)) == ("cancelled", 1), where
        assert isinstance(calling.failure(), RunCancelledError), where
        assert len(called) <= 1, where
        return lines

    last = cancel(NEVER).count
    assert last > 150
    for at in range(1, last, STEP_OF_CANCEL):
        cancel(at)
    undo()
    assert telemetry.flush(PATIENCE), "what is told has come to a stop"
    assert nothing_left(client)
    client.close()


@pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else is tracing")
@pytest.mark.parametrize("shape", ["confirmed", "time is up"])
def test_ctrl_c_at_any_line_of_the_canceller_of_a_remote_run(shape: str) -> None:
    """I1, I2, I6: where Ctrl-C breaks off the cancel of a remote run, be it just as its time is up, the next one has it
    confirmed, and soon."""
    policy = CancelPolicy(attempt_timeout=1.0, give_up=0, recheck=0, on_timeout="return")
    with FakeOpenAI(rate=200, tokens=100_000) as server:
        world = Threads()
        client = world.client(server.base_url, max_retries=0)
        client.runs.policy = policy

        def leave() -> None:
            raise KeyboardInterrupt

        def cancel(at: int) -> Lines:
            name = f"r{at}"
            made = begin(world, client, name)
            late = shape == "time is up"
            if late:
                server.add(faults.CancelReplySlow(None), path=f"/{made['id']}/cancel")
            with Lines(at, leave) as lines, contextlib.suppress(KeyboardInterrupt):
                client.runs.cancel(name, timeout=0.03 if late else PATIENCE)
            server.clear()
            left = f"left at line {at}, {lines.fired_in}"
            began = time.monotonic()
            receipt = client.runs.cancel(client.runs.get(name), timeout=PATIENCE)
            assert receipt.outcome == "cancelled", f"{left}: {receipt}"
            assert time.monotonic() - began < PATIENCE / 2, left
            assert server.runs[-1].truth == "cancelled", left
            return lines

        last = cancel(NEVER).count
        assert last > 150
        for at in range(1, last, STEP_OF_CANCEL):
            cancel(at)
        client.close()


class Steps:
    """Awaits `work`, and calls `fire` when it has suspended for the n-th time (and `again` one step later)."""

    def __init__(self, work: Any, at: int, fire: Callable[[], Any], again: Callable[[], Any]) -> None:
        self.count, self._work, self._at, self._fire, self._again = 0, work, at, fire, again

    def __await__(self) -> Any:
        inner, value = self._work.__await__(), None
        error: BaseException | None = None
        while True:
            try:
                suspended = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as end:
                return end.value
            self.count += 1
            if self.count == self._at:
                self._fire()
            elif self.count == self._at + 1:
                self._again()
            try:
                value, error = (yield suspended), None
            except BaseException as thrown:
                error = thrown


@pytest.mark.parametrize("how", ["ours", "ours and the task's", "the task's, then ours", "the task's, twice"])
@pytest.mark.parametrize("shape", SHAPES)
def test_at_every_suspension_of_a_tasks_call(server: FakeOpenAI, shape: str, how: str) -> None:
    """The same for a task, at each point where it waits; with a native cancel before, after or twice."""

    async def one(client: Any, at: int) -> int:
        async def consume() -> None:
            reply = await client.chat.completions.create(**{**CHAT, "model": f"m{at}"}, stream=shape != SHAPES[0])
            if shape != SHAPES[0]:
                async for _ in reply:
                    pass

        async def program() -> None:
            if shape.endswith("scope"):
                async with client.runs.open("r"):
                    await consume()
            else:
                await consume()

        def ours() -> None:
            for run in client.runs.list():
                cancelled.append(run)
                run.cancel_soon(reason="here")

        def natively() -> None:
            task.cancel()

        def both() -> None:
            ours()
            natively()

        cancelled: list[Any] = []
        fire, again = {
            "ours": (ours, ours),
            "ours and the task's": (both, lambda: None),
            "the task's, then ours": (natively, ours),
            "the task's, twice": (natively, natively),
        }[how]
        steps = Steps(program(), at, fire, again)

        async def main() -> None:
            await steps

        task = asyncio.ensure_future(main())
        await asyncio.wait([task], timeout=10)
        assert task.done(), f"step {at}: it hangs"
        if not task.cancelled() and task.exception() is not None:
            assert isinstance(task.exception(), RunCancelledError), f"step {at}: {task.exception()!r}"
        for run in cancelled:
            receipt = await run.cancel(timeout=2)
            assert receipt.outcome in ("cancelled", "finished_first"), f"step {at}: {receipt}"
        deadline = time.monotonic() + 5
        while not (nothing_left(client) and len(asyncio.all_tasks()) == 1):
            pool = client._client._transport._pool
            left = (client.runs.list(), pool._requests, pool.connections, asyncio.all_tasks())
            assert time.monotonic() < deadline, f"step {at}: {left}"
            await asyncio.sleep(0)
        return steps.count

    async def every() -> None:
        for reused in (False, True):
            client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=2)
            if reused:
                await one(client, NEVER)
            last = await one(client, NEVER - 1 - reused)
            for at in range(1, last + 2):
                if not reused:
                    await client.close()
                    client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=2)
                server.reset()
                await one(client, at)
                assert sum(each.model == f"m{at}" for each in server.requests) <= 1, f"step {at}: sent again"
            await client.close()

    asyncio.run(every())
    server.wait_for(lambda _: server.open_connections == 0)
