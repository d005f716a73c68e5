"""The control channel of a client: cancels and status reads on connections, timeouts and retries of their own (I16).

It sends as the client does (auth, headers, Azure's settings, proxies, certificates, hooks), through a shallow twin of
the client that has an HTTP client of its own and never retries: retrying is decided by the core.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import threading
import time
from collections import deque
from typing import Any, Callable, Optional

import anyio

from deadstop.calls import blocking, concurrent, timers
from deadstop.calls.entry import run_blocking, run_concurrent
from deadstop.calls.errand import Errand, Result
from deadstop.calls.fresh import fresh_client
from deadstop.calls.loops import Loop
from deadstop.calls.workers import LIMIT, Workers
from deadstop.clients.adopted import ATTRIBUTE
from deadstop.core.model import Attempt
from deadstop.kinds.base import Request

__all__ = ["AsyncChannel", "Channel", "package_of"]

LINGER = 3.0
"""How long (seconds) unused connections of the channel are kept."""

Done = Callable[[Result], None]
Told = Callable[[], None]


class _Plain:
    """What the twin carries instead of runs: its requests are nobody's run, and its backoff is not ours."""

    def request(self, client: Any, send: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return send(*args, **kwargs)

    def pause(self, seconds: float) -> float:
        return seconds


_OVERRIDES = ("request", "_calculate_retry_timeout", "copy", "with_options", "close")


def _twin(client: Any) -> Any:
    """The client once more: its own HTTP client, no retries, no resources (they would keep the original alive)."""
    twin = copy.copy(client)
    for name, value in list(twin.__dict__.items()):
        if name in _OVERRIDES or getattr(value, "_client", None) is client:
            del twin.__dict__[name]
    twin.__dict__[ATTRIBUTE] = _Plain()
    twin._has_custom_http_client = True  # openai 1.0 closes the others in its destructor
    twin.max_retries = 0
    twin._client = fresh_client(client._client)
    return twin


def package_of(thing: Any, *names: str) -> Any:
    """The package that `thing`'s class comes from, of those named."""
    for cls in type(thing).__mro__:
        name = cls.__module__.partition(".")[0]
        if name in names:
            return importlib.import_module(name)
    return None


class _Channel:
    """What threads' and tasks' channels have in common."""

    def __init__(self, client: Any) -> None:
        self._client = _twin(client)
        self.base_url = str(getattr(client, "base_url", ""))
        self._under_way = 0
        self._closing: Any = None
        self.closed = False

    def _post_or_get(self, request: Request, timeout: float) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        # Per operation; the whole errand is bounded by a timer.
        options = {"headers": dict(request.headers), "params": dict(request.query), "timeout": timeout}
        httpx = package_of(self._client._client, "httpx", "httpx2")
        send = self._client.post if request.method == "POST" else self._client.get
        cast_to = httpx.Response if httpx is not None else object
        return send, (request.path,), {"cast_to": cast_to, "options": options}

    def _begin(self) -> None:
        self._under_way += 1

    def _end(self) -> None:
        self._under_way -= 1
        if self._under_way <= 0 and not self.closed:
            if self._closing is not None:
                self._closing.stop()
            self._closing = timers.at(time.monotonic() + LINGER, self._unused)

    def _unused(self) -> None:
        raise NotImplementedError


class Channel(_Channel):
    """The control channel of a sync client: requests run in a few threads of ours."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        blocking.hook_client(self._client._client)
        self._workers = Workers()

    def spawn(self, work: Told) -> bool:
        """Have `work` run soon, where it may block. Never blocks; any thread, and signal handlers."""
        self._workers.submit(work)
        return True

    def send(self, request: Request, number: int, timeout: float, left: Told, done: Done) -> Callable[[], None]:
        """Send one request, within `timeout` seconds. Never blocks: `left()` and `done(result)` are called later.

        Returns what abandons it.
        """
        state: dict[str, Any] = {"due": time.monotonic() + timeout}

        def work() -> None:
            if "abandoned" in state:
                done(_not_sent(number))
                return
            errand = state["errand"] = Errand(request.method, request.path, left)
            timer = timers.at(state["due"], errand.interrupt)
            if "abandoned" in state:
                errand.interrupt()
            send, args, kwargs = self._post_or_get(request, timeout)
            self._begin()
            try:
                result = errand.result(number, run_blocking(errand, send, args, kwargs))
            except Exception as error:
                result = errand.result(number, error=error)
            finally:
                self._end()
                timer.stop()
            done(result)

        def abandon() -> None:
            state["abandoned"] = True
            if "errand" in state:
                state["errand"].interrupt()

        self._workers.submit(work)
        return abandon

    def _unused(self) -> None:
        if not self._under_way:
            self._workers.submit(self._close_idle)

    def _close_idle(self) -> None:
        with contextlib.suppress(Exception):
            blocking.reset_client(self._client._client)

    def close(self) -> None:
        """Close the channel's connections. What is under way ends; nothing more can be sent. Idempotent."""
        if not self.closed:
            self.closed = True
            if self._closing is not None:
                self._closing.stop()
            with contextlib.suppress(Exception):
                blocking.close_pools(self._client._client)


class AsyncChannel(_Channel):
    """The control channel of an async client: requests run as tasks of the loop that the client is used on."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._waiting: deque[Told] = deque()
        self._running = 0
        self._lock = threading.Lock()
        self._loop: Optional[Loop] = None
        self.at_home()

    def at_home(self) -> None:
        """The current task's loop is the one to send from. Connections that belong to another are forgotten."""
        loop = Loop.current()
        if self._loop is None or not self._loop.is_same(loop):
            if self._loop is not None:
                self._client._client = fresh_client(self._client._client)
            concurrent.hook_client(self._client._client)
            self._running, self._loop = 0, loop

    def spawn(self, work: Told) -> bool:
        """Have `work` run soon, on the loop. False if the loop is over. Any thread, and signal handlers."""
        return self._loop is not None and self._loop.call(work)

    def send(self, request: Request, number: int, timeout: float, left: Told, done: Done) -> Callable[[], None]:
        """Send one request, within `timeout` seconds. Never blocks: `left()` and `done(result)` are called later.

        Returns what abandons it.
        """
        state: dict[str, Any] = {"due": time.monotonic() + timeout}
        loop = self._loop

        async def work() -> None:
            result = _not_sent(number, "the event loop is closing")
            try:
                if "abandoned" in state:
                    result = _not_sent(number)
                else:
                    result = await self._send(request, number, timeout, left, state)
            except BaseException:  # the loop ends its tasks: there is nobody left to send
                self._loop = None
                raise
            finally:
                self._running -= 1
                self._next()
                done(result)

        def start() -> None:
            self._waiting.append(lambda: self._run(work))
            self._next()

        def abandon() -> None:
            state["abandoned"] = True
            if "errand" in state:
                state["errand"].interrupt()

        if loop is None or not loop.call(start):
            done(_not_sent(number, "the event loop is closed"))
        return abandon

    def _run(self, work: Any) -> None:
        assert self._loop is not None
        self._loop.start(work)

    def _next(self) -> None:
        # Only ever on the loop.
        while self._waiting and self._running < LIMIT and self._loop is not None:
            self._running += 1
            self._waiting.popleft()()

    async def _send(self, request: Request, number: int, timeout: float, left: Told, state: dict[str, Any]) -> Result:
        errand = state["errand"] = Errand(request.method, request.path, left, in_task=True)
        send, args, kwargs = self._post_or_get(request, timeout)
        self._begin()
        try:
            with anyio.move_on_after(max(state["due"] - time.monotonic(), 0.0)) as scope:
                try:
                    return errand.result(number, await run_concurrent(errand, send, args, kwargs))
                except Exception as error:
                    return errand.result(number, error=error)
            assert scope.cancelled_caught
            errand.cancelled = True
            return errand.result(number)
        finally:
            self._end()

    def _unused(self) -> None:
        if not self._under_way and self._loop is not None:
            self._loop.spawn(self._close_idle)

    async def _close_idle(self) -> None:
        with contextlib.suppress(Exception):
            await concurrent.reset_client(self._client._client)

    async def aclose(self) -> None:
        """Close the channel's connections. What is under way ends; nothing more can be sent. Idempotent."""
        if not self.closed:
            self.closed = True
            if self._closing is not None:
                self._closing.stop()
            with contextlib.suppress(Exception):
                await concurrent.close_pools(self._client._client)


def _not_sent(number: int, why: str = "it was not needed any more") -> Result:
    now = time.monotonic()
    return Result(Attempt(number, now, now, error=why))
