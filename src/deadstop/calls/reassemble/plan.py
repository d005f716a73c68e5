"""Which requests can be streamed inside, and the request that is sent in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Optional

from deadstop.calls.reassemble.answer import Assembler
from deadstop.calls.reassemble.chat import ChatAssembler
from deadstop.calls.reassemble.jsontext import members, object_of
from deadstop.calls.reassemble.names import tools_in
from deadstop.calls.reassemble.responses import ResponseAssembler

Kind = Literal["chat", "response"]


@dataclass(frozen=True)
class Plan:
    """A streamed request that stands in for one that was not, and how its answer is put together."""

    body: bytes
    kind: Kind
    model: str
    choices: int = 1
    tools: frozenset[str] = frozenset()

    def assembler(self) -> Assembler:
        """Return a fresh assembler; each attempt of the request needs its own."""
        return ChatAssembler(self.choices, self.tools) if self.kind == "chat" else ResponseAssembler()


def plan(method: str, path: str, content_type: str, body: bytes, *, stream_options: bool = True) -> Optional[Plan]:
    """Return the plan for streaming this request inside, or None when it must be sent as it is.

    Planned are POSTs of a JSON object to `.../chat/completions` and `.../responses` that do not ask for a
    stream. Left alone are background responses (they are remote runs), audio other than pcm16 (the only
    format that OpenAI streams), requests that carry stream options of their own, and every body that could be
    read in two ways: not UTF-8, not strictly JSON, or with a key twice.

    The members of the body keep their order and their exact text; `stream` and, for chat, `stream_options`
    (which asks for the usage; leave it out with `stream_options=False`) are added at the end.
    """
    kind = _kind(method, path)
    if kind is None or not _is_json(content_type):
        return None
    try:
        found = members(body.decode("utf-8"), strict=True)
    except (ValueError, RecursionError):
        return None
    fields = {member.key: member.value for member in found}
    if len(fields) != len(found) or not _eligible(kind, fields):
        return None
    parts: list[str] = [m.text for m in found if m.key not in ("stream", "stream_options")]
    parts.append('"stream":true')
    if kind == "chat" and stream_options:
        parts.append('"stream_options":{"include_usage":true}')
    choices = fields.get("n")
    return Plan(
        body=object_of(parts).encode("utf-8"),
        kind=kind,
        model=_model(fields, path),
        choices=choices if type(choices) is int and choices > 0 else 1,
        tools=tools_in(fields) if kind == "chat" else frozenset(),
    )


_SEALS = ("digest", "content-md5", "content-sha256", "signature", "hmac")


def is_signed(headers: Any) -> bool:
    """Whether a header vouches for the body (RFC 9421, RFC 9530, AWS SigV4, and what people sign with by hand)."""
    scheme = headers.get("authorization", "").partition(" ")[0].lower()
    if any(seal in scheme for seal in ("signature", "hmac")):  # not Digest: that one leaves the body out
        return True
    return any(seal in name.lower() for name in headers for seal in _SEALS)


def _kind(method: str, path: str) -> Optional[Kind]:
    path = path.partition("?")[0].rstrip("/")
    if method.upper() != "POST":
        return None
    if path.endswith("/chat/completions"):
        return "chat"
    return "response" if path.endswith("/responses") else None


def _is_json(content_type: str) -> bool:
    media, _, parameters = content_type.lower().partition(";")
    media = media.strip()
    charset = parameters.partition("charset=")[2].partition(";")[0].strip(' "')
    return (media == "application/json" or media.endswith("+json")) and charset in ("", "utf-8", "utf8")


def _eligible(kind: Kind, fields: dict[str, Any]) -> bool:
    if not _is_off(fields, "stream") or fields.get("stream_options") is not None:
        return False
    if kind == "response":
        return _is_off(fields, "background")
    audio = fields.get("audio")
    return audio is None or (isinstance(audio, dict) and audio.get("format") == "pcm16")


def _is_off(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    return value is None or value is False


def _model(fields: dict[str, Any], path: str) -> str:
    model = fields.get("model")
    if isinstance(model, str) and model:
        return model
    # Azure's older paths name the deployment, and the body may then leave the model out.
    return path.partition("/deployments/")[2].partition("/")[0]
