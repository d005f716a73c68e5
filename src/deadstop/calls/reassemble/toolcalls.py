"""The tool calls of a streamed message."""

from __future__ import annotations

import json
from typing import Any, Optional

from deadstop.calls.reassemble.merge import Node, Text, absorb, settle
from deadstop.calls.reassemble.names import goes_on, grown

_PARTS = (("function", "arguments"), ("custom", "input"))


class ToolCalls:
    """Sorts the fragments of tool calls to the calls they belong to.

    A fragment belongs to the call with its `index`; without one, to the call with its `id`; without either,
    to the call at its place in the delta when there are several, else to the last one.

    lmdeploy, some Gemini endpoints and several gateways number parallel calls all 0, or not at all. So a
    fragment opens a new call instead when it brings another id (which is noise, though, while the arguments
    are half a JSON), when it names a call and goes on where the arguments are whole, or when it has no index
    and another name that is not the rest of the one before.

    Nebius and Cerebras count the index up within a call. So a piece of the arguments under a new index, without a
    name and an id, goes on with the last call while that is half a JSON.

    A name may come in pieces, or again and again (see `names`); `tools` are the names that it can become.
    """

    def __init__(self, tools: frozenset[str] = frozenset()) -> None:
        self._tools = tools
        self._calls: list[Node] = []
        self._by_index: dict[int, Node] = {}
        self._last: Optional[Node] = None
        self._places: list[int] = []

    def take(self, fragments: list[Any]) -> None:
        for place, fragment in enumerate(fragments):
            if not isinstance(fragment, dict):
                continue
            index = fragment.get("index")
            index = index if type(index) is int else None
            call = self._home(fragment, index, place, len(fragments))
            self._last = call
            name, begun = _name(call), _has_arguments(call)
            absorb(call, {key: value for key, value in fragment.items() if key != "index"})
            if name is not None:
                _rename(call, grown(name, _name(fragment), begun, self._tools))

    def result(self) -> list[dict[str, Any]]:
        """Return the calls as a message that is not streamed lists them: ordered by index, and without it."""
        placed = sorted(zip(self._places, self._calls), key=lambda pair: pair[0])
        for call in self._calls:
            _say_once(call)
        return [_whole(settle(call)) for _, call in placed]

    def _home(self, fragment: dict[str, Any], index: Optional[int], place: int, count: int) -> Node:
        name, text = _name(fragment), _arguments(fragment)
        call_id = fragment.get("id") or None
        call: Optional[Node] = None
        if index is not None:
            call = self._by_index.get(index)
            last = self._last
            if call is None and last is not None and text and not name and not call_id and not _is_whole(last):
                return last
        elif call_id is not None:
            call = next((c for c in reversed(self._calls) if c.get("id") == call_id), None)
        elif count > 1:
            call = self._calls[place] if place < len(self._calls) else None
        elif self._calls:
            call = self._calls[-1]
        if call is not None and not self._is_another(call, call_id, name, text, index is not None):
            return call
        # One that has no index, or another's, comes after all that came before it.
        latest = max(self._places, default=0)
        self._places.append(latest if index is None or call is not None else index)
        call = Node()
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call

    def _is_another(self, call: Node, call_id: Any, name: Any, text: Any, numbered: bool) -> bool:
        known_id, known_name = call.get("id"), _name(call)
        if goes_on(known_name, name, self._tools):
            return False
        if call_id and known_id:
            # One that is numbered and names nothing goes on with its call: some servers make up an id for each piece.
            opens = bool(name) or not numbered
            return opens and bool(call_id != known_id) and (not _has_arguments(call) or _is_whole(call))
        if not name or not known_name:
            return False
        if name != known_name and not numbered:
            return True
        return bool(text) and _is_whole(call)


def _pieces(call: Node) -> list[str]:
    function = call.get("function")
    pieces = function.get("arguments") if isinstance(function, dict) else None
    return pieces if isinstance(pieces, Text) else []


def _say_once(call: Node) -> None:
    """Put right arguments that are no JSON because the server said them more than once.

    Cerebras and gateways send all of them again at the end, Baidu Qianfan with each piece.
    """
    pieces = [piece for piece in _pieces(call) if piece]
    if len(pieces) < 2 or _json("".join(pieces)) is not None:
        return
    last = _json(pieces[-1])
    while len(pieces) > 2 and pieces[-2] == pieces[-1]:
        pieces.pop()
    before = pieces[:-1]
    if isinstance(last, dict) and (
        _json("".join(before)) == last or all(longer.startswith(one) for one, longer in zip(pieces, pieces[1:]))
    ):
        call["function"]["arguments"] = Text((pieces[-1],))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _has_arguments(call: Node) -> bool:
    return any(_pieces(call))


def _is_whole(call: Node) -> bool:
    pieces = _pieces(call)
    return bool(pieces) and pieces[-1].rstrip().endswith("}") and _json("".join(pieces)) is not None


def _name(call: dict[str, Any]) -> Any:
    for part, _ in _PARTS:
        inner = call.get(part)
        if isinstance(inner, dict) and inner.get("name"):
            return inner["name"]
    return None


def _rename(call: Node, name: Any) -> None:
    for part, _ in _PARTS:
        inner = call.get(part)
        if isinstance(inner, dict) and inner.get("name"):
            inner["name"] = name
            return


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
