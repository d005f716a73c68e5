"""Small streams of chat completions, and what becomes of them."""

from __future__ import annotations

import json
from typing import Any

from deadstop.calls.reassemble import Assembled, Assembler, plan

DONE = b"data: [DONE]\n\n"


def assembler(choices: int = 1, **fields: Any) -> Assembler:
    request = json.dumps({"n": choices, **fields}).encode()
    made = plan("POST", "/v1/chat/completions", "application/json", request)
    assert made is not None
    return made.assembler()


def data(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def ended(*events: bytes, choices: int = 1) -> Assembled:
    assembling = assembler(choices)
    for event in events:
        assembling.feed(event)
    return assembling.finish()


def body(*chunks: Any, choices: int = 1) -> dict[str, Any]:
    answer = ended(*map(data, chunks), DONE, choices=choices)
    assert answer.status == 200
    found = json.loads(answer.body)
    assert isinstance(found, dict)
    return found


def message(*deltas: Any) -> dict[str, Any]:
    found = body(*({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas))
    made = found["choices"][0]["message"]
    assert isinstance(made, dict)
    return made


def calls(*deltas: list[dict[str, Any]]) -> list[Any]:
    made = message(*({"tool_calls": delta} for delta in deltas))["tool_calls"]
    assert isinstance(made, list)
    return made


def call(name: str, arguments: str, call_id: Any = None) -> dict[str, Any]:
    function = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return function if call_id is None else {"id": call_id, **function}
