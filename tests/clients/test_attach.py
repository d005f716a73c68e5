"""`attach()` and `install()`: programs that are not to be changed."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from worlds import CHAT, Pending

import deadstop
from deadstop import RunCancelledError, UnsupportedClientError
from deadstop.testing import FakeOpenAI


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


def plain(world: Any, server: FakeOpenAI) -> Any:
    kind = openai.AsyncOpenAI if world.is_async else openai.OpenAI
    return kind(api_key="k", base_url=server.base_url)


def test_a_client_that_somebody_else_built(world: Any, server: FakeOpenAI) -> None:
    """Its calls, and those of its copies, can be cancelled; its class is left alone; attaching twice is no harm."""
    client = plain(world, server)
    runs = deadstop.attach(client)
    assert type(client) in (openai.OpenAI, openai.AsyncOpenAI)
    assert deadstop.attach(client) is runs
    for one in (client, client.with_options(max_retries=0)):
        pending = world.start(one.chat.completions.create, **CHAT)
        server.wait_for(lambda requests: any(each.state == "generating" for each in requests))
        (run,) = runs.list()
        assert world.run(runs.cancel, run).outcome == "cancelled"
        assert isinstance(pending.failure(), RunCancelledError)
        server.reset()
    world.close(client)


def test_other_clients_of_that_class_are_left_alone(world: Any, server: FakeOpenAI) -> None:
    """Attaching to one client changes no other, though it may share the HTTP client."""
    server.rate = 0
    client = plain(world, server)
    runs = deadstop.attach(client)
    kind = openai.AsyncOpenAI if world.is_async else openai.OpenAI
    other = kind(api_key="k", base_url=server.base_url, http_client=client._client)
    assert world.start(other.chat.completions.create, **CHAT).result().choices
    assert runs.list() == []
    assert not hasattr(other, "runs")
    assert "request" not in other.__dict__
    world.close(client)


def test_an_attached_client_goes_when_nobody_holds_it(world: Any, server: FakeOpenAI) -> None:
    """Attaching makes no reference cycle: an unused client is freed as soon as the plain one is."""

    def freed(attached: bool) -> bool:
        client = plain(world, server)
        if attached:
            deadstop.attach(client)
            for name in ("chat", "beta", "responses", "messages", "realtime", "vector_stores"):
                client.__dict__.pop(name, None)  # the SDK's resources refer back to the client
        gone = weakref.ref(client)
        del client
        return gone() is None

    gc.collect()
    gc.disable()
    try:
        assert freed(attached=True) == freed(attached=False)
    finally:
        gc.enable()
        gc.collect()


@pytest.mark.parametrize("thing", [None, 3, "client", object(), openai.OpenAI, openai])
def test_anything_else_is_refused(thing: Any) -> None:
    """The error says what to give instead."""
    with pytest.raises(UnsupportedClientError, match="attach"):
        deadstop.attach(thing)


def test_anthropic(world: Any, server: FakeOpenAI) -> None:
    """An `anthropic` client: create, stream and the stream helper are cancelled and fenced."""
    anthropic = pytest.importorskip("anthropic")
    server.rate = 100
    kind = anthropic.AsyncAnthropic if world.is_async else anthropic.Anthropic
    client = kind(api_key="k", base_url=server.origin, max_retries=0)
    runs = deadstop.attach(client)
    body: Any = {"model": "m", "max_tokens": 500, "messages": [{"role": "user", "content": "hi"}]}
    seen: list[Any] = []
    three = threading.Event()

    def look(event: Any) -> None:
        seen.append(event)
        if len(seen) == 3:
            three.set()

    async def created() -> Any:
        return await client.messages.create(**body)

    async def streamed() -> None:
        async for event in await client.messages.create(**body, stream=True):
            look(event)

    async def helped() -> None:
        async with client.messages.stream(**body) as stream:
            async for event in stream:
                look(event)

    def created_here() -> Any:
        return client.messages.create(**body)

    def streamed_here() -> None:
        for event in client.messages.create(**body, stream=True):
            look(event)

    def helped_here() -> None:
        with client.messages.stream(**body) as stream:
            for event in stream:
                look(event)

    programs = (created, streamed, helped) if world.is_async else (created_here, streamed_here, helped_here)
    for program in programs:
        seen.clear()
        three.clear()
        pending = world.start(program)
        if program in (created, created_here):
            server.wait_for(lambda requests: any(each.state == "generating" for each in requests))
        else:
            assert three.wait(10), pending.error
        (run,) = runs.list()
        receipt = world.run(runs.cancel, run)
        count = len(seen)
        assert receipt.outcome == "cancelled"
        assert isinstance(pending.failure(), RunCancelledError)
        assert len(seen) == count
        server.wait_for(lambda requests: requests[-1].state == "disconnected")
        server.reset()
    world.close(client)


def test_install_and_uninstall() -> None:
    """The names are in the `openai` module meanwhile, and only meanwhile; twice is as good as once."""
    before = {name: getattr(openai, name, None) for name in dir(openai)}
    deadstop.install()
    deadstop.install()
    try:
        from openai import OpenAI, RunCancellationTimeoutError  # type: ignore[attr-defined]

        assert OpenAI is deadstop.OpenAI
        assert openai.AsyncClient is deadstop.AsyncOpenAI
        assert RunCancellationTimeoutError is deadstop.RunCancellationTimeoutError
        assert issubclass(RunCancellationTimeoutError, openai.OpenAIError)
        assert not issubclass(RunCancellationTimeoutError, openai.APIError)
    finally:
        deadstop.uninstall()
        deadstop.uninstall()
    assert {name: getattr(openai, name, None) for name in dir(openai)} == before


def test_the_module_client_can_be_cancelled_once_installed(server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """`openai.chat.completions.create(...)`, without a client of one's own."""
    from deadstop.runs.registry import REGISTRIES

    deadstop.install()
    try:
        monkeypatch.setattr(openai, "api_key", "k")
        monkeypatch.setattr(openai, "base_url", server.base_url + "/")
        monkeypatch.setattr(openai, "_client", None)
        pending = Pending()

        def work() -> None:
            try:
                pending.end(openai.chat.completions.create(**CHAT))
            except BaseException as error:
                pending.end(error=error)

        threading.Thread(target=work, daemon=True).start()
        server.wait_for(lambda requests: any(each.state == "generating" for each in requests))
        for registry in list(REGISTRIES):
            registry.cancel_all_soon(reason="stop")
        assert isinstance(pending.failure(), RunCancelledError)
    finally:
        client = sys.modules["openai"]._client
        if client is not None:
            client.close()
        deadstop.uninstall()
