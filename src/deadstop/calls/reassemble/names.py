"""The name of a function that is called, as it grows.

Most servers say it once. Some say the whole name with each fragment (SGLang, MiniMax on NVIDIA's NIM, Claude behind
gateways), some say it in pieces (Gemini behind gateways: "edit_ex", "isting_file"), and the SDK adds up whatever comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

__all__ = ["goes_on", "grown", "tools_in"]


def grown(name: Any, piece: Any, begun: bool, tools: frozenset[str]) -> Any:
    """What the name `name` is after a fragment that names `piece`.

    `begun`: whether the call has arguments already, which come after the name. `tools`: the names that the request
    offers; where they tell a piece from a repetition, they do.
    """
    if not piece or not isinstance(name, str) or not isinstance(piece, str):
        return name
    if name in tools and (begun or piece == name):
        return name
    told = _told(name, piece, tools)
    if told is not None:
        return told
    if begun or piece == name or name in tools:
        return name
    return piece if piece.startswith(name) else name + piece


def goes_on(name: Any, piece: Any, tools: frozenset[str]) -> bool:
    """Whether the tools say that `piece` is of the name `name`, where it could be the name of another call."""
    if not isinstance(name, str) or not isinstance(piece, str) or (name in tools and piece in tools):
        return False
    return _told(name, piece, tools) is not None


def _told(name: str, piece: str, tools: frozenset[str]) -> Optional[str]:
    """The name that is on its way to one of `tools`: with `piece` added, or `piece` if that is all of it so far."""
    for longer in (name + piece, piece):
        if longer.startswith(name) and any(tool.startswith(longer) for tool in tools):
            return longer
    return None


def tools_in(fields: dict[str, Any]) -> frozenset[str]:
    """The names that a request offers: its `tools`, and the `functions` that were before them."""
    found: set[str] = set()
    for one in _entries(fields.get("functions")):
        found.update(_names(one))
    for one in _entries(fields.get("tools")):
        for part in ("function", "custom"):
            found.update(_names(one.get(part)))
    return frozenset(found)


def _entries(value: Any) -> Iterable[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _names(value: Any) -> list[str]:
    name = value.get("name") if isinstance(value, dict) else None
    return [name] if isinstance(name, str) and name else []
