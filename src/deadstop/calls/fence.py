"""The fence: after the cancel nothing passes. No chunk, no line, no value.

A read from the network may bring forty events, and the SDK hands them out one by one. So the flag is looked at for
each of them, last of all before it is handed out: between that look and the caller's next line there is no point at
which a thread of CPython 3.12 or later can lose its turn.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from functools import lru_cache
from types import GeneratorType
from typing import Any, Optional

import anyio

from deadstop.calls.call import Call, Interruption
from deadstop.calls.drain import Drain, in_thread
from deadstop.calls.facts import characters_in
from deadstop.calls.loops import Loop
from deadstop.calls.pool import recast
from deadstop.calls.twins import CALL_OF, bare, twin_of

__all__ = ["Fenced", "FencedAsync", "call_of", "fence_helper", "hand_over"]


class Fenced:
    """An iterator that ends with the call's error once the call is cancelled.

    `counted`: its items are the events that the caller is given, and are counted as delivered.
    """

    __slots__ = ("_call", "_counted", "_inner", "_next", "inside", "owner")

    def __init__(self, call: Call, inner: Any, *, counted: bool = False) -> None:
        self._call = call
        self._counted = counted
        self._inner = inner
        self._next = inner.__next__
        self.inside = False
        self.owner: Any = None

    def __iter__(self) -> Fenced:
        return self

    def __next__(self) -> Any:
        call = self._call
        self.inside = True  # first, then the look: whoever drains does it the other way round
        if call.cancelled:
            self.inside = False
            raise self._stopped()
        try:
            item = self._next()
        except (Interruption, Exception) as error:
            self.inside = False
            if call.cancelled:
                raise call.stopped() from _reason(error)
            raise
        except BaseException:
            self.inside = False
            raise
        self.inside = False
        characters = 0
        if self._counted:
            characters = characters_in(item)
            call.chunks += 1
            call.characters += characters
            call.last = item
        if self._call.cancelled:
            if self._counted:  # not delivered after all
                call.chunks -= 1
                call.characters -= characters
            raise self._stopped()
        return item

    def _stopped(self) -> BaseException:
        error = self._call.stopped()
        # Who keeps the error keeps the SDK's generator, whose end, should that be the process's own, can crash Python.
        if type(self._inner) is GeneratorType and not self._call.drains:
            with contextlib.suppress(ValueError):  # another thread is in it
                self._inner.close()
        return error

    def read_on(self, drain: Drain) -> None:
        if not in_thread(lambda: self._drain(drain)):
            drain.end()

    def _drain(self, drain: Drain) -> None:
        call = self._call
        try:
            while not drain.over:
                call.last = self._next()
        except StopIteration:
            call.completed = True
        except BaseException:  # however else it ends: this thread has nobody to tell
            pass
        finally:
            drain.finish()

    def close(self) -> None:
        """As a generator's: stop iterating. The response is closed by whoever owns it."""
        close = getattr(self._inner, "close", None)
        if close is not None:
            close()


class FencedAsync:
    """`Fenced` for tasks. A class and not an async generator, so that dropping it half-way is no leak."""

    __slots__ = ("_call", "_counted", "_inner", "_loop", "_next", "inside", "owner")

    def __init__(self, call: Call, inner: Any, *, counted: bool = False) -> None:
        self._call = call
        self._counted = counted
        self._inner = inner
        self._loop = (call.loop or Loop.current()) if counted else None  # a raw response may be parsed in a thread
        self._next = inner.__anext__
        self.inside = False
        self.owner: Any = None

    def __aiter__(self) -> FencedAsync:
        return self

    async def __anext__(self) -> Any:
        call = self._call
        self.inside = True  # first, then the look: whoever drains does it the other way round
        if call.cancelled:
            self.inside = False
            raise await self._stopped()
        try:
            item = await self._next()
        except (Interruption, Exception) as error:
            self.inside = False
            if call.cancelled:
                raise call.stopped() from _reason(error)
            raise
        except BaseException:
            self.inside = False
            raise
        self.inside = False
        characters = 0
        if self._counted:
            characters = characters_in(item)
            call.chunks += 1
            call.characters += characters
            call.last = item
        if self._call.cancelled:
            if self._counted:  # not delivered after all
                call.chunks -= 1
                call.characters -= characters
            raise await self._stopped()
        return item

    async def _stopped(self) -> BaseException:
        # Event loops grumble about generators that are dropped half-way; the SDK's ends by closing the response.
        error = self._call.stopped()
        if not self._call.drains:
            with anyio.CancelScope(shield=True):
                await self.aclose()
        return error

    def read_on(self, drain: Drain) -> None:
        if self._loop is None or not self._loop.spawn(lambda: self._drain(drain)):
            drain.finish()  # the loop is over, and its sockets with it

    async def _drain(self, drain: Drain) -> None:
        call = self._call
        try:
            while not drain.over:
                call.last = await self._next()
        except StopAsyncIteration:
            call.completed = True
        except (Interruption, Exception):  # however else it ends: this task has nobody to tell
            pass
        finally:
            drain.fail()
            with anyio.move_on_after(1, shield=True):
                await self.aclose()
            drain.finish()

    async def aclose(self) -> None:
        """As an async generator's: stop iterating."""
        aclose = getattr(self._inner, "aclose", None)
        if aclose is not None:
            await aclose()


