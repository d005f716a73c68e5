"""Streamed inside over a connection that breaks off: what is all there is given, what is not never passes for it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from raw_kit import CHAT, EVENTS, USAGE, WHOLE, Server, answer, chunk, client_of, event, streamed

import deadstop

BARE = [each.replace(b', "usage": null', b"") for each in (event(d, f, usage=None) for d, f in (
    ({"role": "assistant", "content": "Hel"}, None), ({"content": "lo"}, None), ({}, "stop")))]  # fmt: skip
"""The events of a server that knows no usage."""


def broken(*pieces: bytes) -> Any:
    """A server that sends these, one chunk each, and is gone before the end of the body."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        connection.sendall(streamed() + b"".join(chunk(each) for each in pieces))
        connection.shutdown(socket.SHUT_RDWR)

    return talk


def asked(server: Any, is_async: bool) -> Any:
    async def in_task() -> Any:
        async with deadstop.AsyncOpenAI(api_key="k", base_url=server.url, max_retries=0) as client, client.runs.open():
            return await client.chat.completions.create(**CHAT)

    if is_async:
        return asyncio.run(in_task())
    client = client_of(server)
    with client.runs.open():
        return client.chat.completions.create(**CHAT)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("pieces", "usage"),
    [
        (EVENTS[:4], USAGE),
        ([*EVENTS[:4], b"data: [DO"], USAGE),
        ([*EVENTS[:3], EVENTS[3].rstrip()], USAGE),
        (BARE, None),
        ([*BARE, b": keepalive\n\n"], None),
    ],
    ids=["no mark", "half a mark", "no blank line", "no usage is known", "keepalive"],
)
def test_an_answer_that_is_all_there_is_given(serve: Any, is_async: bool, pieces: Any, usage: Any) -> None:
    """Only the end mark is lost: asking again would cost another answer."""
    reply = asked(serve(broken(*pieces)), is_async)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("Hello", "stop")
    assert (reply.usage and reply.usage.total_tokens) == (usage and 2)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "pieces",
    [
        EVENTS[:2],
        EVENTS[:3],
        [*BARE, b'data: {"choices":[{"index":0,"delta":{"content":" wo'],
        [*BARE, b'{"error":{"mess'],
        [*BARE, event({"content": "x"}, None, choices=[{"index": 1, "delta": {"content": "x"}}])],
        [],
    ],
    ids=["no finish reason", "the usage was to come", "half an event", "half an error", "another choice", "nothing"],
)
def test_an_answer_that_lacks_something_is_an_error(serve: Any, is_async: bool, pieces: Any) -> None:
    """The transport's own error, which the SDK retries as that of a plain answer that breaks off."""
    with pytest.raises(Exception, match=r"peer closed|Connection error|disconnected") as caught:
        asked(serve(broken(*pieces)), is_async)
    assert isinstance(caught.value, openai.APIConnectionError) or "ProtocolError" in type(caught.value).__name__


def test_an_answer_that_is_all_there_is_given_where_the_end_never_comes(serve: Any) -> None:
    """A server that neither says that it is done nor closes: at the read timeout, its answer is the answer."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        connection.sendall(streamed() + b"".join(chunk(each) for each in BARE))
        server.go_on.wait(20)

    client = client_of(serve(talk)).with_options(timeout=0.3)
    with client.runs.open():
        assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"


HALF = [EVENTS[0], EVENTS[1], EVENTS[3]]
"""A stream that is over without a finish reason and without the mark, as some gateways have it."""

UNREADABLE = [EVENTS[0], b"data: data: {}\n\n", *EVENTS[1:]]


class Turns:
    """A server that answers the calls of one test in turn: events, or what is sent as it is."""

    def __init__(self, *turns: Any) -> None:
        self.turns = list(turns)

    def __call__(self, server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        turn = self.turns.pop(0)
        if isinstance(turn, list):
            turn = streamed() + b"".join(chunk(each) for each in turn) + b"0\r\n\r\n"
        connection.sendall(turn)


def tell(server: Server, count: int) -> list[str]:
    """What each of `count` calls comes to: its content, or the name of its error."""
    client = client_of(server)
    told: list[str] = []
    with client.runs.open():
        for _ in range(count):
            try:
                reply = client.chat.completions.create(**CHAT)
            except openai.OpenAIError as error:
                told.append(type(error).__name__)
            else:
                told.append(str(reply.choices[0].message.content) if hasattr(reply, "choices") else str(reply))
    return told


def asked_streamed(server: Server) -> list[bool]:
    return ["stream" in json.loads(body) for body in server.bodies]


@pytest.mark.parametrize("odd", [HALF, UNREADABLE, EVENTS[-1:], []], ids=["unfinished", "no JSON", "mark", "nothing"])
def test_a_server_whose_streams_are_no_answers_is_asked_plainly(serve: Any, odd: Any) -> None:
    """What works without a scope works in one: the SDK's retries, or the next calls, get there."""
    server = serve(Turns(odd, odd, answer(WHOLE), answer(WHOLE)))
    assert tell(server, 4) == ["APIConnectionError", "APIConnectionError", "Hello", "Hello"]
    assert asked_streamed(server) == [True, True, False, False]


