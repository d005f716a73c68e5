"""One remote run: what is known of it, and who wants to know more."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import Any, Callable, Optional

from deadstop.calls.clock import REAL, Clock
from deadstop.core.model import Attempt, Evidence, Orphan, RunStatus
from deadstop.kinds.base import Kind, Ref
from deadstop.kinds.servers import recognise

__all__ = ["Remote"]


class Remote:
    """The facts of one remote run. Changed by single assignments, from any thread; listeners are told of each change.

    `channel` is the way to its server. Until `ref` is known it is unborn: a call is under way that may bring it.
    """

    __slots__ = (
        "_listeners",
        "_queue",
        "_turn",
        "cancels",
        "channel",
        "clock",
        "evidence",
        "kind",
        "known_at",
        "lost",
        "never_ran",
        "orphan",
        "over_at",
        "reads",
        "ref",
        "revivals",
        "seen_at",
        "server",
        "status",
        "tracker",
        "word",
    )

    def __init__(self, kind: Kind, channel: Any, ref: Optional[Ref] = None, clock: Clock = REAL) -> None:
        self.clock = clock
        self.kind = kind
        self.channel = channel
        self.ref = ref
        self.known_at: Optional[float] = None  # when its id was learned; None for one that was named by its id
        self.word: Optional[str] = None
        self.status = RunStatus.UNKNOWN
        self.evidence = Evidence.NONE
        self.over_at: Optional[float] = None  # when it was read as over
        self.seen_at: Optional[float] = None  # when its status was last asked for, by anybody
        self.cancels: list[dict[float, Attempt]] = []  # of each chase after it, in order
        self.reads: list[dict[float, Attempt]] = []
        self.lost = False  # its create is over, and told no id
        self.never_ran = False  # and provably no run was made
        self.tracker: Any = None  # of the call that brings it
        self.orphan: Optional[Orphan] = None
        self.revivals: list[tuple[float, str]] = []  # statuses read after "cancelled" that were not that
        self.server = recognise(channel.base_url)
        self._turn = threading.Lock()  # held while a request of ours is under way
        self._queue: deque[Callable[[Callable[[], None]], Any]] = deque()
        self._listeners: list[Callable[[Remote], None]] = []

    @property
    def over(self) -> bool:
        """Whether it is known to have ended, or never to have begun."""
        return self.status.is_over or self.never_ran

    def listen(self, listener: Callable[[Remote], None]) -> None:
        """Have `listener` told of every change."""
        self._listeners.append(listener)

    def leave(self, listener: Callable[[Remote], None]) -> None:
        """`listener` wants to hear no more."""
        with contextlib.suppress(ValueError):  # somebody else was quicker
            self._listeners.remove(listener)

    def _tell(self) -> None:
        for each in list(self._listeners):
            each(self)

    def born(self, ref: Ref) -> None:
        """Its id is known."""
        self.ref = ref
        self.known_at = self.clock.now()
        self._tell()

    def unborn(self, never_ran: bool, orphan: Optional[Orphan]) -> None:
        """Its create is over and told no id. `orphan`: where to look for the run that may exist all the same."""
        self.orphan = orphan
        self.lost, self.never_ran = not never_ran, never_ran
        self._tell()

    def observe(self, word: str, evidence: Evidence, asked_at: Optional[float] = None) -> bool:
        """Its status was read somewhere, in the answer to a request of `asked_at` (monotonic seconds).

        Returns whether it came back to life: it had been read as cancelled before that was asked.
        """
        status = self.kind.read(word)
        if self.status.is_over and not status.is_over:
            fresh = asked_at is not None and self.over_at is not None and asked_at > self.over_at
            if self.status is RunStatus.FINISHED or evidence is not Evidence.STATUS or not fresh:
                return False  # an older answer that was overtaken
        revived = self.status is RunStatus.CANCELLED and status in (RunStatus.FINISHED, RunStatus.ACTIVE)
        if revived:
            self.revivals.append((time.time(), word))
        self.word, self.status, self.evidence = word, status, evidence
        self.over_at = self.clock.now() if status.is_over else None
        self.seen_at = self.clock.now() if asked_at is None else asked_at
        self._tell()
        return revived

    # One request at a time (I7)

    def in_turn(self, send: Callable[[Callable[[], None]], Any]) -> None:
        """Have `send(free)` called when no other request of ours for this run is under way; it calls `free()` after.

        Whoever chases the run, and however often it was begun anew: the server sees one request at a time.
        """
        self._queue.append(send)
        self._next()

    def _next(self) -> None:
        while self._queue and self._turn.acquire(blocking=False):
            try:
                send = self._queue.popleft()
            except IndexError:  # somebody else was quicker
                self._turn.release()
                continue
            send(self._free)
            return

    def _free(self) -> None:
        self._turn.release()
        self._next()
