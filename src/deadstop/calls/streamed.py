"""Streamed inside: the exchange that asks for a stream and answers with the JSON that was asked for.

A disconnect stops a streamed generation on nearly every server, and one that is not streamed on hardly any
(measured; see docs/decisions). So inside a run scope a `create()` without `stream` is sent with it, below the SDK,
and the events are put together again: what is above sees an ordinary JSON response.

The flow is a generator that says what to do; one pump for threads and one for tasks do it.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional

from deadstop.calls.call import Call, Interruption
from deadstop.calls.drain import Drain, in_thread
from deadstop.calls.loops import Loop
from deadstop.calls.reassemble import REFUSE, Plan, Refusal, Truncated, is_answer, is_error, is_signed, plan, refusal
from deadstop.calls.reassemble.sse import is_of_events
from deadstop.calls.turns import Overdue
from deadstop.core.model import Phase, Streamed

__all__ = ["exchange_blocking", "exchange_concurrent"]

LINGER = 0.1
"""How long (seconds) to wait for the end of the body after the last event, so that the connection can be reused."""

DOUBTS = 2
"""How many answers in a row that are none, and that ended by themselves, are a reason to ask once without a stream."""


@dataclass(frozen=True)
class _Send:
    request: Any


@dataclass(frozen=True)
class _Read:
    response: Any


@dataclass(frozen=True)
class _Close:
    response: Any


_Flow = Generator[Any, Any, Any]


def exchange_blocking(call: Call, request: Any, send: Callable[[Any], Any]) -> Any:
    """The response to `request`, streamed inside where that applies. Blocks the thread."""
    planned = _plan(call, request)
    if planned is None:
        return send(request)
    flow = _flow(call, request, planned)
    return _pump_blocking(call, flow, next(flow), {}, send)


def _pump_blocking(call: Call, flow: _Flow, step: Any, bodies: dict[int, Any], send: Callable[[Any], Any]) -> Any:
    result: Any = None
    try:
        while True:
            handed = _to_drain(call, step)
            if handed is not None:
                if in_thread(partial(_drain_blocking, call, flow, step, bodies, send, handed)):
                    raise Interruption(call)
                handed.fail()  # the next read ends the flow
            try:
                if isinstance(step, _Send):
                    result = send(step.request)
                elif isinstance(step, _Read):
                    body = bodies.setdefault(id(step.response), step.response.iter_bytes())
                    result = next(body, None)
                else:
                    result = step.response.close()
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as end:
        return end.value


def _to_drain(call: Call, step: Any) -> Optional[Drain]:
    """The drain, if the rest is to be read elsewhere: the call is cancelled, and its caller has no part in it."""
    drain = call.drain
    return drain if drain is not None and isinstance(step, _Read) and call.cancelled and drain.claim() else None


def _drain_blocking(
    call: Call, flow: _Flow, step: Any, bodies: dict[int, Any], send: Callable[[Any], Any], drain: Drain
) -> None:
    with contextlib.suppress(BaseException):  # however it ends: this thread has nobody to tell
        _pump_blocking(call, flow, step, bodies, send)
    drain.finish()


async def _drain_concurrent(
    call: Call, flow: _Flow, step: Any, bodies: dict[int, Any], send: Callable[[Any], Awaitable[Any]], drain: Drain
) -> None:
    try:
        with contextlib.suppress(Interruption, Exception):  # however it ends: this task has nobody to tell
            await _pump_concurrent(call, flow, step, bodies, send)
    finally:
        drain.finish()


async def exchange_concurrent(call: Call, request: Any, send: Callable[[Any], Awaitable[Any]]) -> Any:
    """The response to `request`, streamed inside where that applies. Suspends the task."""
    planned = _plan(call, request)
    if planned is None:
        return await send(request)
    flow = _flow(call, request, planned)
    return await _pump_concurrent(call, flow, next(flow), {}, send)


async def _pump_concurrent(
    call: Call,
    flow: _Flow,
    step: Any,
    bodies: dict[int, Any],
    send: Callable[[Any], Awaitable[Any]],
) -> Any:
    result: Any = None
    try:
        while True:
            handed = _to_drain(call, step)
            if handed is not None:
                Loop.current().start(partial(_drain_concurrent, call, flow, step, bodies, send, handed))
                raise Interruption(call)
            try:
                if isinstance(step, _Send):
                    result = await send(step.request)
                elif isinstance(step, _Read):
                    body = bodies.setdefault(id(step.response), step.response.aiter_bytes())
                    try:
                        result = await body.__anext__()
                    except StopAsyncIteration:
                        result = None
                else:
                    result = await step.response.aclose()
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(result)
    except StopIteration as end:
        return end.value


def _plan(call: Call, request: Any) -> Optional[Plan]:
    if not call.streamed_inside:
        return None
    if isinstance(request.stream, _package(request).ByteStream):
        request.read()  # a redirected request has its body as such a stream only
    body = getattr(request, "_content", None)
    if not isinstance(body, bytes):  # a body that can be sent only once
        return None
    if is_signed(request.headers):  # another body would be refused
        return None
    return plan(request.method, request.url.path, request.headers.get("content-type", ""), body)


def _flow(call: Call, request: Any, planned: Plan) -> _Flow:
    key = (str(request.url.copy_with(query=None, fragment=None)), planned.model)
    options = call.memory.get((key, "stream_options"), True)
    if not call.memory.get((key, "stream"), True):
        call.streamed = Streamed.REFUSED
        return (yield _Send(request))
    doubt = (key, "doubt")
    tries: list[Optional[Plan]] = [planned] if options else []
    bare = plan(
        request.method,
        request.url.path,
        request.headers.get("content-type", ""),
        request.content,
        stream_options=False,
    )
    if bare is not None and (not options or bare.body != planned.body):
        tries.append(bare)
    tries.append(None)
    if call.memory.get(doubt, _NONE)[0] >= DOUBTS:
        call.memory.pop(doubt, None)
        tries = [None]
    # A read timeout bounds the silence of a server that answers at once, at the end. Kept as it is, each event
    # would renew it; so it bounds the whole answer instead, and fails when the plain call would have.
    call.answer_within = (request.extensions.get("timeout") or {}).get("read")
    try:
        while tries:
            one = tries.pop(0)
            call.check()
            if call.status is not None:  # of the one that was refused
                _begin_another(call)
            if one is None:
                call.streamed = Streamed.REFUSED
                call.answer_within = call.read_deadline = None
                response = yield _Send(request)
                if response.status_code < 400 and "json" in response.headers.get("content-type", "").lower():
                    call.memory[(key, "stream")] = False
                return response
            call.streamed = Streamed.INSIDE
            response = yield _Send(_with_body(request, one.body))
            status, is_stream = response.status_code, _is_stream(response)
            if status >= 300 and not (status in REFUSE or (status >= 400 and is_stream)):
                return response
            if status >= 400:
                text = yield from _read_all(response)
                refused = refusal(status, text)
                if refused is Refusal.NOTHING:
                    return _error(response, one, text) if is_stream else _answer(response, text)
                if refused is Refusal.STREAM:
                    tries = [None]
                continue
            if options and one is bare:
                call.memory[(key, "stream_options")] = False
            begun: list[bytes] = []
            if not is_stream:
                chunk: Optional[bytes] = b""
                while chunk is not None and is_of_events(b"".join(begun)) is None:
                    chunk = yield _Read(response)
                    begun.append(chunk or b"")
                    if chunk is not None and not chunk.strip():  # empty lines: it is kept alive, as plainly
                        call.answer_within = call.read_deadline = None
                if not is_of_events(b"".join(begun), whole=True):
                    call.answer_within = call.read_deadline = None
                    body = b"".join(begun) + (yield from _read_all(response))
                    if is_answer(body):
                        call.streamed = Streamed.REFUSED
                        call.memory[(key, "stream")] = False
                    elif not is_error(body):  # which says nothing of the answers that it will have
                        _note_doubt(call, doubt)
                    return _answer(response, body)
            return (yield from _assemble(call, response, one, begun, doubt))
    except Overdue:
        raise _package(request).ReadTimeout("timed out", request=request) from None
    finally:
        call.answer_within = None
    raise AssertionError("the last try always returns")


_NONE = (0, 0.0)


def _note_doubt(call: Call, doubt: Any) -> None:
    """An answer was none. Those that were asked for at a time, of which a gateway's bad moment breaks all, are one."""
    count, at = call.memory.get(doubt, _NONE)
    if call.attempt["started"] >= at:
        call.memory[doubt] = (count + 1, time.monotonic())


