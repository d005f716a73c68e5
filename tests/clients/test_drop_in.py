"""A client of ours behaves as the SDK's where a program leans on it: requests, subclasses, loops, pools."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from worlds import CHAT, MESSAGES

import deadstop
from deadstop.testing import FakeOpenAI


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=0, tokens=3) as one:
        yield one


def http_package() -> Any:
    """httpx or httpx2: what the SDK in hand rides on."""
    with deadstop.OpenAI(api_key="k") as client:
        names = [cls.__module__.partition(".")[0] for cls in type(client._client).__mro__]
    return importlib.import_module(next(name for name in names if name in ("httpx", "httpx2")))


class Watched:
    """An HTTP client that shows what goes to the wire, and what its hooks have seen."""

    def __init__(self) -> None:
        package = http_package()
        self.sent: list[Any] = []
        self.hooked: list[Any] = []
        sent = self.sent

        class Transport(package.HTTPTransport):  # type: ignore[name-defined, misc]
            def handle_request(self, request: Any) -> Any:
                sent.append(request)
                return super().handle_request(request)

        self.http_client = package.Client(transport=Transport(), event_hooks={"request": [self.hooked.append]})


def names_and_lengths(request: Any) -> tuple[list[bytes], int, int]:
    return [name for name, _ in request.headers.raw], int(request.headers["content-length"]), len(request.content)


def test_streamed_inside_changes_the_body_and_its_length_alone(server: FakeOpenAI) -> None:
    """The headers keep their order and names; the length is that of what is sent; hooks see the caller's request."""
    watched = Watched()
    with deadstop.OpenAI(api_key="k", base_url=server.base_url, http_client=watched.http_client) as client:
        for inside in (False, True):
            with client.runs.open(streamed_inside=inside):
                client.chat.completions.create(**CHAT)
    (plain, length, size), (inside_names, inside_length, inside_size) = map(names_and_lengths, watched.sent)
    assert inside_names == plain
    assert length == size
    assert inside_length == inside_size > size
    assert [names_and_lengths(each) for each in watched.hooked] == [(plain, length, size)] * 2


@pytest.mark.parametrize(
    "header",
    [
        {"X-Amz-Content-SHA256": "0"},
        {"Content-Digest": "sha-256=:0:"},
        {"X-Signature": "0"},
        {"Authorization": "AWS4-HMAC-SHA256 Credential=a, Signature=b"},
    ],
    ids=lambda header: next(iter(header)),
)
def test_a_body_that_is_signed_is_sent_as_it_is(server: FakeOpenAI, header: dict[str, str]) -> None:
    """A request that vouches for its body goes out unchanged, also in a scope: the server would refuse another."""
    watched = Watched()
    with deadstop.OpenAI(api_key="k", base_url=server.base_url, http_client=watched.http_client) as client:
        with client.runs.open("signed"):
            answer = client.chat.completions.create(**CHAT, extra_headers=header)
    assert answer.choices
    (request,) = watched.sent
    assert b'"stream"' not in request.content


def test_a_subclass_may_reckon_with_the_retry_pause() -> None:
    """What `_calculate_retry_timeout` gives a subclass is a number to it, and the pause that it makes of it holds."""
    package = http_package()
    statuses = [500, 503, 200]
    pauses = []

    def handler(request: Any) -> Any:
        body = {"id": "x", "object": "chat.completion", "choices": [], "created": 1, "model": "m"}
        return package.Response(statuses.pop(0), json=body, headers={"retry-after-ms": "1"})

    class Mine(deadstop.OpenAI):
        def _calculate_retry_timeout(self, *args: Any, **kwargs: Any) -> float:
            pause = super()._calculate_retry_timeout(*args, **kwargs)
            pauses.append(pause)
            assert 0 <= pause < 60
            assert -pause <= 0 <= pause / 2 <= max(pause, 0.0) <= 1 + pause
            assert float(f"{pause:.9f}") == round(pause, 9)
            return min(round(pause * 0.5 + 0.0, 4), 0.001)

    with Mine(api_key="k", http_client=package.Client(transport=package.MockTransport(handler))) as client:
        assert client.chat.completions.create(**CHAT).id == "x"
    assert len(pauses) == 2
    assert all(each == float(each) for each in pauses)


def test_a_retry_pause_may_be_a_whole_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patched `_calculate_retry_timeout` that gives an int is as good as one that gives a float."""
    package = http_package()
    statuses = [500, 200]

    def handler(request: Any) -> Any:
        body = {"id": "x", "object": "chat.completion", "choices": [], "created": 1, "model": "m"}
        return package.Response(statuses.pop(0), json=body)

    base = next(cls for cls in openai.OpenAI.__mro__ if "_calculate_retry_timeout" in cls.__dict__)
    monkeypatch.setattr(base, "_calculate_retry_timeout", lambda *_, **__: 0)
    transport = package.MockTransport(handler)
    with deadstop.OpenAI(api_key="k", http_client=package.Client(transport=transport)) as client:
        assert client.chat.completions.create(**CHAT).id == "x"


def test_a_call_whose_loop_was_closed_can_be_cancelled() -> None:
    """A loop that was closed under a call leaves it listed until its cancel, which then is confirmed at once."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        client = deadstop.AsyncOpenAI(api_key="k", base_url=url, max_retries=0)
        loop = asyncio.new_event_loop()
        task: Any = loop.create_task(client.chat.completions.create(model="m", messages=MESSAGES))

        async def sent() -> None:
            connection, _ = await loop.sock_accept(silent)
            connection.setblocking(False)
            connections.append(connection)
            assert await loop.sock_recv(connection, 65536)

        connections: list[socket.socket] = []
        silent.setblocking(False)
        loop.run_until_complete(asyncio.wait_for(sent(), 20))
        task._log_destroy_pending = False
        loop.close()
        (run,) = client.runs.list()
        receipt = asyncio.run(client.runs.cancel(run, timeout=5))
        assert receipt.outcome == "cancelled"
        assert client.runs.list() == []
        connections[0].setblocking(True)
        connections[0].settimeout(5)
        assert connections[0].recv(65536) == b"", "the server still waits"
        connections[0].close()
        with contextlib.suppress(RuntimeError, deadstop.DeadstopError):
            task.get_coro().close()
        for transport in list(getattr(loop, "_transports", {}).values()):
            transport._sock.close()
            transport._sock = None  # so that it does not complain of having no loop to be closed on