def fenced(call: Call, inner: Any, *, counted: bool = False) -> Any:
    """`inner`, an iterator of either world, fenced."""
    return (FencedAsync if hasattr(inner, "__anext__") else Fenced)(call, inner, counted=counted)


def _reason(error: BaseException) -> Optional[Exception]:
    return error if isinstance(error, Exception) else None


def hand_over(call: Call, result: Any) -> Any:
    """What the call's caller gets: a value if the call is not cancelled, a fenced stream, a fenced response.

    Raises the call's error when the cancel came first.
    """
    model = _is_model(type(result))  # type: ignore[arg-type]
    if not model and _is_stream(result):
        call.handed_over = True
        result = fence_stream(call, result)
        response = _own(result)["response"]
    else:
        response = None if model else _own(result).get("http_response", result)
        if not model and call.closer is not None and _own(response).get("is_closed", True):
            # Somebody below us has wrapped the stream into something of their own, and its body is still open.
            call.handed_over = call.shown = True
            for inner in _own(result).values():
                if _is_stream(inner):
                    fence_in_place(call, inner)
            return result
        if response is None or _own(response).get("is_closed", True):
            # The value is here. Say so first, then look at the flag: whoever cancels does it the other way round.
            call.finished = True
            call.leave()
            if call.cancelled:
                raise call.stopped()
            return result
        call.handed_over = True
        fence_response(call, response)
        if response is not result:
            setattr(result, CALL_OF, call)
            recast(result, _with_fenced_parse)
    if response.is_closed or call.body_closed:
        call.leave()
    return result


@lru_cache(maxsize=64)
def _is_model(kind: Any) -> bool:
    return hasattr(kind, "__pydantic_fields_set__") or hasattr(kind, "__fields_set__")  # as nearly all results


def _is_stream(result: Any) -> bool:
    own = _own(result)
    # The newest SDKs make the iterator when it is first asked for.
    return "response" in own and ("_iterator" in own or hasattr(type(result), "_iterator"))


def _own(thing: Any) -> dict[str, Any]:
    # Not `getattr`: a pydantic model is slow to say that it does not have an attribute.
    return getattr(thing, "__dict__", {})


def fence_stream(call: Call, stream: Any) -> Any:
    """Fence an SDK `Stream` or `AsyncStream`, and close it as soon as nobody holds it.

    The SDK's stream refers to itself through its own generator, so a stream left early stays open until the garbage
    collector comes by. The caller gets a twin that shares the stream's attributes and is in no cycle: when it goes,
    the connection goes.
    """
    stream, put = bare(stream)
    stream._iterator = fence = call.reader = fenced(call, stream._iterator, counted=True)
    setattr(stream, CALL_OF, call)
    twin = twin_of(stream)
    fence.owner = weakref.ref(twin, lambda _: None if call.shown else call.close_idle())
    return put(twin)


def fence_in_place(call: Call, stream: Any) -> None:
    """Fence an SDK stream that somebody else holds already."""
    stream._iterator = call.reader = fenced(call, stream._iterator, counted=True)
    setattr(stream, CALL_OF, call)


