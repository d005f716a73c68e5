"""A Reply as Anthropic's Messages API writes it: text and tool use, whole and streamed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from deadstop.testing.reply import STAMP, Event, Piece, Reply, Stamp, joined, limit_of, prompt_tokens
from deadstop.testing.sse import decode_json

JSON = dict[str, Any]
_BLOCK_OF = {"text": "text", "refusal": "text", "tool": "tool_use", "arguments": "tool_use"}
_STOP = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}


def message(reply: Reply, body: Mapping[str, Any], stamp: Stamp = STAMP) -> JSON:
    """The whole answer as one JSON object. What this API lacks (audio, reasoning, choices) is left out."""
    whole = _shell(reply, body, stamp)
    whole["content"] = [_block(reply, group, stamp) for group in _blocks(reply, body)]
    whole["stop_reason"] = _stop_reason(reply, body)
    whole["usage"]["output_tokens"] = token_count(reply, body)
    return whole


def events(reply: Reply, body: Mapping[str, Any], stamp: Stamp = STAMP) -> Iterator[Event]:
    """The same answer as the events of a stream."""
    yield _event("message_start", message=_shell(reply, body, stamp))
    for at, group in enumerate(_blocks(reply, body)):
        block = _block(reply, group, stamp)
        is_text = block["type"] == "text"
        yield _event(
            "content_block_start",
            index=at,
            content_block={**block, **({"text": ""} if is_text else {"input": {}})},
        )
        for piece in group:
            if is_text:
                delta = {"type": "text_delta", "text": piece.value}
            else:
                fragment = piece.value if piece.kind == "arguments" else ""
                delta = {"type": "input_json_delta", "partial_json": fragment}
            yield _event("content_block_delta", 1, index=at, delta=delta)
        yield _event("content_block_stop", index=at)
    ending = {"stop_reason": _stop_reason(reply, body), "stop_sequence": None}
    yield _event("message_delta", delta=ending, usage={"output_tokens": token_count(reply, body)})
    yield _event("message_stop")


def token_count(reply: Reply, body: Mapping[str, Any]) -> int:
    """How many tokens the answer takes."""
    return sum(len(group) for group in _blocks(reply, body))


def _event(kind: str, tokens: int = 0, **rest: Any) -> Event:
    return Event({"type": kind, **rest}, tokens, kind)


def _said(reply: Reply) -> list[Piece]:
    return [piece for piece in reply.pieces() if piece.kind in _BLOCK_OF]


def _blocks(reply: Reply, body: Mapping[str, Any]) -> list[list[Piece]]:
    limit, said = limit_of(body), _said(reply)
    kept = said if limit is None else said[: max(0, limit)]
    return [list(group) for _, group in groupby(kept, key=lambda piece: (_BLOCK_OF[piece.kind], piece.call))]


def _block(reply: Reply, group: list[Piece], stamp: Stamp) -> JSON:
    if _BLOCK_OF[group[0].kind] == "text":
        return {"type": "text", "text": joined(group, "text") + joined(group, "refusal"), "citations": None}
    index = group[0].call
    call = reply.tool_calls[index]
    # A call that the limit cut short has no valid JSON: this API then shows an empty input.
    given = decode_json(joined(group, "arguments", index).encode())
    return {
        "type": "tool_use",
        "id": call.id or f"toolu_fake{stamp.serial}_{index}",
        "name": call.name,
        "input": given if isinstance(given, dict) else {},
    }


def _stop_reason(reply: Reply, body: Mapping[str, Any]) -> str:
    reason = reply.finish(token_count(reply, body) < len(_said(reply)))
    return _STOP.get(reason, reason)


def _shell(reply: Reply, body: Mapping[str, Any], stamp: Stamp) -> JSON:
    return {
        "id": f"msg_fake{stamp.serial}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model") or "fake-model",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": prompt_tokens(body), "output_tokens": 0},
        **reply.extra.top,
    }
