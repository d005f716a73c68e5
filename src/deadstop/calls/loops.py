"""Reaching an event loop from any thread: asyncio and trio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
import threading
import types
from collections.abc import Coroutine, Generator
from typing import Any, Callable, Optional

import anyio

__all__ = ["Loop", "asked_of", "miscounted", "stands_in", "who_runs"]

log = logging.getLogger("deadstop")


class Loop:
    """The event loop a task runs on, reachable from outside of it."""

    __slots__ = ("_call_soon", "_key", "_scope", "_spawn")

    def __init__(
        self,
        key: Any,
        call_soon: Callable[[Callable[[], Any]], Any],
        spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], Any],
    ) -> None:
        self._key = key
        self._call_soon = call_soon
        self._spawn = spawn
        self._scope: Any = None

    @classmethod
    def current(cls, last: Optional[Loop] = None) -> Loop:
        """The loop of the current task. Call it from inside a task. `last`: the one of before, which it may be."""
        loop = asyncio._get_running_loop()
        # Not asked of sniffio first: that takes as long as all the rest. (trio as a guest runs in no task of asyncio.)
        in_task = loop is not None and asyncio.current_task(loop) is not None
        if in_task and last is not None and last._key is loop:
            return last
        if not in_task and _library() == "trio":
            import trio

            token = trio.lowlevel.current_trio_token()
            if last is not None and last._key is token:
                return last
            # What escapes from either ends the whole run, as an error of trio's own.
            return cls(
                token,
                lambda function: token.run_sync_soon(_guarded, function),
                lambda work: trio.lowlevel.spawn_system_task(_apart, work, name="deadstop clean-up"),
            )
        loop = loop or asyncio.get_running_loop()
        return cls(loop, loop.call_soon_threadsafe, lambda work: _keep(loop.create_task(work())))

    def scope(self, shield: bool = False) -> anyio.CancelScope:
        """A new cancel scope, for a task of the loop."""
        if self._scope is None:
            # Which library this is `anyio.CancelScope` asks each time, and that takes as long as all the rest.
            self._scope = type(anyio.CancelScope())
        return self._scope(shield=shield)  # type: ignore[no-any-return]

    def scope_of_task(self) -> tuple[anyio.CancelScope, Optional[asyncio.Task[Any]], int]:
        """`scope()`, `task()` and `asked_of` that at once: every request asks."""
        scope: Any = self._scope
        key = self._key
        task: Any = asyncio.current_task(key) if isinstance(key, asyncio.AbstractEventLoop) else None
        asked = task.cancelling() if _COUNTED and task is not None else 0
        return self.scope() if scope is None else scope(), task, asked

    def call(self, function: Callable[[], Any]) -> bool:
        """Run `function` on the loop soon. False if the loop is gone. From any thread and from a signal handler.

        Through the loop's thread-safe queue, also when this is the loop's thread: a signal handler runs on top of a
        loop that may be asleep in its poll, and only that queue wakes it. But a loop that is in the middle of a
        task's step, here in this thread, has its next turn to come, signal handler or not.
        """
        try:
            running = asyncio._get_running_loop()
            if running is not None and running is self._key and asyncio.current_task(running) is not None:
                running.call_soon(function)
                return True
            self._call_soon(function)
        except RuntimeError:  # the loop is closed (asyncio) or its run is over (trio)
            return False
        return True

    def task(self) -> Optional[asyncio.Task[Any]]:
        """The current task of the loop, for its own thread to ask; None where there are none of asyncio's."""
        return asyncio.current_task(self._key) if isinstance(self._key, asyncio.AbstractEventLoop) else None

    def apart(self, function: Callable[[], Any], task: Optional[asyncio.Task[Any]]) -> None:
        """Run `function` now as if the loop did, in its own thread, and not `task`, which is the current one, if any.

        anyio (4.12) writes down which task cancels, and to print a task takes longer than all the rest.
        """
        if task is None:
            function()
            return
        try:
            asyncio.tasks._leave_task(self._key, task)
            function()
        finally:
            # A signal handler may have raised before the task was left, or just after.
            if asyncio.current_task(self._key) is None:
                asyncio.tasks._enter_task(self._key, task)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Start `work` as a task of its own on the loop. False if the loop is gone."""
        return self.call(lambda: self.begin(work))

    def begin(
        self, work: Callable[[], Coroutine[Any, Any, None]], unbegun: Optional[Callable[[], object]] = None
    ) -> None:
        """As `spawn`, from the loop's own thread. A loop that is about to end may end the task before its first step,
        or take no more of them: then `unbegun()` is called."""
        if unbegun is None:
            with contextlib.suppress(RuntimeError):
                self.start(work)
            return
        begun: list[bool] = []

        async def noted() -> None:
            begun.append(True)
            await work()

        try:
            task = self.start(noted)
        except RuntimeError:
            unbegun()
            return
        if isinstance(task, asyncio.Task):  # trio gives each its first step
            task.add_done_callback(lambda _: begun or unbegun())

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Any:
        """As `spawn`, from a task of the loop, for the task. Raises RuntimeError if the loop takes no more of them."""
        return self._spawn(work)

    def future(self) -> Optional[asyncio.Future[None]]:
        """A future of the loop, to be awaited from a task of it; None where there are none (trio)."""
        key = self._key
        return key.create_future() if isinstance(key, asyncio.AbstractEventLoop) else None

    async def give_way(self) -> None:
        """Let other tasks of the loop, which is the current task's, go on."""
        if isinstance(self._key, asyncio.AbstractEventLoop):
            await _turn()
        else:
            import trio

            await trio.lowlevel.checkpoint()

    def turns(self) -> bool:
        """Whether the loop is running."""
        if isinstance(self._key, asyncio.AbstractEventLoop):
            return self._key.is_running()
        return self.call(_nothing)

    def is_over(self) -> bool:
        """Whether it will never run again."""
        if isinstance(self._key, asyncio.AbstractEventLoop):
            return self._key.is_closed()
        return not self.turns()

    def is_same(self, other: Loop) -> bool:
        """Whether both are the same loop."""
        return self._key is other._key


