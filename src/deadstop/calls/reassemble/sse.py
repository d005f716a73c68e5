"""Bytes to server-sent events, as the HTML standard parses an event stream."""

from __future__ import annotations

import re
from typing import Optional

__all__ = ["BARE", "Event", "EventStream", "is_of_events"]

Event = tuple[bytes, bytes]
"""An event's name (empty when it has none) and its data."""

BARE = b"\n"
"""The name, which none can have, of what is no event: JSON on lines of its own, as servers write that fail midway."""

_FIELDS = (b":", b"data", b"event", b"id:", b"retry:", b"error:")
_PING = b": ping"  # sse-starlette's, which each of its streams has and which tells nothing
_BOM = b"\xef\xbb\xbf"

_BEGINNING = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:data|event|id|retry)?\s?:")
_TELLING = 16
"""How many bytes of a body, without the space around them, say whether it is of events: more than the pattern takes."""


def is_of_events(begun: bytes, *, whole: bool = False) -> Optional[bool]:
    """Whether a body that begins so is a stream of events, whatever its headers say: some servers stream under another
    type, or none. None if more of it has to come, unless this is the `whole`."""
    if not whole and len(begun.strip()) < _TELLING:
        return None
    return _BEGINNING.match(begun) is not None


class EventStream:
    """Splits a stream into events, however its bytes are cut.

    Lines end with CR, LF or CRLF. Comments (the usual keepalive), unknown fields and events without data are
    passed over; an object or a list that stands there without `data:` is handed out as `BARE`. Each byte is
    copied a bounded number of times, so a long line in many small pieces stays linear.
    """

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._after_cr = False
        self._started = False
        self._name = b""
        self._data: list[bytes] = []
        self._bare: list[bytes] = []
        self.kept_alive = False
        """Whether a comment has come that tells the client to wait on."""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completes."""
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if b"\n" not in chunk and b"\r" not in chunk:
            if chunk:
                self._partial.append(chunk)
            return []
        if self._partial:
            self._partial.append(chunk)
            chunk = b"".join(self._partial)
            self._partial.clear()
        lines = chunk.splitlines()
        if chunk.endswith(b"\r"):
            self._after_cr = True
        elif not chunk.endswith(b"\n"):
            self._partial.append(lines.pop())
        return self._read(lines)

    def end(self) -> list[Event]:
        """Return the event that was still open when the stream ended.

        The standard discards it. Some servers end the stream right after the last data line, and what they
        sent is whole; what is not whole does not parse and is judged by whoever reads it.
        """
        lines = [b"".join(self._partial), b""]
        self._partial.clear()
        return self._read(lines if lines[0] else lines[1:])

    def _read(self, lines: list[bytes]) -> list[Event]:
        if not self._started:
            self._started = True
            lines[0] = lines[0].removeprefix(_BOM)
        events: list[Event] = []
        for line in lines:
            if self._bare:
                if line and not line.startswith(_FIELDS):
                    self._bare.append(line)
                    continue
                events.append((BARE, b"\n".join(self._bare)))
                self._bare = []
            if not line:
                if self._data:
                    data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    if data:
                        events.append((self._name, data))
                    self._data = []
                self._name = b""
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
            elif line.lstrip().startswith((b"{", b"[")):
                self._bare.append(line)
            elif line.startswith(b":"):
                self.kept_alive = self.kept_alive or not line.startswith(_PING)
            else:
                field, _, value = line.partition(b":")
                value = value[1:] if value.startswith(b" ") else value
                if field == b"data":
                    self._data.append(value)
                elif field == b"event":
                    self._name = value
                elif field == b"error":
                    # llama.cpp reported a failure in mid-stream as a field of its own until late 2025.
                    self._name = b"error"
                    self._data.append(value)
        return events
