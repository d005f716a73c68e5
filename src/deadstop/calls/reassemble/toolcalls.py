"""The tool calls of a streamed message."""

from __future__ import annotations

import json
from typing import Any, Optional

from deadstop.calls.reassemble.merge import Node, Text, absorb, settle

_PARTS = (("function", "arguments"), ("custom", "input"))


class ToolCalls:
    """Sorts the fragments of tool calls to the calls they belong to.

    A fragment belongs to the call with its `index`; without one, to the call with its `id`; without either,
    to the call at its place in the delta when there are several, else to the last one. It opens a new call
    instead when it brings another id, or a name and arguments, and the arguments collected so far are already
    whole: lmdeploy, older Gemini endpoints and several gateways number parallel calls all 0, or not at all.
    """

    def __init__(self) -> None:
        self._calls: list[Node] = []
        self._by_index: dict[int, Node] = {}
        self._order: dict[int, int] = {}
        self._ambiguous = False

    def take(self, fragments: list[Any]) -> None:
        for place, fragment in enumerate(fragments):
            if not isinstance(fragment, dict):
                continue
            index = fragment.get("index")
            index = index if type(index) is int else None
            call = self._home(fragment, index, place, len(fragments))
            if index is not None:
                self._by_index[index] = call
            absorb(call, {key: value for key, value in fragment.items() if key != "index"})

    def result(self) -> list[dict[str, Any]]:
        """Return the calls as a message that is not streamed lists them: ordered by index, and without it."""
        calls = self._calls
        if not self._ambiguous:
            calls = sorted(calls, key=lambda call: self._order[id(call)])
        return [_whole(settle(call)) for call in calls]

    def _home(self, fragment: dict[str, Any], index: Optional[int], place: int, count: int) -> Node:
        name, text = _name(fragment), _arguments(fragment)
        call_id = fragment.get("id") or None
        call: Optional[Node] = None
        if index is not None:
            call = self._by_index.get(index)
        elif call_id is not None:
            call = next((c for c in reversed(self._calls) if c.get("id") == call_id), None)
            if call is None and self._calls and not self._calls[-1].get("id") and not name:
                call = self._calls[-1]
        elif count > 1:
            call = self._calls[place] if place < len(self._calls) else None
        elif self._calls:
            call = self._calls[-1]
        if call is not None and not _is_another(call, call_id, name, text):
            return call
        if call is not None or index is None:
            self._ambiguous = True
        call = Node()
        self._calls.append(call)
        self._order[id(call)] = -1 if index is None else index
        return call


def _is_another(call: Node, call_id: Any, name: Any, text: Any) -> bool:
    known = call.get("id")
    if call_id and known and call_id != known:
        return not _is_partial(call)
    if call_id and call_id == known:
        return False
    if not name or not text:
        return False
    return name != _name(call) or _is_whole(call)


def _collected(call: Node) -> str:
    function = call.get("function")
    pieces = function.get("arguments") if isinstance(function, dict) else None
    return "".join(pieces) if isinstance(pieces, Text) else ""


def _is_whole(call: Node) -> bool:
    text = _collected(call).strip()
    if not text.endswith("}"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_partial(call: Node) -> bool:
    return bool(_collected(call)) and not _is_whole(call)


def _name(call: dict[str, Any]) -> Any:
    for part, _ in _PARTS:
        inner = call.get(part)
        if isinstance(inner, dict) and inner.get("name"):
            return inner["name"]
    return None


def _arguments(call: dict[str, Any]) -> Any:
    for part, field in _PARTS:
        inner = call.get(part)
        if isinstance(inner, dict) and inner.get(field):
            return inner[field]
    return None


def _whole(call: dict[str, Any]) -> dict[str, Any]:
    """Fill in what every call has and some servers do not stream: the type, and empty arguments."""
    for part, field in _PARTS:
        inner = call.get(part)
        if isinstance(inner, dict):
            if not call.get("type"):
                call["type"] = part
            if inner.get(field) is None:
                inner[field] = ""
            break
    return call
