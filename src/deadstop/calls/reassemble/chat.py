"""The chunks of a streamed chat completion back to the completion."""

from __future__ import annotations

import base64
import json
import re
from typing import Any, Optional

from deadstop.calls.reassemble.answer import Assembled, Assembler, Truncated, error_in, told_apart
from deadstop.calls.reassemble.merge import Node, Text, absorb, begins_like, overlay, settle
from deadstop.calls.reassemble.names import grown
from deadstop.calls.reassemble.toolcalls import ToolCalls

_SEVERITIES = ("safe", "low", "medium", "high")
_BASE64_RUN = re.compile(r"[^=]+={0,2}")


class ChatAssembler(Assembler):
    """Adds up the chunks of one chat completion.

    Complete at `[DONE]`, or when the stream ends after each of the `choices` asked for has its finish reason.

    Top-level fields are kept under their own names, `obfuscation` (padding of the stream) excepted. A text,
    and `created`, is the first that is not empty, as servers repeat it; Azure's chunks with filter results
    leave it empty. Anything else is the latest, since it counts up (`usage`, llama.cpp's `timings`,
    Perplexity's citations), or comes once (`moderation`, Azure's `prompt_filter_results`).

    A field that no chunk carries is not made up, except for those that every completion has: `role`,
    `content` and `finish_reason`. Content is null when it stayed empty beside tool calls, a refusal or audio:
    most servers open each stream with an empty content, and answer null when not streamed.
    """

    def __init__(self, choices: int = 1, tools: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._wanted = choices
        self._tools = tools
        self._head: dict[str, Any] = {}
        self._latest: dict[str, Any] = {}
        self._usage: Any = None
        self._has_usage = False
        self._choices: dict[int, _Choice] = {}

    def usage(self) -> Optional[dict[str, Any]]:
        return dict(self._usage) if isinstance(self._usage, dict) else None

    def _take(self, name: bytes, data: bytes) -> bool:
        if data.lstrip().startswith(b"[DONE]"):
            return True
        text = data.decode("utf-8", "replace")
        try:
            chunk = json.loads(text)
        except (ValueError, RecursionError):
            if name not in (b"", b"message", b"error"):
                return False  # a gateway's own event (`event: ping` with the time of day) is no part of the answer
            if b"[DONE]".startswith(data.strip()):
                return False  # the mark, cut off
            return self._fail(text) if name == b"error" else self._break()
        if error_in(chunk) is not None or (name == b"error" and isinstance(chunk, dict)):
            return self._fail(chunk)
        if not isinstance(chunk, dict):
            return False
        error = None if chunk.get("choices") else told_apart(chunk)
        if error is not None:
            return self._fail(error)
        if "usage" in chunk:
            self._has_usage = True
            self._usage = chunk.pop("usage") or self._usage
        elif chunk.get("choices") is None:
            return False
        choices = chunk.pop("choices", None)
        if isinstance(choices, list):
            for place, choice in enumerate(choices):
                if isinstance(choice, dict):
                    self._take_choice(choice, place)
        chunk.pop("obfuscation", None)
        if chunk != self._latest:
            self._latest = chunk
            self._take_head(chunk)
        return False

    def _take_head(self, chunk: dict[str, Any]) -> None:
        head = self._head
        for key, value in chunk.items():
            known = head.get(key)
            if not isinstance(value, str) and key != "created":
                head[key] = overlay(known, value)
            elif not known:
                head[key] = value

    def _take_choice(self, choice: dict[str, Any], place: int) -> None:
        index = choice.pop("index", None)
        if type(index) is not int:
            index = place
        mine = self._choices.get(index)
        if mine is None:
            mine = self._choices[index] = _Choice(self._tools)
        usage = choice.pop("usage", None)
        if usage:
            # Moonshot reports the usage inside the choice, when streaming only.
            self._has_usage = True
            self._usage = usage
        mine.take(choice)

    def _finished(self) -> int:
        return sum(choice.finish_reason is not None for choice in self._choices.values())

    def _ended(self) -> bool:
        return bool(self._choices) and self._finished() == len(self._choices) >= self._wanted

    def _has_all(self) -> bool:
        # A usage that is null so far was to follow; a server that names none has none to tell.
        return self._ended() and not (self._has_usage and not self._usage)

    def _assemble(self) -> Assembled:
        if not self._complete and not self._ended():
            raise Truncated(
                f"The server ended the stream after {self._count} events, before the chat completion was complete "
                f"({self._finished()} of {max(self._wanted, len(self._choices))} choices finished)."
            )
        if not self._head and not self._choices and not self._has_usage:
            raise Truncated("The server ended the stream without sending any part of a chat completion.")
        body = {
            **self._head,
            "object": "chat.completion",
            "choices": [{"index": i, **self._choices[i].result()} for i in sorted(self._choices)],
        }
        if self._has_usage:
            body["usage"] = self._usage
        # ASCII, because a surrogate pair may have come in two halves and only meets as two escapes.
        return Assembled(200, json.dumps(body, separators=(",", ":")).encode("ascii"))


class _Choice:
    """One choice, growing."""

    def __init__(self, tools: frozenset[str]) -> None:
        self.finish_reason: Optional[str] = None
        self._tools = tools
        self._message = Node()
        self._calls: Optional[ToolCalls] = None
        self._fields = Node()
        self._filter: Any = None
        self._quiet: dict[str, Any] = {}
        self._by_delta = False

    def take(self, choice: dict[str, Any]) -> None:
        """Take what one chunk says of this choice; what is left of `choice` is the caller's no more."""
        delta = choice.pop("delta", None)
        message = choice.pop("message", None)
        if delta:
            if not self._by_delta:
                self._by_delta = isinstance(delta, dict) and any(delta[key] for key in delta if key != "role")
        elif isinstance(message, dict):
            delta = message
            self._start_over(message)
        if isinstance(delta, dict) and delta:
            fragments = delta.get("tool_calls")
            if isinstance(fragments, list):
                if self._calls is None:
                    self._calls = ToolCalls(self._tools)
                self._calls.take(fragments)
                # An empty list holds the place of the calls among the fields of the message.
                delta["tool_calls"] = []
            legacy = delta.get("function_call")
            if isinstance(legacy, dict):
                self._name(legacy)
            absorb(self._message, delta)
        reason = choice.pop("finish_reason", None)
        # Dynamo, SGLang and gateways say "stop" once more after "tool_calls": it takes nothing back.
        if reason and (self.finish_reason is None or reason != "stop"):
            self.finish_reason = reason
        if choice and choice != self._quiet:
            self._take_fields(choice)

    def _start_over(self, message: dict[str, Any]) -> None:
        """Forget what `message` has all of: a message is the answer so far, not a piece of it, if it begins like it.

        Or if deltas have told it; should the message have it otherwise, as without the white space around it, a text
        of theirs holds.
        """
        for key, value in list(message.items()):
            old = self._message.get(key)
            whole = isinstance(value, list) or (isinstance(value, dict) and self._by_delta)
            if (whole and value) or (isinstance(old, Text) and begins_like(value, old)):
                self._message.pop(key, None)
                if key == "tool_calls":
                    self._calls = None
            elif self._by_delta and isinstance(old, Text):
                del message[key]

    def _name(self, fragment: dict[str, Any]) -> None:
        known = self._message.get("function_call")
        if isinstance(known, Node) and known.get("name"):
            arguments = known.get("arguments")
            begun = isinstance(arguments, Text) and any(arguments)
            known["name"] = grown(known["name"], fragment.get("name"), begun, self._tools)

    def _take_fields(self, fields: dict[str, Any]) -> None:
        if "content_filter_results" in fields:
            self._filter = _worst(self._filter, fields["content_filter_results"])
            fields["content_filter_results"] = None
        # Azure's offsets say which part of the stream a filter result is about.
        fields.pop("content_filter_offsets", None)
        absorb(self._fields, fields, grow=False)
        if not any(value is not None for value in fields.values()):
            self._quiet = fields

    def result(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None, **settle(self._message)}
        message["role"] = message["role"] or "assistant"
        if self._calls is not None:
            message["tool_calls"] = self._calls.result()
        call = message.get("function_call")
        if isinstance(call, dict):
            call.setdefault("arguments", "")
        audio = message.get("audio")
        if isinstance(audio, dict) and isinstance(audio.get("data"), str):
            audio["data"] = _join_base64(audio["data"])
        if message["content"] == "" and any(
            message.get(key) for key in ("tool_calls", "function_call", "refusal", "audio")
        ):
            message["content"] = None
        fields = settle(self._fields)
        if "content_filter_results" in fields:
            fields["content_filter_results"] = self._filter
        return {"message": message, **fields, "finish_reason": self.finish_reason}


def _worst(old: Any, new: Any) -> Any:
    """Merge two content filter results: each is about a part of the text; the worst is about the whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _worst(old.get(key), value) for key, value in new.items()}}
    if old is True or new is None:
        return old
    if old in _SEVERITIES and new in _SEVERITIES:
        return max(old, new, key=_SEVERITIES.index)
    return new


def _join_base64(text: str) -> str:
    """Return as one base64 text what pieces, each perhaps padded, make when put side by side."""
    runs: list[str] = _BASE64_RUN.findall(text)
    if len(runs) < 2:
        return text
    try:
        whole = b"".join(base64.b64decode(run, validate=True) for run in runs)
    except ValueError:
        return text
    return base64.b64encode(whole).decode("ascii")
