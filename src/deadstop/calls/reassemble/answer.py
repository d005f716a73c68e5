"""What an assembler is, what it returns, and what a failure in mid-stream becomes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional, Union

from deadstop.calls.reassemble.sse import BARE, Event, EventStream

_STATUS_FIELDS = ("status_code", "status", "http_status", "code")
_FRAMING = ("sequence_number", "object")


class Truncated(Exception):
    """The stream ended, or stopped making sense, before the answer was complete."""


@dataclass(frozen=True)
class Assembled:
    """The answer as if the call had not been streamed: its HTTP status and its JSON body."""

    status: int
    body: bytes


class Assembler(ABC):
    """Collects one streamed answer. Feed it until it returns true or the stream ends, then finish it once."""

    def __init__(self) -> None:
        self._events = EventStream()
        self._complete = False
        self._count = 0
        self._failure: Optional[Assembled] = None
        self._plain: Optional[Assembled] = None
        self._broken = ""

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes of the stream, content-decoded; return true once the answer is complete.

        What follows is ignored. Never raises on what the server sent: `finish` tells.
        """
        if not self._complete:
            self._read(self._events.feed(chunk))
        return self._complete

    @property
    def kept_alive(self) -> bool:
        """Whether the server keeps those who wait for it alive."""
        return self._events.kept_alive

    def usage(self) -> Optional[dict[str, Any]]:
        """Return the usage as far as the stream has told it; None while it has not."""
        return None

    def finish(self) -> Assembled:
        """Return the answer. Raises `Truncated` when the stream broke off before it was complete."""
        if not self._complete:
            self._read(self._events.end())
        if self._failure is not None:
            return self._failure
        if self._plain is not None:
            return self._plain
        if self._broken:
            raise Truncated(self._broken)
        try:
            return self._assemble()
        except RecursionError:
            raise Truncated("The answer is nested too deeply to be put together.") from None

    def is_whole(self) -> bool:
        """Whether all of the answer is known to be there, though the connection broke off. Feed nothing after it."""
        if not self._complete:
            self._read(self._events.end())
        return not self._broken and (self._complete or self._has_all())

    def _has_all(self) -> bool:
        """Whether nothing is missing that has no end mark."""
        return False

    def _read(self, events: list[Event]) -> None:
        try:
            for name, data in _apart(events):
                self._count += 1
                if self._take_bare(data) if name == BARE else self._take(name, data):
                    self._complete = True
                    return
        except RecursionError:
            self._complete = self._break()

    def _take_bare(self, data: bytes) -> bool:
        """Take what came without `data:`: an error, or the answer itself from a server that only says it streams."""
        try:
            value = json.loads(data)
        except ValueError:
            return self._break() if b'"error"' in data else False
        if error_in(value) is not None:
            return self._fail(value)
        if self._count == 1 and isinstance(value, dict) and value.get("object") in ("chat.completion", "response"):
            self._plain = Assembled(200, data)
        return self._plain is not None

    @abstractmethod
    def _take(self, name: bytes, data: bytes) -> bool:
        """Take one event; return true when nothing more is needed."""

    @abstractmethod
    def _assemble(self) -> Assembled:
        """Put the answer together, or raise `Truncated`."""

    def _fail(self, event: Union[str, list[Any], dict[str, Any]]) -> bool:
        self._failure = failure(event)
        return True

    def _break(self) -> bool:
        self._broken = (
            f"Event {self._count} of the stream is not JSON that can be read, so the answer cannot be put "
            "together; the connection probably broke off."
        )
        return True


def _apart(events: list[Event]) -> Iterator[Event]:
    """The events, also where a server ends each with a single newline, so that several come as the lines of one."""
    for name, data in events:
        lines = data.split(b"\n") if b"\n" in data and name != BARE else []
        # Inside of one JSON there would be a comma between a line that ends so and one that begins so.
        begun = lines and all(line.startswith((b"{", b"[")) for line in lines)
        if begun and all(line.rstrip().endswith((b"}", b"]")) for line in lines[:-1]):
            yield from ((b"", line) for line in lines)
        else:
            yield name, data


def error_in(value: Any) -> Optional[dict[str, Any]]:
    """Return the object that says that `value`, an answer or a part of one, is an error; None when it is none.

    Google's endpoints put it into a list, also those that speak OpenAI's language. A response that failed is none: it
    has its error as one of its fields.
    """
    for each in value if isinstance(value, list) else (value,):
        kind = each.get("object") if isinstance(each, dict) else "response"
        if kind != "response" and (kind == "error" or each.get("error")):
            found: dict[str, Any] = each
            return found
    return None


def is_error(body: bytes) -> bool:
    """Whether a body that is no stream is an error."""
    return error_in(_parsed(body)) is not None


def is_answer(body: bytes) -> bool:
    """Whether a body that is no stream is the answer that was asked for: not an error, and not a gateway's own page."""
    value = _parsed(body)
    given = isinstance(value, dict) and (value.get("choices") or value.get("output") is not None)
    return bool(given) and error_in(value) is None


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def told_apart(chunk: dict[str, Any]) -> Optional[dict[str, Any]]:
    """Return the error that a chunk without choices tells in fields of its own; None when it tells none.

    DeepInfra has `error_type` and `error_message`, iFlytek a `code` that is not 0 and a `message`.
    """
    error = {key[6:]: value for key, value in chunk.items() if key.startswith("error_") and value}
    if "message" not in error:
        code, text = chunk.get("code"), chunk.get("message")
        if type(code) is not int or code in (0, 200) or not text or not isinstance(text, str):
            return None
        error = {"code": code, "message": text}
    return {**chunk, "error": error}


def failure(event: Union[str, list[Any], dict[str, Any]]) -> Assembled:
    """Return the answer for an error that came inside the stream, where no status line could carry it.

    The status is the error's own when it names one between 400 and 599 (as a number or in digits), else that which its
    type or code stands for (so that the SDK does not retry what can't succeed), else 500.
    The error is wrapped (`{"error": {...}}`), flat (`{"object": "error", "message": ...}`, older vLLM and
    SGLang; the `error` event of the Responses API) or bare text.
    """
    if isinstance(event, list):
        event = error_in(event) or {}
    outer = {"error": event} if isinstance(event, str) else event
    error = outer.get("error")
    if isinstance(error, str) and error:
        error = {"message": error}
    if not isinstance(error, dict) or not error:
        error = {key: value for key, value in outer.items() if key not in _FRAMING and key != "error"}
        if error.get("type") == "error":
            del error["type"]
    status = _status(error) or _status(outer) or _status_by_name(error)
    return Assembled(status, json.dumps({"error": error}, separators=(",", ":")).encode("ascii"))


def _status(error: dict[str, Any]) -> Optional[int]:
    for field in _STATUS_FIELDS:
        value = error.get(field)
        if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return None


_STATUSES = {
    "context_length": 400,
    "invalid_request": 400,
    "bad_request": 400,
    "badrequest": 400,
    "invalid_prompt": 400,
    "content_filter": 400,
    "authentication": 401,
    "invalid_api_key": 401,
    "permission": 403,
    "not_found": 404,
    "notfound": 404,
    "insufficient_quota": 429,
    "rate_limit": 429,
    "ratelimit": 429,
    "overloaded": 503,
}
"""What begins the types and codes of errors (OpenAI's, and those of vLLM, SGLang and gateways), in lower case."""


def _status_by_name(error: dict[str, Any]) -> int:
    for field in ("code", "type"):
        name = str(error.get(field) or "").lower()
        for begins, status in _STATUSES.items():
            if name.startswith(begins):
                return status
    return 500