def call_of(thing: Any) -> Optional[Call]:
    """The call that an SDK stream or response belongs to, if it is one of ours."""
    for each in (thing, getattr(thing, "_raw_stream", None), getattr(thing, "http_response", None)):
        call = getattr(each, "__dict__", {}).get(CALL_OF)
        if isinstance(call, Call):
            return call
    return None


def fence_helper(helper: Any) -> None:
    """Fence what a stream helper of the SDK makes of one event (`chat.completions.stream()` and its kin)."""
    call = call_of(helper)
    inner = getattr(helper, "_iterator", None)
    if call is None or inner is None or isinstance(inner, (Fenced, FencedAsync)):
        return
    call.shown = False  # the helper takes the response out only to close it
    helper._iterator = fenced(call, inner)


def _with_fenced_parse(cls: Any) -> type:
    """A raw response whose `parse()` gives fenced streams."""

    class Parsing(cls):  # type: ignore[misc]
        def parse(self, *args: Any, **kwargs: Any) -> Any:
            parsed = super().parse(*args, **kwargs)
            return self._deadstop_wait(parsed) if inspect.isawaitable(parsed) else self._deadstop_fence(parsed)

        async def _deadstop_wait(self, parsed: Any) -> Any:
            return self._deadstop_fence(await parsed)

        def _deadstop_fence(self, parsed: Any) -> Any:
            call: Call = self._deadstop_call
            if _is_stream(parsed) and call_of(parsed) is None:
                twin = fence_stream(call, parsed)
                cache: dict[Any, Any] = getattr(self, "_parsed_by_type", {})
                for kind, kept in list(cache.items()):
                    if kept is parsed:  # the stream itself refers to itself: what is kept is to be free of that
                        cache[kind] = twin
                if _own(self).get("_parsed") is parsed:  # where openai 1.0 keeps it
                    self._parsed = twin
                parsed = twin
            return parsed

    return Parsing


def fence_response(call: Call, response: Any) -> None:
    """Fence an HTTP response that the caller reads by itself."""
    setattr(response, CALL_OF, call)
    recast(response, _fenced_response)


def _fenced_response(cls: Any) -> type:
    """An HTTP response (httpx and httpx2) that gives nothing after the cancel."""

    class Response(cls):  # type: ignore[misc]
        _deadstop_call: Call

        def iter_raw(self, *args: Any, **kwargs: Any) -> Any:
            return fenced(self._deadstop_call, super().iter_raw(*args, **kwargs))

        def iter_bytes(self, *args: Any, **kwargs: Any) -> Any:
            return fenced(self._deadstop_call, super().iter_bytes(*args, **kwargs))

        def iter_text(self, *args: Any, **kwargs: Any) -> Any:
            return fenced(self._deadstop_call, super().iter_text(*args, **kwargs))

        def iter_lines(self, *args: Any, **kwargs: Any) -> Any:
            return fenced(self._deadstop_call, super().iter_lines(*args, **kwargs))

        def read(self) -> bytes:
            call = self._deadstop_call
            try:
                content: bytes = super().read()
            except Interruption:
                raise call.stopped() from None
            if call.cancelled and not call.finished:
                raise call.stopped()
            call.finished = True
            return content

        def aiter_raw(self, *args: Any, **kwargs: Any) -> Any:
            return fenced(self._deadstop_call, super().aiter_raw(*args, **kwargs))

        def aiter_bytes(self, *args: Any, **kwargs: Any) -> Any:
            return fenced(self._deadstop_call, super().aiter_bytes(*args, **kwargs))

        def aiter_text(self, *args: Any, **kwargs: Any) -> Any:
            return fenced(self._deadstop_call, super().aiter_text(*args, **kwargs))

        def aiter_lines(self, *args: Any, **kwargs: Any) -> Any:
            return fenced(self._deadstop_call, super().aiter_lines(*args, **kwargs))

        async def aread(self) -> bytes:
            call = self._deadstop_call
            try:
                content: bytes = await super().aread()
            except Interruption:
                raise call.stopped() from None
            if call.cancelled and not call.finished:
                raise call.stopped()
            call.finished = True
            return content

    return Response
