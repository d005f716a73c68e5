"""The smaller answers: legacy completions, embeddings, the list of models, errors. Pure."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from deadstop.testing.reply import STAMP, Event, Reply, Stamp, joined, limit_of, prompt_tokens

JSON = dict[str, Any]


def text_completion(reply: Reply, body: Mapping[str, Any], stamp: Stamp = STAMP) -> JSON:
    """A legacy completion; only the text of the Reply is said."""
    text = joined(reply.pieces(limit_of(body)), "text")
    whole = _completion_chunk(body, stamp, text, reply.finish(reply.is_cut(limit_of(body))))
    if reply.usage:
        asked, answered = prompt_tokens(body), text_tokens(reply, body)
        whole["usage"] = {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
        }
    return whole


def text_chunks(reply: Reply, body: Mapping[str, Any], stamp: Stamp = STAMP) -> Iterator[Event]:
    """The same as a stream."""
    for piece in reply.pieces(limit_of(body)):
        if piece.kind == "text":
            yield Event(_completion_chunk(body, stamp, piece.value, None), 1)
    yield Event(_completion_chunk(body, stamp, "", reply.finish(reply.is_cut(limit_of(body)))))


def text_tokens(reply: Reply, body: Mapping[str, Any]) -> int:
    """How many tokens a legacy completion takes."""
    return sum(piece.kind == "text" for piece in reply.pieces(limit_of(body)))


def _completion_chunk(body: Mapping[str, Any], stamp: Stamp, text: str, reason: str | None) -> JSON:
    return {
        "id": f"cmpl-fake{stamp.serial}",
        "object": "text_completion",
        "created": stamp.created,
        "model": body.get("model") or "fake-model",
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}],
    }


def embeddings(body: Mapping[str, Any]) -> JSON:
    """Three-number vectors, one per input, as floats or in base64 (little-endian float32)."""
    asked = body.get("input", "")
    many = asked if isinstance(asked, list) and not all(isinstance(part, int) for part in asked) else [asked]
    asked_tokens = prompt_tokens(body)
    return {
        "object": "list",
        "data": [_embedding(body, index, str(text)) for index, text in enumerate(many)],
        "model": body.get("model") or "fake-model",
        "usage": {"prompt_tokens": asked_tokens, "total_tokens": asked_tokens},
    }


def _embedding(body: Mapping[str, Any], index: int, text: str) -> JSON:
    vector: Any = [float(len(text)), float(index), 0.5]
    if body.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<3f", *vector)).decode()
    return {"object": "embedding", "index": index, "embedding": vector}


def model(name: str) -> JSON:
    """One model."""
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "deadstop"}


def models() -> JSON:
    """The list of models."""
    return {"object": "list", "data": [model("fake-model")]}


def error(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> JSON:
    """The body of a refusal, in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
