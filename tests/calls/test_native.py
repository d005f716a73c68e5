"""Cancellation that is not ours passes through untouched, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import openai
import pytest
from worlds import CHAT, until

import deadstop
from deadstop import RunCancelledError
from deadstop.calls.loops import Loop
from deadstop.testing import FakeOpenAI, faults


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


async def seen(server: FakeOpenAI, predicate: Any) -> None:
    await anyio.to_thread.run_sync(server.wait_for, predicate)


def generating(requests: Any) -> bool:
    return any(each.state == "generating" for each in requests)


def gone(requests: Any) -> bool:
    return bool(requests) and all(each.disconnect_seen_at is not None for each in requests)


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancel_scope_of_the_users_own(server: FakeOpenAI, stream: bool) -> None:
    """anyio's own cancel ends the call, is not turned into our error, and the connection goes."""
    client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url)

    async def program() -> None:
        reply: Any = await client.chat.completions.create(**CHAT, stream=stream)
        if stream:
            async for _ in reply:
                pass

    async with anyio.create_task_group() as group:
        group.start_soon(program)
        await seen(server, generating)
        group.cancel_scope.cancel()
    await seen(server, gone)
    assert client._client._transport._pool._requests == []
    assert client.runs.list() == []
    await client.close()


def test_task_cancel(server: FakeOpenAI) -> None:
    """`task.cancel()` raises `CancelledError` with its own message, twice over, in each phase."""

    async def main() -> None:
        client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url)
        for stream in (False, True):
            server.reset()

            async def program(stream: bool = stream) -> None:
                async with client.runs.open("r"):
                    reply: Any = await client.chat.completions.create(**CHAT, stream=stream)
                    if stream:
                        async for _ in reply:
                            pass

            task = asyncio.create_task(program())
            await seen(server, generating)
            task.cancel("mine")
            task.cancel("again")
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            await seen(server, gone)
            assert client._client._transport._pool._requests == []
            assert client.runs.list() == []
        await client.close()

    asyncio.run(main())


def test_both_cancels_at_once(server: FakeOpenAI) -> None:
    """Ours and the task's own at the same moment: the task ends as cancelled or with our error, never hangs."""

    async def main() -> None:
        client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url)
        for first in ("ours", "theirs"):
            server.reset()

            async def program() -> None:
                async with client.runs.open("r"):
                    await client.chat.completions.create(**CHAT)

            task = asyncio.create_task(program())
            await seen(server, generating)
            run = client.runs.get("r")
            for action in (run.cancel_soon, task.cancel) if first == "ours" else (task.cancel, run.cancel_soon):
                action()
            with pytest.raises((asyncio.CancelledError, RunCancelledError)):
                await task
            await seen(server, gone)
            assert client._client._transport._pool._requests == []
        await client.close()

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before, Python does not count a task's cancellations")
@pytest.mark.parametrize("turns", [0, 1])
def test_a_native_cancellation_right_after_ours_is_not_taken_for_ours(
    server: FakeOpenAI, monkeypatch: Any, turns: int
) -> None:
    """The task ends as cancelled, also where anyio (before 4.16) takes both of them for its own."""

    async def main() -> None:
        class Scope(type(anyio.CancelScope())):  # type: ignore[misc]
            def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
                ended = super().__exit__(kind, error, trace)
                return ended or (self.cancel_called and isinstance(error, asyncio.CancelledError))

        monkeypatch.setattr(Loop, "scope", lambda _, shield=False: Scope(shield=shield))
        client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url)

        async def program() -> None:
            async with client.runs.open("r"):
                await client.chat.completions.create(**CHAT)

        task = asyncio.create_task(program())
        await seen(server, generating)
        client.runs.get("r").cancel_soon()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1  # type: ignore[attr-defined]
        await seen(server, gone)
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("closing", ["fails", "is cancelled"])
def test_a_cancel_after_the_answer_whose_closing_goes_wrong(server: FakeOpenAI, closing: str) -> None:
    """The call is over all the same, and its caller gets the error of the cancel, or its own cancellation."""
    answered: Any = None
    cancelled: Any = None

    class Client(openai.AsyncOpenAI):
        async def request(self, *args: Any, **kwargs: Any) -> Any:
            stream: Any = await super().request(*args, **kwargs)
            stream.close = self.close_badly
            with anyio.CancelScope(shield=True):
                answered.set()
                await cancelled.wait()
            return stream

        async def close_badly(self) -> None:
            if closing == "is cancelled":
                task: Any = asyncio.current_task()
                task.cancel()
                await asyncio.sleep(0)
            raise OSError("it can't be closed")

    async def main() -> None:
        nonlocal answered, cancelled
        answered, cancelled = asyncio.Event(), asyncio.Event()
        client = Client(api_key="k", base_url=server.base_url)
        runs: Any = deadstop.attach(client)

        async def program() -> None:
            async with runs.open("r"):
                await client.chat.completions.create(**CHAT, stream=True)

        task = asyncio.create_task(program())
        await answered.wait()
        canceller = asyncio.create_task(runs.cancel("r", timeout=5))
        await asyncio.sleep(0)
        cancelled.set()
        with pytest.raises(RunCancelledError if closing == "fails" else asyncio.CancelledError):
            await task
        assert (await canceller).outcome == "cancelled"
        assert runs.list() == []
        await seen(server, gone)
        await client.close()

    asyncio.run(main())