def _begin_another(call: Call) -> None:
    """Another request of the same exchange is an attempt of its own, and may have to wait for a connection again."""
    call.attempt = {"number": call.attempt["number"] + 1, "started": time.monotonic()}
    call.status = call.connection = None
    call.phase = Phase.WAITING_FOR_POOL


def _assemble(call: Call, response: Any, planned: Plan, begun: list[bytes], doubt: Any) -> _Flow:
    assembler = planned.assembler()
    complete = ended = dropped = False
    try:
        while not complete:
            try:
                chunk = begun.pop(0) if begun else (yield _Read(response))
            except (Exception, Overdue):
                if not assembler.is_whole():
                    raise
                call.completed = True
                break  # what is lost is the end mark
            if chunk is None:
                ended = True
                break
            complete = assembler.feed(chunk)
            if assembler.kept_alive:  # as it would with empty lines, were it asked plainly
                call.answer_within = call.read_deadline = None
        if complete:
            # What is left is the end of the body. Read, the connection can be used again; it is not worth a wait.
            call.completed = True
            call.read_deadline = time.monotonic() + LINGER
            # A late end or a broken one: the answer is complete all the same.
            with contextlib.suppress(Exception, Overdue):
                while (yield _Read(response)) is not None:
                    pass
    except GeneratorExit:  # whoever drove this was broken off between two steps; the answer is closed with its call
        dropped = True
        raise
    finally:
        call.read_deadline = None
        call.usage = assembler.usage() or call.usage
        if not dropped:
            yield _Close(response)
    call.check()
    try:
        assembled = assembler.finish()
    except Truncated as error:
        if complete or ended:  # the connection is not to blame
            _note_doubt(call, doubt)
        raise _package(response).RemoteProtocolError(str(error)) from error
    call.memory.pop(doubt, None)
    answer = _answer(response, assembled.body, status=assembled.status, content_type="application/json")
    answer.stream = _kept(call, answer.stream)
    return answer


