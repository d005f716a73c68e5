"""What the server is told to do: how fast, how much, what to say, and which faults to play."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable, Union

from deadstop.testing.faults.base import Fault, overrides
from deadstop.testing.record import RequestRecord
from deadstop.testing.reply import Reply

Replies = Union[Reply, Callable[[Mapping[str, Any]], Reply]]


@dataclass
class _Planned:
    fault: Fault
    path: str | None
    model: str | None
    times: float

    def matches(self, record: RequestRecord) -> bool:
        return (self.path is None or record.path.endswith(self.path)) and self.model in (None, record.model)


class Script:
    """Shared by the server and its connections; everything may be changed while requests run."""

    def __init__(self, rate: float, tokens: int, burst: int, reply: Replies, faults: Iterable[Fault]) -> None:
        if math.isnan(rate) or rate < 0:
            raise ValueError(f"The rate must be tokens per second, or 0 for as fast as possible, not {rate!r}.")
        if tokens < 0:
            raise ValueError(f"The number of tokens must not be negative, and {tokens!r} is.")
        self.rate = rate
        self.tokens = tokens
        self.burst = burst
        self.reply = reply
        # Kept, so that a Reply is filled once and not by each request.
        self._last_filled: tuple[Reply | None, int, Reply] = (None, 0, Reply())
        self._lock = threading.Lock()
        self._planned: list[_Planned] = []
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault, *, path: str | None = None, model: str | None = None, times: int | None = None) -> None:
        """Plays `fault` from the next request on, for `times` requests, where path suffix and model match.

        Raises ValueError where that cannot be: a fault that acts before a request is read knows no path or
        model.
        """
        if not isinstance(fault, Fault):
            raise TypeError(f"A fault is an instance of a class in deadstop.testing.faults, not {fault!r}.")
        if overrides(fault, "on_accept") and (path, model) != (None, None):
            raise ValueError(f"{type(fault).__name__} acts before a request is read, and so takes no path or model.")
        with self._lock:
            self._planned.append(_Planned(fault, path, model, math.inf if times is None else times))

    def clear(self) -> None:
        """Removes all faults."""
        with self._lock:
            self._planned.clear()

    def faults_at_accept(self) -> list[Fault]:
        """The faults of a connection that has just been accepted."""
        return self._take(lambda planned: overrides(planned.fault, "on_accept"))

    def faults_for(self, record: RequestRecord) -> list[Fault]:
        """The faults of a request that has just been read."""
        return self._take(lambda plan: not overrides(plan.fault, "on_accept") and plan.matches(record))

    def reply_to(self, body: Mapping[str, Any]) -> Reply:
        """What to say to this request."""
        reply = self.reply(body) if callable(self.reply) else self.reply
        last = self._last_filled
        if last[0] is not reply or last[1] != self.tokens:
            last = self._last_filled = (reply, self.tokens, reply.filled(self.tokens))
        return last[2]

    def _take(self, chosen: Callable[[_Planned], bool]) -> list[Fault]:
        if not self._planned:
            return []
        with self._lock:
            taken = [planned for planned in self._planned if planned.times > 0 and chosen(planned)]
            for planned in taken:
                planned.times -= 1
            return [planned.fault for planned in taken]
