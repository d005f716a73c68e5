"""The control channel of a client: cancels and status reads on connections, timeouts and retries of their own (I16).

The SDK builds each request, so it has the client's auth, headers and Azure settings; it goes out on an HTTP client of
the channel's own, with the user's proxies, certificates and hooks. The SDK never sends or retries it: retrying is
decided by the core.
"""

from __future__ import annotations

import contextlib
import importlib
import time
import weakref
from collections import deque
from functools import partial
from typing import Any, Callable, Optional

import anyio

from deadstop.calls import blocking, concurrent, timers
from deadstop.calls.entry import run_blocking, run_concurrent
from deadstop.calls.errand import Errand, Result
from deadstop.calls.fresh import fresh_client
from deadstop.calls.loops import Loop
from deadstop.calls.workers import LIMIT, Workers
from deadstop.clients.moulds import FRESH, KEYS, Captured, Mould, builder, is_personal, lend, sort_of
from deadstop.clients.outgoing import Outgoing, not_sent
from deadstop.core.diagnosis import CLOSED
from deadstop.kinds.base import Request

__all__ = ["AsyncChannel", "Channel", "package_of"]

LINGER = 3.0
"""How long (seconds) unused connections of the channel are kept."""

CLOSING = 1.0
"""How long (seconds) closing waits for requests under way, which have been interrupted."""