def test_a_task_s_call_is_asked_plainly_in_its_own_retries(serve: Any, monkeypatch: Any) -> None:
    """Nobody has to call again: the third attempt is plain, and so is every call after it."""
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    server = serve(Turns(HALF, HALF, answer(WHOLE), answer(WHOLE)))

    async def main() -> None:
        async with deadstop.AsyncOpenAI(api_key="k", base_url=server.url, max_retries=2) as client, client.runs.open():
            for _ in range(2):
                assert (await client.chat.completions.create(**CHAT)).choices[0].message.content == "Hello"

    asyncio.run(main())
    assert asked_streamed(server) == [True, True, False, False]


def test_a_stream_that_is_whole_takes_the_doubt_away(serve: Any) -> None:
    """A gateway that ends a stream before its time, now and then, is no reason to give up streaming."""
    server = serve(Turns(HALF, EVENTS, HALF, EVENTS))
    assert tell(server, 4) == ["APIConnectionError", "Hello", "APIConnectionError", "Hello"]
    assert asked_streamed(server) == [True] * 4


def test_streams_that_break_at_a_time_are_one_doubt(serve: Any) -> None:
    """A gateway that is started anew ends all that it has under way: that is its one bad moment."""
    together = threading.Barrier(3)
    whole = Turns(*[EVENTS] * 2)

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        if len(server.bodies) <= 3:
            together.wait(20)
            Turns(HALF)(server, connection, head, body)
        else:
            whole(server, connection, head, body)

    server = serve(talk)
    client = client_of(server)

    def call(_: int) -> None:
        with client.runs.open(), pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(**CHAT)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(call, range(3)))
    with client.runs.open():
        for _ in range(2):
            assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"
    assert asked_streamed(server) == [True] * 5


def test_an_outage_says_nothing_of_streams(serve: Any) -> None:
    """Where the plain call does not get an answer either, the next one is streamed again."""
    server = serve(Turns(HALF, HALF, answer({}, "502 Bad Gateway"), EVENTS))
    assert tell(server, 4)[-1] == "Hello"
    assert asked_streamed(server) == [True, True, False, True]


@pytest.mark.parametrize("count", [1, 3])
def test_a_page_in_place_of_an_answer_says_nothing_of_streams(serve: Any, count: int) -> None:
    """A gateway's own page comes with a 200 at times: it is passed on, and no answer to what was asked."""
    page = answer({}).replace(b"application/json", b"text/html").replace(b"{}", b"<>")
    server = serve(Turns(*[page] * count, EVENTS))
    assert tell(server, count + 1) == ["<>"] * count + ["Hello"]
    assert asked_streamed(server)[-1]


def waiting(text: bytes, kind: str = "text/event-stream", last: Any = EVENTS) -> Any:
    """A server that sends a text again and again for longer than the read timeout, and then the answer."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        connection.sendall(streamed(kind))
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            connection.sendall(chunk(text))
            server.go_on.wait(0.02)
        connection.sendall(b"".join(chunk(each) for each in last) + b"0\r\n\r\n")

    return talk


@pytest.mark.parametrize(
    "answers",
    [
        waiting(b": keep-alive\n\n"),
        waiting(b": OPENROUTER PROCESSING\n\n"),
        waiting(b"\n", "application/json", [json.dumps(WHOLE).encode()]),
    ],
    ids=["DeepSeek", "OpenRouter", "not streamed"],
)
def test_who_is_kept_alive_waits_as_long_as_without_a_stream(serve: Any, answers: Any) -> None:
    """DeepSeek and oMLX keep a plain call alive with empty lines or spaces, each of which renews its read timeout."""
    client = client_of(serve(answers)).with_options(timeout=0.5)
    with client.runs.open():
        assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"


def test_a_ping_keeps_nobody_alive(serve: Any) -> None:
    """sse-starlette has them in each of its streams, and nothing of the kind in a plain answer."""
    client = client_of(serve(waiting(b": ping - 2025-01-01 00:00:00+00:00\r\n\r\n"))).with_options(timeout=0.5)
    with client.runs.open(), pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**CHAT)
