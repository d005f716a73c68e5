"""What the fake server says, before anybody decides how it is written on the wire. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

_TOKEN = re.compile(r"\s*\S{1,8}|\s+")
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class Piece(NamedTuple):
    """One token of an answer.

    `kind` is one of reasoning, text, refusal, tool (the call itself, its name), arguments, transcript, audio.
    `call` says which tool call is meant.
    """

    kind: str
    value: str
    call: int = 0


class Event(NamedTuple):
    """One server-sent event: its JSON, how many tokens it carries (0 or 1), and its `event:` name."""

    data: dict[str, Any]
    tokens: int = 0
    name: str | None = None


class Stamp(NamedTuple):
    """What a server adds on its own: the number that its ids are made of, and the time (unix seconds)."""

    serial: int = 1
    created: int = 1_700_000_000


STAMP = Stamp()


@dataclass(frozen=True)
class ToolCall:
    """One function call that the model asks for; `arguments` is the JSON text."""

    name: str
    arguments: str = "{}"
    id: str | None = None


@dataclass(frozen=True)
class Audio:
    """Spoken output in base64; its pieces may be joined as text or decoded one by one."""

    data: str
    transcript: str = ""
    expires_at: int = 1_700_003_600


@dataclass(frozen=True)
class Extra:
    """Fields that the OpenAI schema does not know, as other servers send them.

    In a stream `message` comes once, in a choice's first delta; `choice` once, in its last chunk; `top` in
    every chunk.
    """

    message: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)
    top: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One scripted answer. The same Reply is rendered whole and as a stream, and both say the same.

    `tokens` gives the text piece by piece; `text` is cut into pieces here. A Reply with nothing to say is
    filled by the server (`filled`). `finish_reason` is derived unless given: `length` when the request's
    limit cut the answer, `tool_calls` when there are some, else `stop`. `logprobs=True` sends them unasked; a
    request that asks gets them too. `usage=False` is a server that never reports usage.
    """

    text: str | None = None
    tokens: tuple[str, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str | None = None
    logprobs: bool = False
    audio: Audio | None = None
    reasoning_content: str | None = None
    extra: Extra = field(default_factory=Extra)
    finish_reason: str | None = None
    usage: bool = True
    system_fingerprint: str | None = "fp_fake"
    service_tier: str | None = None

    @property
    def has_text(self) -> bool:
        return self.text is not None or self.tokens is not None

    def filled(self, tokens: int) -> Reply:
        """This reply, or when it holds no content, the same with `tokens` tokens of filler text."""
        said = (self.text, self.tokens, self.refusal, self.reasoning_content, self.audio)
        if self.tool_calls or any(part is not None for part in said):
            return self
        return dataclasses.replace(self, tokens=filler(tokens))

    def pieces(self, limit: int | None = None, choice: int = 0) -> list[Piece]:
        """The tokens of choice number `choice`, in order, at most `limit` of them.

        Choices after the first start with a token `#n `, so that mixing up two of them shows.
        """
        every = self._pieces
        if choice and self.has_text:
            at = len(split(self.reasoning_content))
            every = (*every[:at], Piece("text", f"#{choice} "), *every[at:])
        return list(every if limit is None else every[: max(0, limit)])

    def count(self, limit: int | None = None, choice: int = 0) -> int:
        """How many `pieces` there are."""
        every = len(self._pieces) + (1 if choice and self.has_text else 0)
        return every if limit is None else min(every, max(0, limit))

    @cached_property  # or each request cut a long answer up anew, and nobody watched its peer meanwhile
    def _pieces(self) -> tuple[Piece, ...]:
        return tuple(self._cut_up())

    def _cut_up(self) -> Iterator[Piece]:
        yield from (Piece("reasoning", part) for part in split(self.reasoning_content))
        text = self.tokens if self.tokens is not None else split(self.text)
        yield from (Piece("text", part) for part in text)
        yield from (Piece("refusal", part) for part in split(self.refusal))
        for index, call in enumerate(self.tool_calls):
            yield Piece("tool", call.name, index)
            yield from (Piece("arguments", part, index) for part in split(call.arguments))
        if self.audio is not None:
            yield from (Piece("transcript", part) for part in split(self.audio.transcript))
            data = self.audio.data
            yield from (Piece("audio", data[at : at + 16]) for at in range(0, len(data), 16))

    def finish(self, cut: bool) -> str:
        """Why the answer ended, in the words of chat completions."""
        if cut:
            return "length"
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")

    def is_cut(self, limit: int | None, choice: int = 0) -> bool:
        """Whether a limit of `limit` tokens leaves some of the answer out."""
        return self.count(limit, choice) < self.count(None, choice)


@lru_cache(maxsize=64)
def filler(tokens: int) -> tuple[str, ...]:
    """`tokens` numbered tokens that mean nothing."""
    return tuple(f"t{number} " for number in range(tokens))


def split(text: str | None) -> list[str]:
    """The token-like pieces of a text; joined they are the text again."""
    return _TOKEN.findall(text) if text else []


def joined(pieces: list[Piece], kind: str, call: int = 0) -> str:
    """All that the pieces of one kind say."""
    return "".join(piece.value for piece in pieces if piece.kind == kind and piece.call == call)


def limit_of(body: Mapping[str, Any]) -> int | None:
    """How many tokens the request allows per choice, if it says."""
    limits = [body[name] for name in _LIMITS if isinstance(body.get(name), int)]
    return min(limits) if limits else None


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """A stable, made-up count of what was asked: a quarter of its characters."""
    asked = body.get("messages", body.get("input", body.get("prompt", "")))
    return len(str(asked)) // 4 + 1
