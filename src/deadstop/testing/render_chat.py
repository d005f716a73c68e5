"""A Reply as chat completions write it: one `chat.completion`, or `chat.completion.chunk`s. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from deadstop.testing.reply import (
    STAMP,
    Event,
    Piece,
    Reply,
    Stamp,
    ToolCall,
    joined,
    limit_of,
    prompt_tokens,
)

JSON = dict[str, Any]


def completion(reply: Reply, body: Mapping[str, Any], stamp: Stamp = STAMP) -> JSON:
    """The whole answer as one JSON object."""
    choices = [_choice(reply, body, stamp, number) for number in range(choice_count(body))]
    whole = {**_top(reply, body, stamp, "chat.completion"), "choices": choices}
    if reply.usage:
        whole["usage"] = usage(reply, body)
    return whole


def chunks(reply: Reply, body: Mapping[str, Any], stamp: Stamp = STAMP) -> Iterator[Event]:
    """The same answer as the events of a stream, choices taking turns; without `data: [DONE]`."""
    top = _top(reply, body, stamp, "chat.completion.chunk")
    with_usage = reply.usage and bool((body.get("stream_options") or {}).get("include_usage"))
    if with_usage:
        top["usage"] = None

    def chunk(number: int, delta: JSON, tokens: int = 0, logprobs: Any = None, **rest: Any) -> Event:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None, **rest}
        return Event({**top, "choices": [choice]}, tokens)

    numbers = range(choice_count(body))
    for number in numbers:
        opening = "" if reply.has_text else None
        delta = {"role": "assistant", "content": opening, "refusal": None, **reply.extra.message}
        yield chunk(number, delta)
    limit = limit_of(body)
    asked = _wants_logprobs(reply, body)
    heard = set()  # the choices whose audio has begun: only its first delta carries the id
    for turn in zip_longest(*(reply.pieces(limit, number) for number in numbers)):
        for number, piece in enumerate(turn):
            if piece is not None:
                logprobs = _logprobs([piece]) if asked and piece.kind in ("text", "refusal") else None
                delta = _delta(reply, piece, stamp, number)
                if "audio" in delta and number not in heard:
                    heard.add(number)
                    delta["audio"]["id"] = _audio_id(stamp, number)
                yield chunk(number, delta, 1, logprobs)
    for number in numbers:
        if reply.audio is not None and number in heard:
            yield chunk(number, {"audio": {"expires_at": reply.audio.expires_at}})
        reason = reply.finish(reply.is_cut(limit, number))
        yield chunk(number, {}, **{"finish_reason": reason, **reply.extra.choice})
    if with_usage:
        yield Event({**top, "choices": [], "usage": usage(reply, body)})


def token_count(reply: Reply, body: Mapping[str, Any]) -> int:
    """How many tokens the answer takes, all choices together."""
    limit = limit_of(body)
    return sum(reply.count(limit, number) for number in range(choice_count(body)))


def choice_count(body: Mapping[str, Any]) -> int:
    """How many choices the request asks for."""
    asked = body.get("n")
    return asked if isinstance(asked, int) and asked > 0 else 1


def usage(reply: Reply, body: Mapping[str, Any]) -> JSON:
    """The usage block, made up for the prompt and exact for the completion."""
    limit = limit_of(body)
    pieces = [piece for number in range(choice_count(body)) for piece in reply.pieces(limit, number)]
    asked, answered = prompt_tokens(body), len(pieces)
    reasoning = sum(piece.kind == "reasoning" for piece in pieces)
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }


def _top(reply: Reply, body: Mapping[str, Any], stamp: Stamp, kind: str) -> JSON:
    top: JSON = {
        "id": f"chatcmpl-fake{stamp.serial}",
        "object": kind,
        "created": stamp.created,
        "model": body.get("model") or "fake-model",
    }
    if reply.service_tier is not None:
        top["service_tier"] = reply.service_tier
    if reply.system_fingerprint is not None:
        top["system_fingerprint"] = reply.system_fingerprint
    return {**top, **reply.extra.top}


def _choice(reply: Reply, body: Mapping[str, Any], stamp: Stamp, number: int) -> JSON:
    limit = limit_of(body)
    pieces = reply.pieces(limit, number)
    refusals = [piece for piece in pieces if piece.kind == "refusal"]
    message: JSON = {
        "role": "assistant",
        "content": joined(pieces, "text") if reply.has_text else None,
        "refusal": joined(refusals, "refusal") if refusals else None,
    }
    if any(piece.kind == "reasoning" for piece in pieces):
        message["reasoning_content"] = joined(pieces, "reasoning")
    calls = [_call(reply.tool_calls[piece.call], pieces, piece, stamp, number) for piece in pieces if _opens(piece)]
    if calls:
        message["tool_calls"] = calls
    if reply.audio is not None and any(piece.kind in ("transcript", "audio") for piece in pieces):
        message["audio"] = {
            "id": _audio_id(stamp, number),
            "data": joined(pieces, "audio"),
            "transcript": joined(pieces, "transcript"),
            "expires_at": reply.audio.expires_at,
        }
    said = [piece for piece in pieces if piece.kind in ("text", "refusal")]
    return {
        "index": number,
        "message": {**message, **reply.extra.message},
        "logprobs": _logprobs(said) if said and _wants_logprobs(reply, body) else None,
        "finish_reason": reply.finish(reply.is_cut(limit, number)),
        **reply.extra.choice,
    }


def _opens(piece: Piece) -> bool:
    return piece.kind == "tool"


def _call(call: ToolCall, pieces: list[Piece], piece: Piece, stamp: Stamp, number: int) -> JSON:
    return {
        "id": call.id or f"call_fake{stamp.serial}_{number}_{piece.call}",
        "type": "function",
        "function": {"name": call.name, "arguments": joined(pieces, "arguments", piece.call)},
    }


def _delta(reply: Reply, piece: Piece, stamp: Stamp, number: int) -> JSON:
    kind, value, index = piece
    if kind == "text":
        return {"content": value}
    if kind == "refusal":
        return {"refusal": value}
    if kind == "reasoning":
        return {"reasoning_content": value}
    if kind == "tool":
        return {"tool_calls": [{"index": index, **_call(reply.tool_calls[index], [], piece, stamp, number)}]}
    if kind == "arguments":
        return {"tool_calls": [{"index": index, "function": {"arguments": value}}]}
    name = "transcript" if kind == "transcript" else "data"
    return {"audio": {name: value}}


def _audio_id(stamp: Stamp, number: int) -> str:
    return f"audio_fake{stamp.serial}_{number}"


def _wants_logprobs(reply: Reply, body: Mapping[str, Any]) -> bool:
    return reply.logprobs or body.get("logprobs") is True


def _logprobs(pieces: list[Piece]) -> JSON:
    def listed(kind: str) -> list[JSON] | None:
        return [logprob(piece.value) for piece in pieces if piece.kind == kind] or None

    return {"content": listed("text"), "refusal": listed("refusal")}


def logprob(token: str) -> JSON:
    """A made-up log probability that depends on the token, so that mixing up two of them shows."""
    return {"token": token, "logprob": -0.25 * len(token), "bytes": list(token.encode()), "top_logprobs": []}
