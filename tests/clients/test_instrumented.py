"""Clients whose calls somebody else watches, too: what they put around a call or a stream is left in its place."""

from __future__ import annotations

import functools
import gc
import http.server
import json
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from worlds import CHAT, until

import deadstop
from deadstop import RunCancelledError
from deadstop.testing import FakeOpenAI, faults


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


class Proxy:
    """As wrapt's ObjectProxy: it passes for what it wraps, and counts the events that it hands on."""

    __slots__ = ("__weakref__", "__wrapped__", "events")

    def __init__(self, wrapped: Any) -> None:
        object.__setattr__(self, "__wrapped__", wrapped)
        object.__setattr__(self, "events", 0)

    __class__ = property(lambda self: self.__wrapped__.__class__)  # type: ignore[assignment]
    __dict__ = property(lambda self: self.__wrapped__.__dict__)  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Proxy.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self.__wrapped__, name, value)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        event = next(self.__wrapped__)
        self.events += 1
        return event

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        event = await self.__wrapped__.__anext__()
        self.events += 1
        return event


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What an instrumentor that patches `request` of the SDK's classes, as OpenInference's does, has put around."""
    made: list[Any] = []

    def around(result: Any) -> Any:
        parsed = getattr(result, "_parsed_by_type", None)
        if isinstance(result, (openai.Stream, openai.AsyncStream)):
            result = Proxy(Proxy(result))
            made.append(weakref.ref(result))
        elif parsed is not None:  # with_raw_response
            result.parse()
            for kind, stream in parsed.items():
                parsed[kind] = Proxy(stream)
                made.append(weakref.ref(parsed[kind]))
        return result

    def patch(cls: Any, is_async: bool) -> None:
        original = cls.request

        async def later(*args: Any, **kwargs: Any) -> Any:
            return around(await original(*args, **kwargs))

        def request(*args: Any, **kwargs: Any) -> Any:
            return later(*args, **kwargs) if is_async else around(original(*args, **kwargs))

        monkeypatch.setattr(cls, "request", functools.wraps(original)(later if is_async else request))

    patch(openai.OpenAI, False)
    patch(openai.AsyncOpenAI, True)
    return made


@pytest.mark.parametrize("raw", [False, True], ids=["stream", "raw"])
@pytest.mark.parametrize("attached", [False, True], ids=["ours", "attached"])
def test_a_stream_in_an_instrumentors_proxy(
    world: Any, server: FakeOpenAI, proxies: list[Any], attached: bool, raw: bool
) -> None:
    """The caller gets the proxy, which sees each event; the cancel ends it; left early, it closes the connection."""
    kind = (openai.AsyncOpenAI if world.is_async else openai.OpenAI) if attached else None
    client = world.client(server.base_url) if kind is None else kind(api_key="k", base_url=server.base_url)
    runs = deadstop.attach(client)
    if raw and not hasattr(openai, "_legacy_response"):
        pytest.skip("this SDK keeps what it has parsed elsewhere")

    def create() -> Any:
        if raw:
            return client.chat.completions.with_raw_response.create(**CHAT, stream=True)
        return client.chat.completions.create(**CHAT, stream=True)

    seen: list[Any] = []

    def some() -> Any:
        stream = create().parse() if raw else create()
        for event in stream:
            seen.append(event)
            if len(seen) == 3:
                assert stream.events == 3
            if stop_at == len(seen):
                return

    async def some_async() -> Any:
        made = await create()
        stream = made.parse() if raw else made
        async for event in stream:
            seen.append(event)
            if len(seen) == 3:
                assert stream.events == 3
            if stop_at == len(seen):
                return

    stop_at = 0
    pending = world.start(some_async if world.is_async else some)
    until(lambda: len(seen) > 3 or pending.done, "three events")
    (run,) = runs.list()
    receipt = world.run(run.cancel)
    assert (receipt.outcome, receipt.delivered.chunks) == ("cancelled", len(seen))
    assert isinstance(pending.failure(), RunCancelledError)

    gc.disable()
    try:
        server.reset()
        seen.clear()
        stop_at = 3
        world.start(some_async if world.is_async else some).result()
        assert proxies[-1]() is None
        server.wait_for(lambda requests: requests[-1].state == "disconnected")
    finally:
        gc.enable()
    until(lambda: runs.list() == [], "the end of the run")
    world.close(client)


@pytest.mark.parametrize("name", ["request", "copy", "with_options", "close", "_calculate_retry_timeout"])
def test_what_was_put_on_a_client_before_it_was_attached(world: Any, server: FakeOpenAI, name: str) -> None:
    """It is still called, once for each call; and the calls can be cancelled (`logfire.instrument_openai(client)`)."""
    client = (openai.AsyncOpenAI if world.is_async else openai.OpenAI)(api_key="k", base_url=server.base_url)
    original, calls = getattr(client, name), []

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        given = original(*args, **kwargs)
        return 0.001 if name == "_calculate_retry_timeout" else given

    setattr(client, name, watched)
    runs = deadstop.attach(client)
    twin = client.with_options(timeout=60) if name == "with_options" else client.copy()
    server.add(faults.Overloaded(), times=1)
    for one, tries in ((client, 2), (twin, 1)):
        pending = world.start(world.create, one)
        server.wait_for(lambda requests, tries=tries: len(requests) == tries and requests[-1].state == "generating")
        (run,) = runs.list()
        assert world.run(run.cancel).outcome == "cancelled"
        assert isinstance(pending.failure(), RunCancelledError)
        server.reset()
    world.close(client)
    assert calls == [name]


def test_attach_knows_an_async_client_whose_request_was_wrapped(
    world: Any, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper that gives what the SDK's `request` gives, and is no coroutine function itself, changes nothing."""
    kind = openai.AsyncOpenAI if world.is_async else openai.OpenAI
    original = kind.request

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    monkeypatch.setattr(kind, "request", watched)
    client = kind(api_key="k", base_url=server.base_url)
    runs = deadstop.attach(client)
    pending = world.start(world.create, client)
    server.wait_for(lambda requests: any(each.state == "generating" for each in requests))
    assert world.run(runs.cancel, runs.list()[0]).outcome == "cancelled"
    assert isinstance(pending.failure(), RunCancelledError)
    world.close(client)


