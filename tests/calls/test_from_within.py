"""A cancel that comes from within what it cancels: from a hook, or from a transport, in the call's own task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import openai
import pytest
from worlds import CHAT

import deadstop
from deadstop import RunCancelledError
from deadstop.clients.channel import package_of
from deadstop.testing import FakeOpenAI

CHUNK = (
    b'data: {"id":"a","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
)


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


def http_package() -> Any:
    """httpx or httpx2: what the SDK in hand rides on."""
    return package_of(openai.OpenAI(api_key="k")._client, "httpx", "httpx2")


async def ends_cancelled(work: Any) -> None:
    """Ends with our error, and nothing is left in the task that would come up at its next wait."""

    async def program() -> None:
        with pytest.raises(RunCancelledError):
            await work()
        for _ in range(3):
            await asyncio.sleep(0)
        if hasattr(asyncio.Task, "cancelling"):
            task: Any = asyncio.current_task()
            assert task.cancelling() == 0

    await asyncio.create_task(program())


def test_a_hook_of_a_call_within_a_call(server: FakeOpenAI) -> None:
    """It cancels the outer one, whose task it runs in; then that task never waits until it has left the call."""
    http = http_package()

    async def main() -> None:
        inner = deadstop.AsyncOpenAI(
            api_key="k",
            base_url=server.base_url,
            max_retries=0,
            http_client=http.AsyncClient(event_hooks={"request": [lambda _: cancel_outer()]}),
        )
        apart = inner.runs.open("inner")  # not a child of the outer run

        async def cancel_outer() -> None:
            await outer.runs.cancel("outer", wait="sent")
            raise ValueError("from the hook")

        async def call_inner(_: Any) -> None:
            async with apart:
                with pytest.raises((ValueError, openai.APIConnectionError)):
                    await inner.chat.completions.create(**CHAT)

        outer = deadstop.AsyncOpenAI(
            api_key="k",
            base_url=server.base_url,
            max_retries=0,
            http_client=http.AsyncClient(event_hooks={"request": [call_inner]}),
        )

        async def work() -> None:
            async with outer.runs.open("outer"):
                await outer.chat.completions.create(**CHAT)

        await ends_cancelled(work)
        await outer.close()
        await inner.close()

    asyncio.run(main())


def test_a_transport_that_cancels_while_it_is_read() -> None:
    """One of the user's own, whose body gives an event, cancels its run and breaks."""
    http = http_package()

    async def main() -> None:
        class Body(http.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                yield CHUNK
                await client.runs.cancel("r", wait="sent")
                raise ValueError("from the body")

        class Transport(http.AsyncBaseTransport):
            async def handle_async_request(self, request: Any) -> Any:
                return http.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())

        client = deadstop.AsyncOpenAI(
            api_key="k", base_url="http://127.0.0.1:1/v1", http_client=http.AsyncClient(transport=Transport())
        )

        async def work() -> None:
            async with client.runs.open("r"):
                async for _ in await client.chat.completions.create(**CHAT, stream=True):
                    pass

        await ends_cancelled(work)
        await client.close()

    asyncio.run(main())


def test_a_signal_handler_that_raises_while_the_canceller_is_no_task(server: FakeOpenAI, monkeypatch: Any) -> None:
    """Its error comes out of `cancel()`; the canceller is its loop's current task again, and can wait."""

    def left_then_interrupted(*args: Any) -> None:
        leave(*args)
        raise KeyboardInterrupt

    leave = asyncio.tasks._leave_task

    async def main() -> None:
        client = deadstop.AsyncOpenAI(api_key="k", base_url=server.base_url)

        async def program() -> None:
            async with client.runs.open("r"):
                await client.chat.completions.create(**CHAT)

        task = asyncio.create_task(program())
        await anyio.to_thread.run_sync(
            server.wait_for, lambda requests: any(each.state == "generating" for each in requests)
        )
        me = asyncio.current_task()
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.tasks, "_leave_task", left_then_interrupted)
            with pytest.raises(KeyboardInterrupt):
                await client.runs.cancel("r")
        assert asyncio.current_task() is me
        with pytest.raises(RunCancelledError):
            await task
        receipt = await client.runs.wait("r", 5)
        assert receipt is not None
        assert receipt.outcome == "cancelled"
        await client.close()

    asyncio.run(main())