_kept_streams: dict[type, type] = {}


def _kept(call: Call, stream: Any) -> Any:
    """The bytes of an answer that was put together. Its call is over when they were read, or closed by a cancel (I4).

    `with_streaming_response` hands the answer out unread: if its call were over, it could be read after the cancel.
    """
    cls = type(stream)
    kept = _kept_streams.get(cls)
    if kept is None:
        kept = _kept_streams[cls] = type("KeptStream", (_Kept, cls), {})
    stream.__class__, stream.call = kept, call
    call.body_closed, call.closer = False, stream.close_idle
    return stream


class _Kept:
    call: Call

    def close(self) -> None:
        call = self.call
        call.body_closed, call.closer = True, None
        if call.handed_over:
            call.leave()

    async def aclose(self) -> None:
        self.close()

    def close_idle(self) -> bool:
        self.close()
        return True


def _is_stream(response: Any) -> bool:
    return bool(response.headers.get("content-type", "").lower().startswith("text/event-stream"))


def _error(response: Any, planned: Plan, text: bytes) -> Any:
    """An error whose body came as an event, which the SDK does not look into where no stream was asked for."""
    assembler = planned.assembler()
    assembler.feed(text)
    with contextlib.suppress(Truncated):
        assembled = assembler.finish()
        if assembled.status >= 400:
            return _answer(response, assembled.body, content_type="application/json")
    return _answer(response, text)


def _read_all(response: Any) -> Generator[Any, Any, bytes]:
    parts = []
    while True:
        chunk = yield _Read(response)
        if chunk is None:
            break
        parts.append(chunk)
    yield _Close(response)
    return b"".join(parts)


def _with_body(request: Any, body: bytes) -> Any:
    length = str(len(body)).encode()
    headers = [(name, length if name.lower() == b"content-length" else value) for name, value in request.headers.raw]
    return type(request)(request.method, request.url, headers=headers, content=body, extensions=request.extensions)


def _answer(response: Any, body: bytes, *, status: Optional[int] = None, content_type: Optional[str] = None) -> Any:
    """A response like `response` with a body that was already read and decoded."""
    gone = {b"content-length", b"transfer-encoding", b"content-encoding"}
    if content_type is not None:
        gone.add(b"content-type")
    headers = [(name, value) for name, value in response.headers.raw if name.lower() not in gone]
    if content_type is not None:
        headers.append((b"Content-Type", content_type.encode()))
    headers.append((b"Content-Length", str(len(body)).encode()))
    return type(response)(
        response.status_code if status is None else status,
        headers=headers,
        stream=_package(response).ByteStream(body),
        extensions=response.extensions,
    )


def _package(thing: Any) -> Any:
    """httpx or httpx2, whichever `thing` comes from."""
    for cls in type(thing).__mro__:
        name = cls.__module__.partition(".")[0]
        if name in ("httpx", "httpx2"):
            return importlib.import_module(name)
    raise TypeError(f"{type(thing).__name__} is of neither httpx nor httpx2.")
