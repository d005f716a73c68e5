"""Streamed inside over a connection that breaks off: what is all there is given, what is not never passes for it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import openai
import pytest
from raw_kit import CHAT, EVENTS, USAGE, Server, chunk, client_of, event, streamed

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