@pytest.mark.parametrize("kept", [True, False], ids=["held", "generator"])
def test_a_stream_that_a_subclass_wraps_into_its_own(world: Any, server: FakeOpenAI, kept: bool) -> None:
    """Its call goes on until the stream is over: a cancel ends it, and its caller is told."""

    class Metered:
        def __init__(self, stream: Any) -> None:
            self.stream = stream if kept else None
            self.source = None if kept else generator(stream)

        def __iter__(self) -> Any:
            return iter(self.stream or self.source)

        def __aiter__(self) -> Any:
            return (self.stream or self.source).__aiter__()

    async def later(stream: Any) -> Any:
        async for event in stream:
            yield event

    def generator(stream: Any) -> Any:
        return later(stream) if world.is_async else (event for event in stream)

    if world.is_async:

        class Client(openai.AsyncOpenAI):
            async def request(self, *args: Any, **kwargs: Any) -> Any:
                return Metered(await super().request(*args, **kwargs))
    else:

        class Client(openai.OpenAI):  # type: ignore[no-redef]
            def request(self, *args: Any, **kwargs: Any) -> Any:
                return Metered(super().request(*args, **kwargs))

    client = Client(api_key="k", base_url=server.base_url)
    client.runs = deadstop.attach(client)  # type: ignore[union-attr]
    seen: list[Any] = []
    pending = world.start(world.consume, client, "chat-42", seen.append)
    until(lambda: len(seen) > 3 or pending.done, "three events")
    receipt = world.run(client.runs.cancel, "chat-42")  # type: ignore[union-attr]
    assert (receipt.outcome, len(receipt.calls)) == ("cancelled", 1)
    assert isinstance(pending.failure(), RunCancelledError)
    server.wait_for(lambda requests: requests[-1].state == "disconnected")
    assert client.runs.list() == []  # type: ignore[union-attr]
    world.close(client)


@pytest.fixture
def at_once() -> Iterator[str]:
    """The URL of a server that writes forty events at once, and then nothing more."""
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
            event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write((b"data: " + json.dumps(event).encode() + b"\n\n") * 40)
            over.wait(20)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        over.set()
        server.shutdown()


def test_a_stream_out_of_sight_gives_nothing_after_the_cancel(world: Any, at_once: str) -> None:
    """I4: none of the events that were read with those before it, though only a generator has the stream."""
    if world.is_async:

        class Client(openai.AsyncOpenAI):
            async def request(self, *args: Any, **kwargs: Any) -> Any:
                stream = await super().request(*args, **kwargs)
                return (event async for event in stream)
    else:

        class Client(openai.OpenAI):  # type: ignore[no-redef]
            def request(self, *args: Any, **kwargs: Any) -> Any:
                stream = super().request(*args, **kwargs)
                return (event for event in stream)

    client = Client(api_key="k", base_url=at_once)
    client.runs = deadstop.attach(client)  # type: ignore[union-attr]
    seen: list[Any] = []

    def each(event: Any) -> None:
        seen.append(event)
        if len(seen) == 5:
            client.runs.get("r").cancel_soon()  # type: ignore[union-attr]

    pending = world.start(world.consume, client, "r", each)
    assert isinstance(pending.failure(), RunCancelledError)
    assert len(seen) == 5
    world.close(client)