Done = Callable[[Result], None]
Told = Callable[[], None]
May = Callable[[], bool]


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
        self._client = weakref.ref(client)
        self._builder = builder(client)
        self._http = fresh_client(client._client)
        self.base_url = str(getattr(client, "base_url", ""))
        self._moulds: dict[Any, Mould] = {}
        self._under_way: set[Errand] = set()
        self._closing: Any = None
        self.closed = False

    def _arguments(self, request: Request) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """How to have the SDK build a request."""
        lend(self._builder, self._http)
        options = {"headers": dict(request.headers), "params": dict(request.query)}
        httpx = package_of(self._http, "httpx", "httpx2")
        build = self._builder.post if request.method == "POST" else self._builder.get
        return build, (request.path,), {"cast_to": httpx.Response if httpx is not None else object, "options": options}

    def _cast(self, request: Request, timeout: float) -> Optional[tuple[Any, dict[str, Any]]]:
        """The request to send, made like one of the same sort that the SDK has built lately, if there is one.

        Building one takes the SDK longer than sending it.
        """
        client = self._client()
        now = {} if client is None else {name: client.__dict__[name] for name in KEYS if name in client.__dict__}
        known = self._builder.__dict__
        if any(known.get(name) != value for name, value in now.items()):  # its key was replaced
            known.update(now)
            self._moulds.clear()
        mould = self._moulds.get(sort_of(request))
        if mould is None or time.monotonic() - mould.made_at > FRESH:
            return None
        like = mould.request
        raw = like.url.raw_path.replace(mould.path, request.path.encode(), 1)
        made = type(like)(like.method, like.url.copy_with(raw_path=raw), headers=like.headers.raw, content=b"")
        return self._timed(made, timeout), mould.kwargs

    def _take(self, request: Request, captured: Captured, timeout: float) -> tuple[Any, dict[str, Any]]:
        """The request to send, just built by the SDK."""
        kwargs = {name: value for name, value in captured.kwargs.items() if name != "stream"}
        made, path = captured.request, request.path.encode()
        # What was put in for this one request, a signature or a key, is not another's.
        once = getattr(self._builder, "_idempotency_header", None) or is_personal(self._builder)
        if made.url.raw_path.count(path) == 1 and getattr(made, "_content", None) == b"" and not once:
            # A copy: the user's hooks and auth put more into the one that is sent.
            kept = type(made)(made.method, made.url, headers=list(made.headers.raw), content=b"")
            self._moulds[sort_of(request)] = Mould(kept, kwargs, path, time.monotonic())
        return self._timed(made, timeout), kwargs

    def _timed(self, request: Any, timeout: float) -> Any:
        # Per operation; the whole errand is bounded by a timer.
        limits = dict.fromkeys(("connect", "read", "write", "pool"), min(timeout, timers.LONGEST))
        request.extensions = {**request.extensions, "timeout": limits}
        return request

    def _begin(self, errand: Errand) -> None:
        self._under_way.add(errand)
        if self.closed:  # in the moment between the look and now
            errand.end_by(CLOSED)

    def _end(self, errand: Errand) -> None:
        self._under_way.discard(errand)
        if not self._under_way and not self.closed and self._closing is None:
            self._closing = timers.at(time.monotonic() + LINGER, self._unused)

    def _unused(self) -> None:
        self._closing = None
        if self._under_way:
            return
        self._close_soon()

    def _unsent(self, out: Outgoing) -> Result:
        return not_sent(out.number, CLOSED) if self.closed else not_sent(out.number)

    def _close_soon(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        self.closed = True
        closing, self._closing = self._closing, None
        if closing is not None:
            closing.stop()
        # A pool that is closed forgets a connection that is still being made, and nobody would close that one.
        for errand in list(self._under_way):
            errand.end_by(CLOSED)


class Channel(_Channel):
    """The control channel of a sync client: requests run in a few threads of ours."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        blocking.hook_client(self._http)
        self._workers = Workers()
        self._beginners = Workers(limit=1)  # of their own: those of the requests may all wait for an answer

    def spawn(self, work: Told) -> bool:
        """Have `work` run soon. It must not block. Never blocks itself; any thread, and signal handlers."""
        self._beginners.submit(work)
        return True

    def send(
        self, request: Request, number: int, timeout: float, left: Told, done: Done, may: Optional[May] = None
    ) -> Outgoing:
        """Send one request, within `timeout` seconds. Never blocks: `left()` and `done(result)` are called later.

        `may()` is asked just before its first byte leaves.
        """
        out = Outgoing(number, timeout)

        def work() -> None:
            if out.abandoned or self.closed:
                done(self._unsent(out))
                return
            errand = out.begin(Errand(request.method, request.path, left, may))
            timer = timers.at(out.due, errand.interrupt)
            self._begin(errand)
            try:
                made, options = self._cast(request, timeout) or self._build(request, timeout)
                blocking.close_ended(self._http)  # a cancel that fails on one comes a backoff later, and maybe too late
                result = errand.result(number, run_blocking(errand, self._http.send, (made,), options))
            except Exception as error:
                result = errand.result(number, error=error)
            finally:
                self._end(errand)
                timer.stop()
            done(result)

        self._workers.submit(work)
        return out

    def _build(self, request: Request, timeout: float) -> tuple[Any, dict[str, Any]]:
        build, args, kwargs = self._arguments(request)
        try:
            build(*args, **kwargs)
        except Captured as captured:
            return self._take(request, captured, timeout)
        raise AssertionError("the SDK did not send what it has built")

    def _close_soon(self) -> None:
        self._workers.submit(self._close_idle)

    def _close_idle(self) -> None:
        blocking.reset_client(self._http)

    def close(self) -> None:
        """Close the channel's connections. What is under way ends; nothing more can be sent. Idempotent."""
        if not self.closed:
            self._stop()
            blocking.close_pools(self._http)


class _Home:
    """A loop that requests are sent from, and what is under way there: of each, whom to tell."""

    __slots__ = ("ends", "loop", "running", "unanswered", "waiting")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.ends = False  # it has begun to end its tasks, or takes no more of them
        self.running = 0
        self.waiting: deque[tuple[Outgoing, Any]] = deque()
        self.unanswered: dict[Outgoing, Done] = {}


class AsyncChannel(_Channel):
    """The control channel of an async client: requests run as tasks of the loop that the client is used on."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._home: Optional[_Home] = None
        self._leaving: Optional[Loop] = None  # while its requests are told that it ends
        self._ended: Optional[anyio.Event] = None  # set when nothing is under way; made when that is waited for
        self.at_home()

    def at_home(self) -> None:
        """The current task's loop is the one to send from. Connections that belong to another are forgotten."""
        loop, before = Loop.current(), self._home
        if before is not None and before.loop.is_same(loop) and not before.ends:
            return
        if self._leaving is not None and self._leaving.is_same(loop):
            return
        if before is not None and not before.loop.is_same(loop):
            http, self._http = self._http, fresh_client(self._http)
            if not before.loop.turns():
                self._under_way.clear()
            states: Any = type(getattr(http, "_state", None))
            if hasattr(states, "CLOSED"):  # or the SDK's destructor closes, in this loop, what belongs to that one
                http._state = states.CLOSED
        concurrent.hook_client(self._http)
        self._home = _Home(loop)
        if before is not None and before.loop.is_over():  # without a word to the tasks that it still had
            for out in list(before.unanswered):
                self._answer(before, out, out.cut_off("the event loop was closed"))

    def come_home(self) -> None:
        """As `at_home`, if the loop that it is at home on is over, or stands still."""
        if self._home is None or self._home.ends or not self._home.loop.turns():
            with contextlib.suppress(RuntimeError):  # nor is there one here: nothing can be sent
                self.at_home()

    def spawn(self, work: Told) -> bool:
        """Have `work` run soon, on the loop. False if the loop is over. Any thread, and signal handlers."""
        self.come_home()
        return self._home is not None and not self._home.ends and self._home.loop.call(work)

    def send(
        self, request: Request, number: int, timeout: float, left: Told, done: Done, may: Optional[May] = None
    ) -> Outgoing:
        """Send one request, within `timeout` seconds. Never blocks: `left()` and `done(result)` are called later.

        `may()` is asked just before its first byte leaves.
        """
        out = Outgoing(number, timeout)
        self.come_home()
        home = self._home
        if home is None or home.ends:
            done(not_sent(number, "the event loop is closed"))
            return out
        home.unanswered[out] = done

        async def work() -> None:
            result = self._unsent(out)
            try:
                if not out.abandoned and not self.closed:
                    errand = out.begin(Errand(request.method, request.path, left, may, in_task=True))
                    result = await self._send(request, out, errand, timeout)
            except BaseException:  # the loop ends its tasks: there is nobody left to send
                self._leave(home, out)
                raise
            home.running -= 1
            self._next(home)
            self._answer(home, out, result)

        def start() -> None:
            home.waiting.append((out, work))
            self._next(home)

        if not home.loop.call(start):
            self._answer(home, out, not_sent(number, "the event loop is closed"))
        return out

    def _answer(self, home: _Home, out: Outgoing, result: Result) -> None:
        done = home.unanswered.pop(out, None)
        if done is not None:
            done(result)

    def _next(self, home: _Home) -> None:
        # Only ever on its loop.
        while home.waiting and home.running < LIMIT:
            out, work = home.waiting.popleft()
            home.running += 1
            home.loop.begin(work, partial(self._leave, home, out))

    def _leave(self, home: _Home, out: Outgoing) -> None:
        """The loop ends its tasks. What is to be sent when those hear of it who wait for one is not sent from there."""
        home.running -= 1
        home.ends = True
        before, self._leaving = self._leaving, home.loop
        try:
            self._answer(home, out, out.cut_off("the event loop is closing"))
            while home.waiting:
                each, _ = home.waiting.popleft()
                self._answer(home, each, each.cut_off("the event loop is closing"))
        finally:
            self._leaving = before

    async def _send(self, request: Request, out: Outgoing, errand: Errand, timeout: float) -> Result:
        self._begin(errand)
        try:
            with anyio.move_on_after(max(out.due - time.monotonic(), 0.0)):
                try:
                    made, options = self._cast(request, timeout) or await self._build(request, timeout)
                    await concurrent.close_ended(self._http)
                    return errand.result(out.number, await run_concurrent(errand, self._http.send, (made,), options))
                except Exception as error:
                    return errand.result(out.number, error=error)
            errand.cancelled = True  # its time was up
            return errand.result(out.number)
        finally:
            self._end(errand)
            if self._ended is not None and not self._under_way:
                self._ended.set()

    async def _build(self, request: Request, timeout: float) -> tuple[Any, dict[str, Any]]:
        build, args, kwargs = self._arguments(request)
        try:
            await build(*args, **kwargs)
        except Captured as captured:
            return self._take(request, captured, timeout)
        raise AssertionError("the SDK did not send what it has built")

    def _close_soon(self) -> None:
        if self._home is not None:
            self._home.loop.spawn(self._close_idle)

    async def _close_idle(self) -> None:
        if not self._under_way:
            await concurrent.reset_client(self._http)

    async def aclose(self) -> None:
        """Close the channel's connections. What is under way ends; nothing more can be sent. Idempotent."""
        if not self.closed:
            self._stop()
            if self._under_way and self._home is not None and self._home.loop.is_same(Loop.current()):
                self._ended = anyio.Event()
                with anyio.move_on_after(CLOSING):
                    await self._ended.wait()
            await concurrent.close_pools(self._http)
