"""JSON and server-sent events as bytes. Pure."""

from __future__ import annotations

import json
from typing import Any

from deadstop.testing.reply import Event

DONE = b"data: [DONE]\n\n"
_encode = json.JSONEncoder(separators=(",", ":")).encode


def encode_json(value: Any) -> bytes:
    """Compact JSON; what JSON does not know becomes its text."""
    try:
        return _encode(value).encode()
    except TypeError:
        return json.dumps(value, default=str).encode()


def decode_json(data: bytes) -> Any:
    """The JSON value, or None where there is none."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def encode_event(event: Event) -> bytes:
    """One event as a server writes it."""
    data = b"data: " + _encode(event.data).encode() + b"\n\n"
    return data if event.name is None else b"event: " + event.name.encode() + b"\n" + data
