"""What is cancelled, when, and on what kind of server."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from deadstop.testing import faults
from deadstop.testing.faults.base import Fault

__all__ = ["CASES", "Case", "Moment"]


class Moment(Enum):
    """When a call is cancelled."""

    BEFORE_START = "before it starts"
    CONNECTING = "connecting to a full backlog"
    POOL = "waiting for a pool slot"
    HEADERS = "waiting for headers"
    READING = "reading"
    BETWEEN = "between two events"
    BUFFERED = "by itself, with 40 events buffered"
    BACKING_OFF = "backing off after a 429"
    DEADLINE = "by its deadline, reading"
    OVER = "after its end"


@dataclass(frozen=True)
class Case:
    """One call and its cancel.

    `inside`: whether its scope streams inside; None: there is no scope. `tokens` ends the answer, where the server
    may go on alone. `most_after`: so many tokens at most may the server's record have after the disconnect; None:
    no limit, because the receipt promises nothing there. `opaque`: on a transport that can't be interrupted.
    """

    shape: str
    moment: Moment
    task: bool = False
    inside: Optional[bool] = True
    fault: Optional[Fault] = None
    tokens: Optional[int] = None
    most_after: Optional[int] = 3
    opaque: bool = False

    @property
    def call(self) -> str:
        """The call in words."""
        if self.opaque:
            scope = ", opaque transport"
        elif self.inside is None:
            scope = ", no scope"
        elif "stream" in self.shape:
            scope = ""
        else:
            scope = ", streamed inside" if self.inside else ", not streamed"
        return f"{'async' if self.task else 'sync'} {self.shape}{scope}"

    @property
    def server(self) -> str:
        """The server in words."""
        return type(self.fault).__name__ if self.fault else "watches its connections"

    @property
    def anywhere(self) -> bool:
        """Whether it can be played against a real server."""
        own = self.moment in (Moment.CONNECTING, Moment.POOL, Moment.BUFFERED, Moment.BACKING_OFF)
        # What most real servers are like is no fault that has to be played.
        return not own and not self.opaque and self.fault in (None, _NOTICES)


_M = Moment
_NOTICES = faults.NoticeOnWrite()
_STALLS = faults.StallAfter(5)
_TURNS_AWAY = faults.Overloaded(429, retry_after="30")

CASES: tuple[Case, ...] = (
    Case("chat", _M.HEADERS, inside=None),
    Case("chat", _M.HEADERS, fault=faults.LostHeaders()),
    Case("chat, streamed", _M.BETWEEN),
    Case("chat, streamed", _M.READING, fault=_STALLS),
    # The point of streaming inside, and what it is like without.
    Case("chat", _M.READING, fault=_NOTICES, most_after=20),
    Case("chat", _M.HEADERS, inside=False, fault=_NOTICES, tokens=200, most_after=None),
    Case("chat, streamed", _M.READING, fault=faults.Deaf(), tokens=200, most_after=None),
    Case("chat, streamed", _M.BUFFERED, fault=faults.Burst(40)),
    Case("chat, streamed", _M.DEADLINE),
    Case("chat", _M.BACKING_OFF, fault=_TURNS_AWAY),
    Case("chat", _M.POOL),
    Case("chat", _M.CONNECTING),
    Case("chat", _M.BEFORE_START),
    Case("chat", _M.OVER, tokens=5),
    Case("chat, with_streaming_response", _M.READING),
    Case("chat.completions.stream()", _M.READING),
    Case("responses", _M.READING, fault=_NOTICES, most_after=20),
    Case("responses, streamed", _M.BETWEEN),
    Case("responses.stream()", _M.READING),
    Case("chat", _M.HEADERS, inside=False, opaque=True, tokens=200, most_after=None),
    Case("chat", _M.HEADERS, task=True, inside=None),
    Case("chat", _M.READING, task=True, fault=_NOTICES, most_after=20),
    Case("chat, streamed", _M.BETWEEN, task=True),
    Case("chat, streamed", _M.READING, task=True, fault=_STALLS),
    Case("chat", _M.BACKING_OFF, task=True, fault=_TURNS_AWAY),
    Case("chat", _M.POOL, task=True),
    Case("chat", _M.CONNECTING, task=True),
    Case("chat", _M.BEFORE_START, task=True),
    Case("chat, with_streaming_response", _M.READING, task=True),
    Case("chat.completions.stream()", _M.READING, task=True),
    Case("responses", _M.READING, task=True, fault=_NOTICES, most_after=20),
    Case("responses.stream()", _M.READING, task=True),
)
