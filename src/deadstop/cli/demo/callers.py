"""Who makes the calls: a thread or a task, watched by the one who cancels."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from typing import Any, Callable, Optional

from deadstop.calls.call import Call
from deadstop.cli.demo.cases import Case, Moment
from deadstop.cli.demo.shapes import SHAPES, Ask
from deadstop.core.model import CancelReceipt
from deadstop.errors import RunCancellationTimeoutError

__all__ = ["DEADLINE", "Caller", "Loop", "wait_until"]

DEADLINE = 0.4
"""The `timeout` (seconds) of a scope that is cancelled by its deadline."""

HOLD = 5
"""After how many events a caller stops to be cancelled between two of them."""


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 15.0) -> None:
    """Wait for a condition that nobody can announce. Raises TimeoutError."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"In {timeout:g} s this did not come true: {what}.")
        time.sleep(0.002)


class Loop:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="demo tasks", daemon=True)
        self._thread.start()

    def start(self, coroutine: Any) -> Future[Any]:
        """Run a coroutine as a task."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()


class Caller:
    """One call in the making. Times are `time.monotonic()` seconds."""

    def __init__(self, case: Case, client: Any, name: str, ask: Ask, loop: Optional[Loop] = None) -> None:
        self.case = case
        self.run: Any = None
        self.seen = 0
        self.late = 0  # delivered after the cancel had returned
        self.error: Optional[BaseException] = None
        self.freed_at: Optional[float] = None
        self.asked_at: Optional[float] = None
        self.returned_at: Optional[float] = None
        self.receipt: Optional[CancelReceipt] = None
        self.holding = threading.Event()
        self.done = threading.Event()
        self._go_on = threading.Event()
        self._client, self._name, self._ask, self._loop = client, name, ask, loop

    def start(self) -> None:
        """Begin."""
        if self._loop is None:
            threading.Thread(target=self._be_thread, daemon=True).start()
        else:
            self._loop.start(self._be_task())

    @property
    def call(self) -> Optional[Call]:
        """The call in flight, once there is one."""
        if self.run is None and self.case.inside is None:
            self.run = next(iter(self._client.runs.list()), None)  # this case has the client to itself
        calls: dict[int, Call] = {} if self.run is None else self.run.calls
        return next(iter(list(calls.values())), None)

    def cancel(self, timeout: float) -> None:
        """Cancel it from this thread, or from another task of its loop."""
        if self.case.moment is Moment.BUFFERED:
            self.go_on()
            wait_until(lambda: self.returned_at is not None, "the caller has cancelled itself")
        elif self.case.moment is Moment.DEADLINE:
            wait_until(lambda: self.run.receipt is not None, "the deadline has passed")
            self.asked_at, self.receipt = self.run.opened + DEADLINE, self.run.receipt
            self.returned_at = time.monotonic()
        elif self._loop is None:
            self._cancel(timeout)
        else:
            self._loop.start(self._cancel_in_task(timeout)).result(timeout + 10.0)

    def go_on(self) -> None:
        """Let the caller ask for the next event."""
        self._go_on.set()

    # The cancel

    def _cancel(self, timeout: float) -> None:
        self.asked_at = time.monotonic()
        try:
            self.receipt = self.run.cancel(reason="demo", timeout=timeout)
        except RunCancellationTimeoutError as error:
            self.receipt = error.receipt
        self.returned_at = time.monotonic()

    async def _cancel_in_task(self, timeout: float) -> None:
        self.asked_at = time.monotonic()
        try:
            self.receipt = await self.run.cancel(reason="demo", timeout=timeout)
        except RunCancellationTimeoutError as error:
            self.receipt = error.receipt
        self.returned_at = time.monotonic()

    # The call

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"streamed_inside": self.case.inside}
        return {**options, "timeout": DEADLINE} if self.case.moment is Moment.DEADLINE else options

    def _stops_now(self) -> bool:
        """Whether the caller, that has just been given something, is to be cancelled here."""
        self.seen += 1
        self.late += self.returned_at is not None
        return self.case.moment in (Moment.BETWEEN, Moment.BUFFERED) and self.seen == HOLD

    def _be_thread(self) -> None:
        try:
            if self.case.inside is None:
                self._iterate()
            else:
                with self._client.runs.open(self._name, **self._options()) as self.run:
                    if self.case.moment is Moment.BEFORE_START:
                        self.holding.set()
                        self._go_on.wait(30.0)
                    self._iterate()
        except BaseException as error:
            self.error = error
        self.freed_at = time.monotonic()
        self.done.set()

    def _iterate(self) -> None:
        for _ in SHAPES[self.case.shape].sync(self._client, self._ask):
            if self._stops_now():
                self.holding.set()
                self._go_on.wait(30.0)
                if self.case.moment is Moment.BUFFERED:
                    self._cancel(5.0)

    async def _be_task(self) -> None:
        try:
            if self.case.inside is None:
                await self._iterate_task()
            else:
                async with self._client.runs.open(self._name, **self._options()) as self.run:
                    if self.case.moment is Moment.BEFORE_START:
                        await self._hold_task()
                    await self._iterate_task()
        except BaseException as error:
            self.error = error
        self.freed_at = time.monotonic()
        self.done.set()

    async def _iterate_task(self) -> None:
        async for _ in SHAPES[self.case.shape].task(self._client, self._ask):
            if self._stops_now():
                await self._hold_task()

    async def _hold_task(self) -> None:
        self.holding.set()
        while not self._go_on.is_set():  # noqa: ASYNC110 - it is set from another thread
            await asyncio.sleep(0.001)
