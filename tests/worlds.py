"""One suite, several worlds: the same behaviour for threads, asyncio and trio.

A test says what it does with an SDK client; the world does it in a thread, or in a task of a loop that runs in a
thread of its own. So every test is a plain function, and looks at the same facts whichever world it is in.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib.util
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

import anyio
import anyio.from_thread
import pytest

import deadstop

MESSAGES: Any = [{"role": "user", "content": "hi"}]
CHAT: Any = {"model": "m", "messages": MESSAGES}
PATIENCE = 20.0
"""How long (seconds) a test waits for what must happen; reached only when it fails."""


class Pending:
    """Something that was started and will end: with a value or an error, at a time."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: Optional[BaseException] = None
        self.ended: Optional[float] = None
        self._done = threading.Event()

    def end(self, value: Any = None, error: Optional[BaseException] = None) -> None:
        self.ended = time.monotonic()
        self.value, self.error = value, error
        self._done.set()

    def result(self) -> Any:
        """The value, or the error raised."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self.value

    def failure(self) -> BaseException:
        """The error that it ended with; a test failure if there was none."""
        self.wait()
        assert self.error is not None, f"it ended with {self.value!r}"
        return self.error

    def wait(self, timeout: float = PATIENCE) -> None:
        assert self._done.wait(timeout), "it did not end"

    @property
    def done(self) -> bool:
        return self._done.is_set()


class Threads:
    """The sync client, each program in a thread."""

    name = "threads"
    is_async = False

    def client(self, base_url: str, **kwargs: Any) -> Any:
        return deadstop.OpenAI(api_key="k", base_url=base_url, **kwargs)

    def close(self, client: Any) -> None:
        client.close()

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the client and wait for it here."""
        return function(*args, **kwargs)

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Pending:
        """Start a method of the client elsewhere."""
        pending = Pending()

        def work() -> None:
            try:
                value = function(*args, **kwargs)
            except BaseException as error:
                pending.end(error=error)
            else:
                pending.end(value)

        threading.Thread(target=work, daemon=True).start()
        return pending

    def create(self, client: Any, name: Optional[str] = None, scope: Any = None, **body: Any) -> Any:
        """`chat.completions.create(...)`, in a scope if it is given a name."""
        if name is None:
            return client.chat.completions.create(**{**CHAT, **body})
        with client.runs.open(name, **(scope or {})):
            return client.chat.completions.create(**{**CHAT, **body})

    def call(self, client: Any, name: Optional[str], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`function(*args, **kwargs)` of the SDK, in a scope if it is given a name."""
        with contextlib.ExitStack() as stack:
            if name is not None:
                stack.enter_context(client.runs.open(name))
            return function(*args, **kwargs)

    def read(self, client: Any, name: str, function: Callable[..., Any], each: Callable[[Any], Any]) -> int:
        """Read the stream that `function()` of the SDK gives, in a scope; how many events there were."""
        with client.runs.open(name):
            count = 0
            for event in function():
                count += 1
                each(event)
            return count

    def consume(
        self, client: Any, name: Optional[str] = None, each: Callable[[Any], Any] = lambda _: None, **body: Any
    ) -> int:
        """Stream a chat completion, tell `each` of every chunk; how many there were."""
        with contextlib.ExitStack() as stack:
            if name is not None:
                stack.enter_context(client.runs.open(name))
            count = 0
            for chunk in client.chat.completions.create(**{**CHAT, **body}, stream=True):
                count += 1
                each(chunk)
            return count


class Tasks:
    """The async client, each program a task of a loop that runs in a thread."""

    is_async = True

    def __init__(self, backend: str, portal: Any) -> None:
        self.name = backend
        self.portal = portal
        self._started: list[concurrent.futures.Future[Any]] = []

    def client(self, base_url: str, **kwargs: Any) -> Any:
        return deadstop.AsyncOpenAI(api_key="k", base_url=base_url, **kwargs)

    def close(self, client: Any) -> None:
        self.run(client.close)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.portal.call(functools.partial(function, *args, **kwargs))

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Pending:
        pending = Pending()

        async def work() -> None:
            try:
                value = function(*args, **kwargs)
                if hasattr(value, "__await__"):
                    value = await value
            except BaseException as error:
                pending.end(error=error)
                if isinstance(error, (anyio.get_cancelled_exc_class(), KeyboardInterrupt)):
                    raise
            else:
                pending.end(value)

        self._started.append(self.portal.start_task_soon(work))
        return pending

    def end(self) -> None:
        """The portal waits for its tasks without a bound. What a failed test has left on its way is cancelled here."""
        left = concurrent.futures.wait(self._started, timeout=10).not_done
        if left:
            self.portal.call(self.portal.stop, True)
            raise AssertionError(f"{len(left)} tasks never came to their end.")

    async def create(self, client: Any, name: Optional[str] = None, scope: Any = None, **body: Any) -> Any:
        if name is None:
            return await client.chat.completions.create(**{**CHAT, **body})
        async with client.runs.open(name, **(scope or {})):
            return await client.chat.completions.create(**{**CHAT, **body})

    async def call(
        self, client: Any, name: Optional[str], function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            if name is not None:
                await stack.enter_async_context(client.runs.open(name))
            return await function(*args, **kwargs)

    async def read(self, client: Any, name: str, function: Callable[..., Any], each: Callable[[Any], Any]) -> int:
        async with client.runs.open(name):
            count = 0
            async for event in await function():
                count += 1
                each(event)
            return count

    async def consume(
        self, client: Any, name: Optional[str] = None, each: Callable[[Any], Any] = lambda _: None, **body: Any
    ) -> int:
        async with contextlib.AsyncExitStack() as stack:
            if name is not None:
                await stack.enter_async_context(client.runs.open(name))
            count = 0
            async for chunk in await client.chat.completions.create(**{**CHAT, **body}, stream=True):
                count += 1
                each(chunk)
            return count


def until(condition: Any, what: str) -> None:
    """Wait for a fact that only the client knows, and that nobody announces."""
    pause = threading.Event()
    for _ in range(4000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError(f"never came: {what}")


def _trio_works() -> bool:
    if importlib.util.find_spec("trio") is None:
        return False
    try:
        anyio.run(anyio.sleep, 0, backend="trio")
    except Exception:  # anyio 3 does not go with trio 0.23 and later
        return False
    return True


WORLDS = ["threads", "asyncio", *(["trio"] if _trio_works() else [])]


@contextlib.contextmanager
def open_world(name: str) -> Iterator[Any]:
    """The world of that name; its loop, if it has one, runs meanwhile."""
    if name == "threads":
        yield Threads()
    else:
        with anyio.from_thread.start_blocking_portal(name) as portal:
            tasks = Tasks(name, portal)
            yield tasks
            tasks.end()


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each world in turn."""
    with open_world(request.param) as one:
        yield one
