"""A Reply as the Responses API writes it: one `response` object, or its stream of events. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from deadstop.testing.render_chat import logprob
from deadstop.testing.reply import STAMP, Event, Piece, Reply, Stamp, joined, limit_of, prompt_tokens

JSON = dict[str, Any]
_ITEM_OF = {
    "reasoning": "reasoning",
    "text": "message",
    "refusal": "message",
    "tool": "call",
    "arguments": "call",
}
_PART_OF = {"reasoning": "reasoning_text", "text": "output_text", "refusal": "refusal"}


def response(reply: Reply, body: Mapping[str, Any], stamp: Stamp = STAMP) -> JSON:
    """The whole answer as one JSON object. Audio is left out: this API has none."""
    cut = _is_cut(reply, body)
    whole = _shell(reply, body, stamp, "incomplete" if cut else "completed")
    groups = _items(_pieces(reply, body))
    last = len(groups) - 1
    whole["output"] = [
        _item(reply, group, stamp, at, "incomplete" if cut and at == last else "completed", body)
        for at, group in enumerate(groups)
    ]
    if cut:
        whole["incomplete_details"] = {"reason": "max_output_tokens"}
    if reply.usage:
        whole["usage"] = _usage(reply, body)
    return whole


def events(reply: Reply, body: Mapping[str, Any], stamp: Stamp = STAMP) -> Iterator[Event]:
    """The same answer as a stream; the last event carries exactly what `response` returns."""
    for number, event in enumerate(_events(reply, body, stamp)):
        event.data["sequence_number"] = number
        yield event


def begun(reply: Reply, body: Mapping[str, Any], stamp: Stamp = STAMP) -> JSON:
    """The object of an answer that is not there yet."""
    return _shell(reply, body, stamp, "in_progress")


def token_count(reply: Reply, body: Mapping[str, Any]) -> int:
    """How many tokens the answer takes."""
    if reply.audio is None:  # then all pieces can be said here, and a long answer need not be cut up to be counted
        return reply.count(limit_of(body))
    return len(_pieces(reply, body))


def _events(reply: Reply, body: Mapping[str, Any], stamp: Stamp) -> Iterator[Event]:
    opening = _shell(reply, body, stamp, "in_progress")
    yield _event("response.created", response=opening)
    yield _event("response.in_progress", response=opening)
    whole = response(reply, body, stamp)
    for at, group in enumerate(_items(_pieces(reply, body))):
        done = whole["output"][at]
        yield _event("response.output_item.added", output_index=at, item=_opened(done))
        inner = _call_events if done["type"] == "function_call" else _part_events
        yield from inner(reply, group, done, {"item_id": done["id"], "output_index": at}, body)
        yield _event("response.output_item.done", output_index=at, item=done)
    yield _event(f"response.{whole['status']}", response=whole)


def _call_events(reply: Reply, group: list[Piece], done: JSON, where: JSON, body: Mapping[str, Any]) -> Iterator[Event]:
    name = "response.function_call_arguments"
    for piece in group:
        # The call's own token (its name) has no event in this API: it rides on an empty delta.
        yield _event(f"{name}.delta", 1, **where, delta=piece.value if piece.kind == "arguments" else "")
    yield _event(f"{name}.done", **where, name=done["name"], arguments=done["arguments"])


def _part_events(reply: Reply, group: list[Piece], done: JSON, where: JSON, body: Mapping[str, Any]) -> Iterator[Event]:
    for at, (kind, pieces) in enumerate(groupby(group, key=lambda piece: piece.kind)):
        part, here = done["content"][at], {**where, "content_index": at}
        field = "refusal" if kind == "refusal" else "text"
        empty = {**part, field: "", **({"logprobs": []} if "logprobs" in part else {})}
        yield _event("response.content_part.added", **here, part=empty)
        name = f"response.{_PART_OF[kind]}"
        for piece in pieces:
            more: JSON = {"logprobs": _delta_logprobs(reply, body, [piece.value])} if kind == "text" else {}
            yield _event(f"{name}.delta", 1, **here, delta=piece.value, **more)
        texts = [piece.value for piece in group if piece.kind == kind]
        more = {"logprobs": _delta_logprobs(reply, body, texts)} if kind == "text" else {}
        yield _event(f"{name}.done", **here, **{field: part[field]}, **more)
        yield _event("response.content_part.done", **here, part=part)


def _event(kind: str, tokens: int = 0, **rest: Any) -> Event:
    return Event({"type": kind, **rest}, tokens, kind)


def _pieces(reply: Reply, body: Mapping[str, Any]) -> list[Piece]:
    spoken = [piece for piece in reply.pieces() if piece.kind in _ITEM_OF]
    limit = limit_of(body)
    return spoken if limit is None else spoken[: max(0, limit)]


def _is_cut(reply: Reply, body: Mapping[str, Any]) -> bool:
    return len(_pieces(reply, body)) < len(_pieces(reply, {}))


def _items(pieces: list[Piece]) -> list[list[Piece]]:
    """The pieces, one list per output item."""
    return [list(group) for _, group in groupby(pieces, key=lambda piece: (_ITEM_OF[piece.kind], piece.call))]


def _item(reply: Reply, group: list[Piece], stamp: Stamp, at: int, status: str, body: Mapping[str, Any]) -> JSON:
    kind = _ITEM_OF[group[0].kind]
    if kind == "call":
        call, index = reply.tool_calls[group[0].call], group[0].call
        return {
            "id": f"fc_fake{stamp.serial}_{at}",
            "type": "function_call",
            "status": status,
            "call_id": call.id or f"call_fake{stamp.serial}_0_{index}",
            "name": call.name,
            "arguments": joined(group, "arguments", index),
        }
    content = [_part(reply, name, list(part), body) for name, part in groupby(group, key=lambda p: p.kind)]
    if kind == "reasoning":
        return {
            "id": f"rs_fake{stamp.serial}_{at}",
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": content,
        }
    return {
        "id": f"msg_fake{stamp.serial}_{at}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
        **reply.extra.message,
    }


def _part(reply: Reply, kind: str, pieces: list[Piece], body: Mapping[str, Any]) -> JSON:
    text = joined(pieces, kind)
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    logprobs = [logprob(piece.value) for piece in pieces] if _wants_logprobs(reply, body) else []
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _opened(item: JSON) -> JSON:
    """The item as it looks when it is announced: no content yet."""
    emptied = {**item, "status": "in_progress"}
    if "arguments" in item:
        emptied["arguments"] = ""
    if "content" in item:
        emptied["content"] = []
    return emptied


def _wants_logprobs(reply: Reply, body: Mapping[str, Any]) -> bool:
    return reply.logprobs or "message.output_text.logprobs" in (body.get("include") or ())


def _delta_logprobs(reply: Reply, body: Mapping[str, Any], texts: list[str]) -> list[JSON]:
    if not _wants_logprobs(reply, body):
        return []
    return [{key: value for key, value in logprob(text).items() if key != "bytes"} for text in texts]


def _shell(reply: Reply, body: Mapping[str, Any], stamp: Stamp, status: str) -> JSON:
    shell: JSON = {
        "id": f"resp_fake{stamp.serial}",
        "object": "response",
        "created_at": stamp.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": body.get("model") or "fake-model",
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }
    if reply.service_tier is not None:
        shell["service_tier"] = reply.service_tier
    return {**shell, **reply.extra.top}


def _usage(reply: Reply, body: Mapping[str, Any]) -> JSON:
    asked, pieces = prompt_tokens(body), _pieces(reply, body)
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": len(pieces),
        "output_tokens_details": {"reasoning_tokens": sum(piece.kind == "reasoning" for piece in pieces)},
        "total_tokens": asked + len(pieces),
    }
