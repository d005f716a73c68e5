"""The events of a streamed response back to the response object."""

from __future__ import annotations

import json
import re
from typing import Any, Optional

from deadstop.calls.reassemble.answer import Assembled, Assembler, Truncated, error_in
from deadstop.calls.reassemble.jsontext import Member, members, object_of
from deadstop.calls.reassemble.pieces import is_piece, is_whole, restored, without
from deadstop.calls.reassemble.sse import Event

_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_GIVES_OUTPUT = frozenset({"response.completed", "response.incomplete"})
_ITEM = "response.output_item.done"

_NAMES = frozenset(kind.encode() for kind in (*_TERMINAL, _ITEM, "error"))  # by those that say it in the event's name
# Most events are deltas and of no use here: they are told apart without being parsed.
_WANTED = re.compile(rb'"(?:response\.(?:completed|incomplete|failed|cancelled|output_item\.done)|error)"')


class ResponseAssembler(Assembler):
    """Waits for the terminal event; its `response` is the body, cut out as text and so exact to the digit.

    Some servers (the ChatGPT backend, several gateways) end with an empty or missing `output` although they
    streamed the items: it is then filled from the `response.output_item.done` events, in the order of their
    `output_index`. Where even those lack the text or the arguments, the deltas have them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._items: dict[int, str] = {}
        self._pieces: list[Event] = []
        self._gives_output = False
        self._response: Optional[str] = None

    def usage(self) -> Optional[dict[str, Any]]:
        usage = None if self._response is None else json.loads(self._response).get("usage")
        return usage if isinstance(usage, dict) else None

    def _take(self, name: bytes, data: bytes) -> bool:
        if name not in _NAMES and not _WANTED.search(data):
            if is_piece(name) or is_piece(data):
                self._pieces.append((name, data))
            return False
        text = data.decode("utf-8", "replace")
        try:
            found = members(text)
        except (ValueError, RecursionError):
            listed = _list(text)
            if error_in(listed) is not None:
                return self._fail(listed)
            if name == b"error":
                return self._fail(text)
            return self._break() if text.lstrip().startswith("{") else False
        event = {member.key: member.value for member in found}
        kind = event.get("type") or name.decode("utf-8", "replace")
        if kind in _TERMINAL:
            self._response = _slice(found, "response")
            self._gives_output = kind in _GIVES_OUTPUT
            return True
        if kind == _ITEM:
            item = _slice(found, "item")
            if item is not None:
                index = event.get("output_index")
                self._items[index if isinstance(index, int) else len(self._items)] = item
                if is_whole(event["item"]):  # what its pieces told is of no use any more
                    self._pieces = without(event["item"], self._pieces)
            return False
        # An event of the response may speak of an error that does not end it; one without such a type does.
        if is_piece(str(kind).encode()):
            self._pieces.append((name, data))
            return False
        if kind in ("error", "response.error") or (event.get("error") and not str(kind).startswith("response.")):
            return self._fail(event)
        return False

    def _assemble(self) -> Assembled:
        if self._response is None:
            raise Truncated(
                f"The server ended the stream after {self._count} events, before the response was complete."
            )
        found = members(self._response)
        output = next((member.value for member in reversed(found) if member.key == "output"), None)
        items = self._items
        if output:
            items = {index: json.dumps(item) for index, item in enumerate(output)} if isinstance(output, list) else {}
        more = restored(items, self._pieces, bool(output)) if self._gives_output and self._pieces else {}
        text = self._response
        if more or (items and not output):
            items = {**items, **more}
            text = _with_output(found, [items[index] for index in sorted(items)])
        return Assembled(200, text.encode("utf-8"))


def _list(text: str) -> list[Any]:
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else []
    except (ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []


def _slice(found: list[Member], key: str) -> Optional[str]:
    texts = [member.value_text for member in found if member.key == key]
    return texts[-1] if texts and texts[-1].startswith("{") else None


def _with_output(found: list[Member], items: list[str]) -> str:
    output = '"output":[' + ",".join(items) + "]"
    parts: list[str] = [output if member.key == "output" else member.text for member in found]
    if not any(member.key == "output" for member in found):
        parts.append(output)
    return object_of(parts)