@types.coroutine
def _turn() -> Generator[None, None, None]:
    """As `asyncio.sleep(0)`."""
    yield


def who_runs(in_task: bool = True) -> tuple[int, int]:
    """Who runs this: the thread, and the task that it is in, if any.

    `in_task`: it may be one of trio's. To ask takes as long as all the rest, where httpcore has only imported it.
    """
    loop = asyncio._get_running_loop()
    task: Any = None if loop is None else asyncio.current_task(loop)
    trio: Any = getattr(sys.modules.get("trio"), "lowlevel", None) if task is None and in_task else None
    if trio is not None:
        inside = getattr(trio, "in_trio_task", None)  # from trio 0.23 on
        try:  # noqa: SIM105  (each scope comes by here twice)
            task = trio.current_task() if inside is None or inside() else None
        except RuntimeError:  # in none
            pass
    return threading.get_ident(), id(task)


def stands_in(thread: int, function: Any) -> bool:
    """Whether that thread is in the midst of `function`, a Python function or method."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def asked_of(task: Any) -> int:
    """How many cancellations that stand a task of asyncio's was asked for. 0 where Python counts none (3.10)."""
    return task.cancelling() if _COUNTED and task is not None else 0


_COUNTED = hasattr(asyncio.Task, "cancelling")


@functools.cache
def miscounted() -> bool:
    """Whether anyio leaves some of its own among them (4.2 and 4.3 do)."""
    from importlib import metadata

    try:
        return metadata.version("anyio").startswith(("4.2.", "4.3."))
    except metadata.PackageNotFoundError:
        return True


_kept: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references to tasks


def _keep(task: asyncio.Task[None]) -> asyncio.Task[None]:
    _kept.add(task)
    task.add_done_callback(_kept.discard)
    return task


def _guarded(function: Callable[[], Any]) -> None:
    try:
        function()
    except Exception:
        log.exception("What deadstop does on the event loop failed unexpectedly.")


async def _apart(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await work()
    except Exception:
        log.exception("A task of deadstop's own failed unexpectedly.")


def _nothing() -> None:
    pass


def _library() -> str:
    if "trio" not in sys.modules:
        return "asyncio"
    try:
        import sniffio
    except ImportError:
        return "asyncio"
    try:
        return sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return "asyncio"
