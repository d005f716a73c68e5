"""Which path is answered how. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable

from deadstop.testing import render_chat, render_messages, render_other, render_responses, render_runs
from deadstop.testing.reply import Event, Reply, Stamp
from deadstop.testing.sse import DONE

Body = Mapping[str, Any]
_PREFIX = re.compile(r"^(?:/openai/deployments/(?P<deployment>[^/]+)|/openai/v1|/openai|/v1)?/(?P<rest>.*)$")


@dataclass(frozen=True)
class Shape:
    """How one API says a Reply: whole, as events, how many tokens of work it is, and what ends its stream."""

    whole: Callable[[Reply, Body, Stamp], dict[str, Any]]
    events: Callable[[Reply, Body, Stamp], Iterable[Event]]
    tokens: Callable[[Reply, Body], int]
    done: bytes = b""


_GENERATING = {
    "chat/completions": Shape(render_chat.completion, render_chat.chunks, render_chat.token_count, DONE),
    "responses": Shape(render_responses.response, render_responses.events, render_responses.token_count),
    "messages": Shape(render_messages.message, render_messages.events, render_messages.token_count),
    "completions": Shape(render_other.text_completion, render_other.text_chunks, render_other.text_tokens, DONE),
}


def _at_once(render: Callable[[Body], dict[str, Any]]) -> Shape:
    return Shape(lambda reply, body, stamp: render(body), lambda reply, body, stamp: (), lambda reply, body: 0)


AT_ONCE = _at_once(lambda body: {})
"""An answer that takes no work."""


_THREAD = Shape(
    lambda reply, body, stamp: render_runs.thread(f"thread_fake{stamp.serial}"),
    lambda reply, body, stamp: (),
    lambda reply, body: 0,
)


def find(method: str, path: str) -> Shape | None:
    """The shape of the answer, or None for a path that this server does not know."""
    match = _PREFIX.match(path)
    rest = match["rest"].strip("/") if match else ""
    if (method, rest) == ("POST", "threads"):
        return _THREAD
    if method == "POST":
        return _at_once(render_other.embeddings) if rest == "embeddings" else _GENERATING.get(rest)
    if method == "GET" and rest == "models":
        return _at_once(lambda body: render_other.models())
    if method == "GET" and rest.startswith("models/"):
        return _at_once(lambda body: render_other.model(rest[len("models/") :]))
    return None


def streams(shape: Shape) -> bool:
    """Whether this API can stream."""
    return shape in _GENERATING.values()


def model_of(path: str, body: Any) -> str | None:
    """The model that a request names: in its body, or as Azure does in its path."""
    named = body.get("model") if isinstance(body, dict) else None
    if isinstance(named, str):
        return named
    match = _PREFIX.match(path)
    return match["deployment"] if match else None
