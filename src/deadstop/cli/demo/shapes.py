"""The shapes of a call: each a generator over what it delivers, once for threads and once for tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Callable, Optional

__all__ = ["SHAPES", "Shape"]

Ask = dict[str, Any]

_PROMPT = "Count from 1 to 400 in words, one number per line."


@dataclass(frozen=True)
class Shape:
    """How to make a call. `counted`: what it delivers is what the receipt counts as chunks."""

    sync: Callable[[Any, Ask], Iterator[Any]]
    task: Callable[[Any, Ask], AsyncIterator[Any]]
    missing: Callable[[Any], Optional[str]]
    ask: Callable[[str, Optional[int]], Ask]
    counted: bool = False


def _chat_ask(model: str, tokens: Optional[int]) -> Ask:
    ask: Ask = {"model": model, "messages": [{"role": "user", "content": _PROMPT}]}
    return ask if tokens is None else {**ask, "max_tokens": tokens}


def _response_ask(model: str, tokens: Optional[int]) -> Ask:
    ask: Ask = {"model": model, "input": _PROMPT}
    return ask if tokens is None else {**ask, "max_output_tokens": tokens}


def _nothing(client: Any) -> Optional[str]:
    return None


def _no_responses(client: Any) -> Optional[str]:
    return None if hasattr(client, "responses") else "this openai has no responses API"


def _no_response_helper(client: Any) -> Optional[str]:
    has = hasattr(getattr(client, "responses", None), "stream")
    return None if has else "this openai has no responses.stream()"


def _no_chat_helper(client: Any) -> Optional[str]:
    return None if _chat_helper(client) else "this openai has no chat.completions.stream()"


def _chat_helper(client: Any) -> Any:
    beta: Any = getattr(getattr(getattr(client, "beta", None), "chat", None), "completions", None)
    homes: tuple[Any, ...] = (client.chat.completions, beta)
    return next((home.stream for home in homes if hasattr(home, "stream")), None)


def _no_streaming_response(client: Any) -> Optional[str]:
    has = hasattr(client.chat.completions, "with_streaming_response")
    return None if has else "this openai has no with_streaming_response"


def _chat(client: Any, ask: Ask) -> Iterator[Any]:
    yield client.chat.completions.create(**ask)


async def _chat_task(client: Any, ask: Ask) -> AsyncIterator[Any]:
    yield await client.chat.completions.create(**ask)


def _chat_stream(client: Any, ask: Ask) -> Iterator[Any]:
    yield from client.chat.completions.create(stream=True, **ask)


async def _chat_stream_task(client: Any, ask: Ask) -> AsyncIterator[Any]:
    async for event in await client.chat.completions.create(stream=True, **ask):
        yield event


def _response(client: Any, ask: Ask) -> Iterator[Any]:
    yield client.responses.create(**ask)


async def _response_task(client: Any, ask: Ask) -> AsyncIterator[Any]:
    yield await client.responses.create(**ask)


def _response_stream(client: Any, ask: Ask) -> Iterator[Any]:
    yield from client.responses.create(stream=True, **ask)


async def _response_stream_task(client: Any, ask: Ask) -> AsyncIterator[Any]:
    async for event in await client.responses.create(stream=True, **ask):
        yield event


def _lines(client: Any, ask: Ask) -> Iterator[Any]:
    with client.chat.completions.with_streaming_response.create(stream=True, **ask) as response:
        yield from response.iter_lines()


async def _lines_task(client: Any, ask: Ask) -> AsyncIterator[Any]:
    async with client.chat.completions.with_streaming_response.create(stream=True, **ask) as response:
        async for line in response.iter_lines():
            yield line


def _chat_events(client: Any, ask: Ask) -> Iterator[Any]:
    with _chat_helper(client)(**ask) as events:
        yield from events


async def _chat_events_task(client: Any, ask: Ask) -> AsyncIterator[Any]:
    async with _chat_helper(client)(**ask) as events:
        async for event in events:
            yield event


def _response_events(client: Any, ask: Ask) -> Iterator[Any]:
    with client.responses.stream(**ask) as events:
        yield from events


async def _response_events_task(client: Any, ask: Ask) -> AsyncIterator[Any]:
    async with client.responses.stream(**ask) as events:
        async for event in events:
            yield event


SHAPES: dict[str, Shape] = {
    "chat": Shape(_chat, _chat_task, _nothing, _chat_ask),
    "chat, streamed": Shape(_chat_stream, _chat_stream_task, _nothing, _chat_ask, counted=True),
    "chat, with_streaming_response": Shape(_lines, _lines_task, _no_streaming_response, _chat_ask),
    "chat.completions.stream()": Shape(_chat_events, _chat_events_task, _no_chat_helper, _chat_ask),
    "responses": Shape(_response, _response_task, _no_responses, _response_ask),
    "responses, streamed": Shape(_response_stream, _response_stream_task, _no_responses, _response_ask, counted=True),
    "responses.stream()": Shape(_response_events, _response_events_task, _no_response_helper, _response_ask),
}