def test_wait_for_around_a_call(server: FakeOpenAI) -> None:
    """`asyncio.wait_for` still raises its own timeout."""

    async def main() -> None:
        client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url)
        waiting = asyncio.ensure_future(asyncio.wait_for(client.chat.completions.create(**CHAT), 2.0))
        await seen(server, generating)
        with pytest.raises(asyncio.TimeoutError):
            await waiting
        await seen(server, gone)
        assert client._client._transport._pool._requests == []
        await client.close()

    asyncio.run(main())


def test_the_canceller_may_be_cancelled(server: FakeOpenAI) -> None:
    """A task that waits for a cancel can be cancelled itself; the cancel goes on."""

    async def main() -> None:
        client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url)

        async def program() -> None:
            async with client.runs.open("r"):
                await client.chat.completions.create(**CHAT)

        task = asyncio.create_task(program())
        await seen(server, generating)
        canceller = asyncio.create_task(client.runs.cancel("r"))
        await asyncio.sleep(0)
        canceller.cancel()
        with pytest.raises((asyncio.CancelledError, RunCancelledError)):
            await task
        await asyncio.gather(canceller, return_exceptions=True)
        receipt = await client.runs.wait("r", 5)
        assert receipt is not None
        assert receipt.outcome == "cancelled"
        await client.close()

    asyncio.run(main())


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
@pytest.mark.parametrize("how", ["cancel_soon", "cancel"])
@pytest.mark.parametrize("phase", ["headers", "stream", "backoff"])
def test_a_signal_handler_cancels_the_call_of_its_own_thread(server: FakeOpenAI, how: str, phase: str) -> None:
    """A handler on top of the blocked main thread cancels the call that it stands on, without waiting for itself."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url)
    receipts: list[Any] = []

    def handler(_signal: int, _frame: Any) -> None:
        run = client.runs.get("r")
        receipts.append(getattr(run, how)(reason="SIGUSR1"))

    if phase == "headers":
        server.add(faults.LostHeaders())
    elif phase == "backoff":
        server.add(faults.Overloaded(status=429, retry_after="30"))

    def kick() -> None:
        server.wait_for(lambda requests: any(each.received_at for each in requests))
        if phase == "backoff":
            server.wait_for(lambda requests: requests[0].finished_at is not None)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    kicker = threading.Thread(target=kick)
    try:
        kicker.start()
        with pytest.raises(RunCancelledError, match="SIGUSR1"), client.runs.open("r"):
            list(client.chat.completions.create(**CHAT, stream=phase == "stream"))  # type: ignore[call-overload]
    finally:
        kicker.join(10)
        signal.signal(signal.SIGUSR1, before)
    if how == "cancel":
        assert receipts[0].outcome in ("accepted", "cancelled")
    assert client.runs.wait("r", 5).outcome == "cancelled"
    assert client._client._transport._pool._requests == []
    client.close()


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
def test_a_signal_that_another_thread_gets_ends_the_wait_before_a_retry(server: FakeOpenAI) -> None:
    """Python runs the handler in the main thread when that looks next: not at the end of the wait (30 s)."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url)
    server.add(faults.Overloaded(status=429, retry_after="30"))

    def kick() -> None:
        server.wait_for(lambda requests: bool(requests) and requests[0].finished_at is not None)
        waiting = threading.main_thread().ident
        until(lambda: sys._current_frames()[waiting].f_code.co_name == "wait", "the wait")  # type: ignore[index]
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: client.runs.get("r").cancel_soon(reason="SIGUSR1"))
    kicker = threading.Thread(target=kick)
    began = time.monotonic()
    try:
        kicker.start()
        with pytest.raises(RunCancelledError, match="SIGUSR1"), client.runs.open("r"):
            client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
    finally:
        kicker.join(10)
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - began < 10.0
    client.close()


def test_a_clock_that_stands_still_does_not_lengthen_the_wait_before_a_retry(
    server: FakeOpenAI, monkeypatch: Any
) -> None:
    """As in people's tests: `freezegun` stops `time.monotonic`, and waits go on."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url)
    server.rate = 1000
    server.add(faults.Overloaded(status=429, retry_after="1"), times=1)
    monkeypatch.setattr("deadstop.calls.call.time", SimpleNamespace(monotonic=lambda: 1.0))
    given: list[Any] = []
    worker = threading.Thread(target=lambda: given.append(client.chat.completions.create(**CHAT)), daemon=True)
    worker.start()
    worker.join(10)
    assert given
    client.close()


def test_keyboard_interrupt(server: FakeOpenAI) -> None:
    """Ctrl-C in a blocked call is still a `KeyboardInterrupt`, and the connection goes."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url)

    def kick() -> None:
        server.wait_for(generating)
        os.kill(os.getpid(), signal.SIGINT)

    kicker = threading.Thread(target=kick)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        kicker.start()
        with pytest.raises(KeyboardInterrupt), client.runs.open("r"):
            client.chat.completions.create(**CHAT)
    finally:
        kicker.join(10)
        signal.signal(signal.SIGINT, before)
    server.wait_for(gone)
    assert client._client._transport._pool._requests == []
    assert client.runs.list() == []
    client.close()
