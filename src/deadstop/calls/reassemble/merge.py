"""How the deltas of a stream add up to one object, field by field.

A delta does not say whether a field of it is a piece or a repetition, so the rules go by name and by type:

- null says that the field exists; it never replaces a value.
- A string is a piece and is appended, except where its name says that it cannot grow (`type`, `role`,
  `name`, ids, ...): then the first that is not empty stays. A name that is not known to grow is taken for a
  constant too when each delta of the object brought the very same text, as some servers do with labels.
- A string whose pieces each begin with all that came before is the last of them.
- A number or a boolean replaces the one before.
- An object is merged by the same rules.
- A list is extended. Entries with the same `index` (and, where given, the same `type`) are merged; so is a
  text or thinking block into the block of its type just before it, until that block is signed. An index may be
  none: OpenRouter was seen to count all of an answer's blocks 0. So one that brings another id or url, goes on after
  a signature, or comes after one of another type under its index, is an entry of its own.

Outside a delta nothing grows: with `grow=False` a string replaces the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

_GROWS = frozenset(
    {
        "arguments", "content", "data", "input", "partial_json", "reasoning", "reasoning_content",
        "reasoning_text", "refusal", "summary", "text", "thinking", "transcript",
    }
)  # fmt: skip
_CONSTANT = frozenset(
    {
        "format", "id", "language", "mime_type", "model", "name", "object", "phase", "provider", "role",
        "signature", "status", "thought_signature", "type", "url",
    }
)  # fmt: skip
_CONSTANT_ENDINGS = ("_id", "_name", "_type")
_BLOCKS = frozenset({"text", "thinking"})
_IDENTITY = frozenset({"id", "url"})


class Text(list[str]):
    """A string in pieces."""


class Items(list[Any]):
    """A list still growing, and where the entries with an index are."""

    def __init__(self) -> None:
        super().__init__()
        self.homes: dict[tuple[int, Any], Node] = {}


class Node(dict[str, Any]):
    """An object still growing, and how many deltas brought something to it."""

    deltas = 0


def absorb(node: Node, delta: Mapping[str, Any], *, grow: bool = True) -> None:
    """Merge `delta` into `node`, which takes over what it holds."""
    if delta:
        node.deltas += 1
    for key, new in delta.items():
        old = node.get(key)
        if new is None:
            if old is None:
                node[key] = None
        elif isinstance(new, str):
            _absorb_text(node, key, old, new, grow)
        elif isinstance(new, dict):
            if not isinstance(old, Node):
                old = node[key] = Node()
            absorb(old, new, grow=grow)
        elif isinstance(new, list):
            if not isinstance(old, Items):
                text = "".join(old) if isinstance(old, Text) else ""
                old = node[key] = Items()
                if text:
                    _extend(old, [_block(text)], grow)
            _extend(old, new, grow)
        else:
            node[key] = new


def settle(value: Any) -> Any:
    """Return `value` with all that was growing in it put together."""
    if isinstance(value, Node):
        return {
            key: _text(key, entry, value.deltas) if isinstance(entry, Text) else settle(entry)
            for key, entry in value.items()
        }
    if isinstance(value, Items):
        return [settle(entry) for entry in value]
    return value


def overlay(old: Any, new: Any) -> Any:
    """Return the newer of two reports of one thing; what only the older says is kept."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: overlay(old.get(key), value) for key, value in new.items()}}
    return old if new is None else new


def begins_like(value: Any, pieces: Text) -> bool:
    """Whether `value` is a text that goes on where the `pieces` of another are at."""
    return isinstance(value, str) and value.startswith("".join(pieces))


def _absorb_text(node: Node, key: str, old: Any, new: str, grow: bool) -> None:
    if isinstance(old, Items):
        # Mistral's reasoning models stream a list of blocks first, and the answer as plain strings after it.
        if new:
            _extend(old, [_block(new)], grow)
    elif not grow:
        if new or old is None:
            node[key] = new
    elif key in _CONSTANT or key.endswith(_CONSTANT_ENDINGS):
        if not old:
            node[key] = new
    elif isinstance(old, Text):
        old.append(new)
    else:
        node[key] = Text((new,))


def _extend(items: Items, entries: list[Any], grow: bool) -> None:
    for entry in entries:
        if not isinstance(entry, dict):
            items.append(entry)
            continue
        index, kind = entry.get("index"), entry.get("type")
        kind = kind if isinstance(kind, str) else None
        home: Optional[Node] = None
        if type(index) is int:
            home = items.homes.get((index, kind))
            if home is None or items.homes[index, None] is not home or _is_another(home, entry):
                home = Node()
                items.append(home)
            items.homes[index, kind] = items.homes[index, None] = home
        elif grow and kind in _BLOCKS:
            last = items[-1] if items else None
            if isinstance(last, Node) and last.get("type") == kind and not last.get("signature"):
                home = last
            else:
                home = Node()
                items.append(home)
        if home is None:
            items.append(entry)
        else:
            absorb(home, entry, grow=grow)


def _is_another(home: Node, entry: Mapping[str, Any]) -> bool:
    signature = home.get("signature")
    if signature and entry.get("signature") != signature and any(entry.get(key) for key in _GROWS):
        return True
    for key, new in entry.items():
        old = home.get(key)
        if isinstance(new, dict) and isinstance(old, Node):
            if _is_another(old, new):
                return True
        elif key in _IDENTITY and new and old and new != old:
            return True
    return False


def _block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _text(key: str, pieces: Text, deltas: int) -> str:
    if key not in _GROWS and deltas > 1 and pieces.count(pieces[0]) == deltas:
        return pieces[0]
    return _grown(pieces) or "".join(pieces)


def _grown(pieces: Text) -> Optional[str]:
    """The last piece, if each is all of the text so far, as DashScope's coding plan streams it; None if that may be
    chance: rules of a table come as "-", "--", "----"."""
    if len(pieces) < 4:
        return None
    parts = [piece for piece in pieces if piece]
    if len(set(parts)) < 4 or len(set(parts[-1])) < 2:
        return None
    return parts[-1] if all(longer.startswith(one) for one, longer in zip(parts, parts[1:])) else None