WITHOUT_ASSERTIONS = """
import threading
import deadstop
from deadstop.testing import FakeOpenAI

def main():
    with FakeOpenAI(rate=50, tokens=1000) as server:
        http = __import__(next(
            cls.__module__.partition(".")[0]
            for cls in type(deadstop.OpenAI(api_key="k")._client).__mro__ if cls.__module__.startswith("httpx")
        ))
        client = deadstop.OpenAI(
            api_key="k", base_url=server.base_url, max_retries=0,
            http_client=http.Client(limits=http.Limits(max_connections=1)),
        )
        stream = client.chat.completions.create(model="m", messages=[], stream=True)
        next(iter(stream))
        got = []

        def wait():
            try:
                got.append(client.chat.completions.create(model="m", messages=[], max_tokens=2).object)
            except BaseException as error:
                got.append(repr(error))

        thread = threading.Thread(target=wait)
        thread.start()
        pause = threading.Event()
        for _ in range(2000):
            if any(str(call.phase) == "waiting_for_pool" and client._client._transport._pool._requests[1:]
                   for run in client.runs.list() for call in list(run.calls.values())):
                break
            pause.wait(0.005)
        client.runs.reset()
        thread.join(20)
        stream.response.close()
        client.close()
        print(got)

main()
"""


@pytest.mark.parametrize("flags", [[], ["-O"]], ids=["with assertions", "without"])
def test_reset_frees_who_waits_for_a_connection(flags: list[str]) -> None:
    """A call that waits for a connection of a poisoned pool gets one of the new; `python -O` changes nothing."""
    command = [sys.executable, *flags, "-c", WITHOUT_ASSERTIONS]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout.strip() == "['chat.completion']", done.stdout + done.stderr


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "AzureOpenAI", "AsyncAzureOpenAI"])
def test_a_copy_takes_what_the_constructor_takes(name: str) -> None:
    """`runs_url` included, though the runs are those of the client that is copied, and stay where they are kept."""
    ours, theirs = getattr(deadstop, name), getattr(openai, name)
    taken = [inspect.signature(each).parameters.keys() for each in (ours.__init__, ours.copy, ours.with_options)]
    assert "runs_url" in taken[0]
    assert set(inspect.signature(theirs.__init__).parameters) - set(inspect.signature(theirs.copy).parameters) == (
        set(taken[0]) - set(taken[1])
    )
    assert taken[1] == taken[2]


def test_a_copy_has_the_ledger_of_the_client() -> None:
    """Naming it again is fine; another one is an error."""
    client = deadstop.OpenAI(api_key="k", runs_url="memory:")
    again: Any = client.with_options(timeout=3, runs_url="memory:")  # type: ignore[call-arg]
    assert again.runs is client.runs
    with pytest.raises(deadstop.UsageError, match="kept in memory: already"):
        client.copy(runs_url="sqlite:")  # type: ignore[call-arg]
    for each in (client, again):
        each.close()


def signatures(thing: Any, where: str, depth: int = 4) -> Iterator[tuple[str, str]]:
    """Of every public method of a client and its resources: its dotted name, and what `inspect` tells of it."""
    for name in dir(thing) if depth else ():
        if name.startswith(("_", "with_")) or name in ("runs", "copy"):
            continue
        with contextlib.suppress(Exception):  # a resource that needs a package which is not here
            each = getattr(thing, name)
            if callable(each) and hasattr(type(thing), name) and not isinstance(each, type):
                yield f"{where}.{name}", str(inspect.signature(each))
            elif type(each).__module__.startswith("openai.resources"):
                yield from signatures(each, f"{where}.{name}", depth - 1)


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
@pytest.mark.parametrize("way", ["drop-in", "attached"])
def test_what_inspects_a_method_finds_the_sdk_s_parameters(name: str, way: str) -> None:
    """Frameworks, and the SDK's own tests, make calls from what `inspect.signature` tells them."""
    theirs = dict(signatures(getattr(openai, name)(api_key="k"), "client"))
    if way == "drop-in":
        ours = dict(signatures(getattr(deadstop, name)(api_key="k"), "client"))
    else:
        client = getattr(openai, name)(api_key="k")
        deadstop.attach(client)
        ours = dict(signatures(client, "client"))
    assert "client.chat.completions.create" in theirs
    assert {each: ours.get(each) for each in theirs} == theirs
