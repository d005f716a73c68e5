"""The members of a JSON object with the exact text of each, to edit it without encoding it anew."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, NoReturn

_SPACE = re.compile(r"[ \t\r\n]*")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON.")


_LENIENT = json.JSONDecoder()
_STRICT = json.JSONDecoder(parse_constant=_refuse)


class Member(NamedTuple):
    """One `"key": value` of an object: decoded, and as the texts it was written in."""

    key: str
    value: Any
    text: str
    value_text: str


def members(text: str, *, strict: bool = False) -> list[Member]:
    """Return the members of the object that `text` holds, in order, duplicates included.

    `strict` refuses NaN and the infinities, at any depth; Python's own decoder takes them. Raises
    `ValueError` when the text is no single JSON object, and `RecursionError` when it is nested too deeply.
    """
    decode = (_STRICT if strict else _LENIENT).raw_decode
    found: list[Member] = []
    at = _past(text, _space(text, 0), "{")
    if text.startswith("}", at):
        at += 1
    else:
        while True:
            start = at
            if not text.startswith('"', at):
                raise ValueError("An object key is expected.")
            key, at = decode(text, at)
            begin = _past(text, _space(text, at), ":")
            value, end = decode(text, begin)
            found.append(Member(key, value, text[start:end], text[begin:end]))
            at = _space(text, end)
            if text.startswith("}", at):
                at += 1
                break
            at = _past(text, at, ",")
    if _space(text, at) != len(text):
        raise ValueError("Something follows the object.")
    return found


def object_of(parts: list[str]) -> str:
    """Return the text of the object whose members have these texts."""
    return "{" + ",".join(parts) + "}"


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _past(text: str, at: int, mark: str) -> int:
    if not text.startswith(mark, at):
        raise ValueError(f"{mark!r} is expected.")
    return _space(text, at + 1)
