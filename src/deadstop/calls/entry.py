"""The one way in: `client.request`, through which every resource method of every SDK version passes.

The SDK's backoff is here too. Its sleep can't be interrupted from outside, but how long it sleeps is asked of
`_calculate_retry_timeout` in all versions: we wait there, interruptibly, and tell it to sleep no longer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable
from types import BuiltinFunctionType
from typing import Any, Callable, cast

import anyio

from deadstop.calls import concurrent
from deadstop.calls.call import Call, Interruption, active_call, current_call
from deadstop.calls.fence import hand_over
from deadstop.core.model import Phase

__all__ = ["retry_pause", "run_blocking", "run_concurrent"]


def run_blocking(call: Call, send: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run one call of the SDK, `send(*args, **kwargs)`, in this thread.

    Raises `RunCancelledError` if it is cancelled before it is done.
    """
    given = False
    try:
        token = current_call.set(call)
        try:
            if call.opaque:  # nobody will tell when it sends, and nothing in it can be interrupted
                call.begin_exchange(opaque=True)
            if call.cancelled:
                raise Interruption(call)
            result = send(*args, **kwargs)
        finally:
            current_call.reset(token)
        given = True
        return _give(call, result)
    except BaseException as error:
        if call.closer is not None or call.drain is not None:
            call.close_idle()  # a response that nobody will ever get
        call.leave()
        if call.cancelled and not given and isinstance(error, (Interruption, Exception)):
            raise call.run.error(call) from (error if isinstance(error, Exception) else None)
        raise


async def run_concurrent(call: Call, send: Callable[..., Awaitable[Any]], args: Any, kwargs: Any) -> Any:
    """Run one call of the SDK, `send(*args, **kwargs)`, in this task.

    Raises `RunCancelledError` if it is cancelled before it is done.
    """
    token = result = None
    try:
        token = current_call.set(call)
        if call.opaque and not call.cancelled:  # as for threads
            call.begin_exchange(opaque=True)
        with concurrent.interruptible(call):
            result = await send(*args, **kwargs)
    except BaseException as error:
        try:
            if result is not None:  # the cancel came between the answer and its delivery
                await _close(result)
        finally:
            if call.closer is not None or call.drain is not None:
                call.close_idle()  # a response that nobody will ever get
            call.leave()
        if call.cancelled and isinstance(error, (Interruption, Exception)):
            raise call.run.error(call) from (error if isinstance(error, Exception) else None)
        raise
    finally:
        try:  # noqa: SIM105  (three functions more, for each call)
            current_call.reset(token)  # type: ignore[arg-type]
        except (ValueError, TypeError):  # the collector ends a task whose loop was closed, in another context
            pass
    try:
        return _give(call, result)
    except BaseException:
        if call.closer is not None:
            call.close_idle()
        call.leave()
        raise


def _give(call: Call, result: Any) -> Any:
    if call.tracker is not None:
        call.tracker.see(result)
    try:
        return hand_over(call, result)
    finally:
        if call.cancelled:
            # Whoever cancelled may have looked for an open response before there was one to find.
            call.close_idle()


async def _close(result: Any) -> None:
    close = getattr(result, "close", None) or getattr(result, "aclose", None)
    if close is not None:
        # That it can't be closed so is not what the caller is to hear: it is closed by its call, too.
        with contextlib.suppress(Exception), anyio.move_on_after(1, shield=True):
            closing = close()
            if hasattr(closing, "__await__"):
                await closing


def retry_pause(seconds: float) -> float:
    """Wait before the SDK retries, as long as it would, and give what is left for it to sleep: nothing.

    Outside of a call, or in a task (whose sleep can be cancelled), the wait stays the SDK's.
    """
    call = active_call()
    if call is not None:
        call.completed = False  # the answer that was read whole was a refusal: the call is not done
        if call.attempt:
            call.attempt.setdefault("ended", time.monotonic())
        call.check()  # where no transport does: it must not send again
    if call is None or not isinstance(time.sleep, BuiltinFunctionType):  # somebody else's sleep: theirs to end
        return seconds
    if call.scope_waker is not None:
        call.phase = Phase.BACKING_OFF
        return seconds
    call.sleep(seconds)
    return cast(float, _Slept(seconds))


class _Slept:
    """A wait that is over: the SDK's log prints its length, and `time.sleep` finds nothing left of it.

    `%f` asks an object for its float, `time.sleep` asks one that is no float for its index. To a subclass of the
    client that reckons with it, it is the number of seconds.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = float(seconds)

    def __float__(self) -> float:
        return self._seconds

    def __index__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return repr(self._seconds)

    def __hash__(self) -> int:
        return hash(self._seconds)


def _of_the_number(name: str) -> Any:
    def method(self: _Slept, *others: Any) -> Any:
        return getattr(float(self), name)(*(float(each) if isinstance(each, _Slept) else each for each in others))

    return method


_REVERSIBLE = ("add", "sub", "mul", "truediv", "floordiv")
_OTHERS = ("eq", "ne", "lt", "le", "gt", "ge", "round", "int", "bool", "neg", "abs", "format")
for _name in (*_REVERSIBLE, *(f"r{each}" for each in _REVERSIBLE), *_OTHERS):
    setattr(_Slept, f"__{_name}__", _of_the_number(f"__{_name}__"))
