"""The stream of JetStream that keeps the jobs of a space, as its API is spoken over the bus's own connection.

A subject holds one message at most. Who writes names the number of the message that he replaces, and the server
refuses him if it is another by now: of two who want the same job one gets it, however late a message comes.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable
from typing import Any, Callable, NamedTuple, Optional

__all__ = ["TROUBLE", "Absent", "Ask", "Entry", "Refused", "Stream"]

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
KEPT = 86_400  # seconds: how long an open cancel is worked on; see ``SINCE``

# Numbers of JetStream's errors.
NOT_NEWEST = (10071, 10164)
NOT_THERE = (10037, 10043, 10059)  # no such message, or no such stream
OTHERWISE = 10058  # a stream of that name, with other settings: its administrator's choice

Ask = Callable[..., Awaitable[Optional[bytes]]]
"""``ask(subject, data, headers)``: what came back, None if nobody hears that subject. Raises TimeoutError."""


class Absent(Exception):
    """The server has no JetStream for us."""


class Refused(Exception):
    """The server has one, and does not do what it is asked."""


TROUBLE = (Absent, Refused, asyncio.TimeoutError, ValueError, KeyError, TypeError)
"""What may go wrong with a stream: the last three are answers that nobody understands."""


class Entry(NamedTuple):
    number: int
    subject: str
    data: bytes


class Stream:
    def __init__(self, ask: Ask, space: str) -> None:
        self._ask = ask
        self._name = f"DEADSTOP_{space}"
        self._top = f"deadstop.{space}.job"
        self._made = False

    def subject(self, server: str, key: str = "*") -> str:
        return f"{self._top}.{server}.{key}"

    async def write(self, subject: str, data: bytes, after: int) -> Optional[int]:
        """Write in place of message `after` (0: there is none). Its number; None: something else is there by now."""
        for _ in range(2):
            if not self._made:  # somebody who listens in on everything would have the server say that it is heard
                await self._create()
                self._made = True
            answer = await self._ask(subject, data, {EXPECTED: str(after)})
            if answer is None:  # it was deleted
                self._made = False
                continue
            told = _read(answer)
            if told is None:
                raise Refused("an answer that is none")
            code = _code(told)
            if code in NOT_NEWEST:
                return None
            if code:
                raise _error(told)
            return int(told["seq"])
        raise Absent("no stream takes it")

    async def read(self, number: int, subject: str) -> Optional[Entry]:
        """The first message of that number or a later one."""
        return await self._get({"seq": number, "next_by_subj": subject})

    async def last(self, subject: str) -> Optional[Entry]:
        return await self._get({"last_by_subj": subject})

    async def delete(self, number: int) -> None:
        """Take out that message. One that was replaced meanwhile stays."""
        await self._api("MSG.DELETE", {"seq": number, "no_erase": True})

    async def purge(self, subject: str) -> None:
        """Take out whatever is there."""
        await self._api("PURGE", {"filter": subject})

    async def _get(self, what: dict[str, Any]) -> Optional[Entry]:
        told = await self._api("MSG.GET", what)
        if told is None:
            return None
        found = told["message"]
        return Entry(int(found["seq"]), str(found["subject"]), base64.b64decode(found.get("data", "")))

    async def _create(self) -> None:
        config = {
            "name": self._name,
            "subjects": [f"{self._top}.>"],
            "description": "Cancels that are under way, for other hosts to finish.",
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "max_msgs_per_subject": 1,
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": KEPT * 10**9,
            "num_replicas": 1,
        }
        await self._api("CREATE", config)

    async def _api(self, what: str, asked: dict[str, Any]) -> Optional[dict[str, Any]]:
        """The answer. None: what was asked for is not there."""
        answer = await self._ask(f"$JS.API.STREAM.{what}.{self._name}", json.dumps(asked).encode(), None)
        told = None if answer is None else _read(answer)
        if told is None:
            raise Absent("the server has no JetStream")
        code = _code(told)
        if code in NOT_THERE:
            return None
        if code and code != OTHERWISE:
            raise _error(told)
        return told


def _read(answer: bytes) -> Optional[dict[str, Any]]:
    try:
        told = json.loads(answer)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _code(told: dict[str, Any]) -> int:
    error = told.get("error")
    return int(error.get("err_code") or error.get("code") or 1) if error else 0


def _error(told: dict[str, Any]) -> Exception:
    error = told["error"]
    kind = Absent if error.get("code") == 503 else Refused  # not enabled, for this account; or not now
    return kind(str(error.get("description")))
