"""Whether an error is about the stream that we asked for, or the user's own."""

from __future__ import annotations

import re
from enum import Enum

__all__ = ["REFUSE", "Refusal", "refusal"]

REFUSE = frozenset({400, 403, 404, 405, 406, 415, 422, 501})
"""The statuses that a refusal can have."""

_STREAM = re.compile(rb"(?<!up)(?<!down)stream|include_?usage", re.IGNORECASE)  # "upstream" is no refusal
_OPTIONS = re.compile(rb"stream_?options|include_?usage", re.IGNORECASE)

_PLACE = re.compile(rb"loc\\*[\"']\s*:\s*[\[(]([^\])]*)[\])]")
"""Where a validation error of pydantic is: as JSON (FastAPI), or as Python writes it, in a message (vLLM)."""


class Refusal(Enum):
    """What an error refuses, and so what to try next."""

    NOTHING = "the user's own error"
    OPTIONS = "the stream options"
    STREAM = "the stream"
    UNCLEAR = "the stream or its options"


def refusal(status: int, text: bytes) -> Refusal:
    """What an answer with this status and body refuses.

    Only an error that names the stream counts, so that the user's own is passed on after a single request. One that
    is about other fields but echoes ours is counted as a refusal of the stream: the plain call's own error has no
    trace of what the user never sent.
    """
    if status not in REFUSE or not _STREAM.search(text):
        return Refusal.NOTHING
    places = b" ".join(_PLACE.findall(text))
    if _OPTIONS.search(places):
        return Refusal.OPTIONS
    if places.replace(b"body", b"").strip(b" ,\"'\\"):
        return Refusal.STREAM
    if status == 403:
        # What the key may not do: IAM has streaming as an action of its own (bedrock:InvokeModelWithResponseStream).
        return Refusal.OPTIONS if _OPTIONS.search(text) else Refusal.STREAM
    return Refusal.UNCLEAR
