"""What the pieces of a streamed response have told, for servers whose last event lacks it."""

from __future__ import annotations

import json
import re
from typing import Any, Optional

from deadstop.calls.reassemble.sse import Event

__all__ = ["is_piece", "is_whole", "restored", "without"]

_PIECE = re.compile(
    rb"\bresponse\.(?:output_item\.added|(?:output_text|refusal|function_call_arguments)\.(?:delta|done))\b"
)
_FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "output_text": ("text", {"annotations": []}),
    "refusal": ("refusal", {}),
}


def is_piece(event: bytes) -> bool:
    """Whether an event, by its name or by its data, may be one that `restored` can use."""
    return _PIECE.search(event) is not None


def restored(items: dict[int, str], events: list[Event], listed: bool) -> dict[int, str]:
    """Those items of a response, as texts by their index, that lack something which the `events` have told.

    `listed`: the server has said itself which items there are.

    Gateways that make such a stream of a chat's (agentgateway, LiteLLM) send the text in deltas, and then a message
    without a word, or none. What an item has is not touched.
    """
    known = {index: json.loads(text) for index, text in items.items()}
    if listed and not any(_lacks(item) for item in known.values()):
        return {}
    told: dict[str, _Told] = {}
    for name, data in events:
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and not event.keys().isdisjoint(("item_id", "output_index")):  # it says whose it is
            item, index = event.get("item"), event.get("output_index")
            index = index if type(index) is int else 0
            key = (item.get("id") if isinstance(item, dict) else None) or event.get("item_id") or index
            one = told.setdefault(str(key), _Told(index))
            one.take(str(event.get("type") or name.decode("utf-8", "replace")), event)
    more: dict[int, str] = {}
    for key, one in told.items():
        same = (index for index, item in known.items() if isinstance(item, dict) and item.get("id") == key)
        index = next(same, one.index)
        made = one.complete(known.get(index, one.item))
        if made is not None:
            more[index] = json.dumps(made, separators=(",", ":"))
    return more


def is_whole(item: Any) -> bool:
    """Whether an item of a kind that is told in pieces has all of it."""
    return isinstance(item, dict) and item.get("type") in ("message", "function_call") and not _lacks(item)


def without(item: Any, events: list[Event]) -> list[Event]:
    """The events but for those of an item that has all of it. One without an id may be of any of them."""
    mine = item.get("id")
    if not isinstance(mine, str) or not mine:
        return []
    named = json.dumps(mine).encode()
    return [each for each in events if named not in each[1]]


def _lacks(item: Any) -> bool:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "message":
        content = item.get("content")
        return not any(isinstance(each, dict) and (each.get("text") or each.get("refusal")) for each in content or [])
    return kind == "function_call" and not item.get("arguments")


class _Told:
    """What was told of one item."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.item: Optional[dict[str, Any]] = None
        self._id: Any = None
        self._parts: dict[int, _Text] = {}
        self._arguments = _Text("arguments")

    def take(self, kind: str, event: dict[str, Any]) -> None:
        self._id = event.get("item_id") or self._id
        what, _, how = kind.partition("response.")[2].partition(".")
        if what == "output_item":
            item = event.get("item")
            self.item = item if isinstance(item, dict) else None
        elif what in _FIELDS:
            place = event.get("content_index")
            part = self._parts.setdefault(place if type(place) is int else 0, _Text(what))
            part.take(how, event, _FIELDS[what][0])
        elif what == "function_call_arguments":
            self._arguments.take(how, event, "arguments")

    def complete(self, item: Any) -> Optional[dict[str, Any]]:
        """The item with what it lacks; None if it lacks nothing, or nothing more is known."""
        parts = [self._parts[place].part() for place in sorted(self._parts) if self._parts[place].text()]
        if item is None and parts:
            item = {"id": self._id, "type": "message", "role": "assistant", "content": []}
        if not _lacks(item):
            return None
        more = {"content": parts} if item["type"] == "message" else {"arguments": self._arguments.text()}
        if not any(more.values()):
            return None
        status = item.get("status") or "completed"
        return {**item, **more, "status": "completed" if status == "in_progress" else status}


class _Text:
    """A text in pieces, or told as a whole at its end."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._pieces: list[str] = []
        self._whole = ""

    def take(self, how: str, event: dict[str, Any], field: str) -> None:
        value = event.get("delta" if how == "delta" else field)
        if isinstance(value, str):
            if how == "delta":
                self._pieces.append(value)
            else:
                self._whole = value

    def text(self) -> str:
        # The longer one: a gateway was seen to say that it is done after the first piece.
        return max(self._whole, "".join(self._pieces), key=len)

    def part(self) -> dict[str, Any]:
        field, more = _FIELDS[self._kind]
        return {"type": self._kind, field: self.text(), **more}
