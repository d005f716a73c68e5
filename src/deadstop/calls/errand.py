"""An errand: a request of our own, a cancel or a status read. A call like any other, but nobody's run.

So its times and network facts are noted as those of every call, and it can be interrupted when its time is up.
"""

from __future__ import annotations

import email.utils
import json
import time
from dataclasses import dataclass
from typing import Any, Callable, Optional

from deadstop.calls.call import Call
from deadstop.core.model import Attempt, Phase
from deadstop.errors import DeadstopError, RunCancelledError

__all__ = ["Errand", "Result", "retry_after"]


@dataclass(frozen=True)
class Result:
    """What came of an errand. `status` is None where there was no answer, `data` where that was no JSON.

    `may_have_arrived`: a byte of it may have left. `phase`: how far it got. `retry_after` is in seconds.
    """

    attempt: Attempt
    status: Optional[int] = None
    data: Any = None
    retry_after: Optional[float] = None
    may_have_arrived: bool = False
    phase: Phase = Phase.UNKNOWN
    headers: Any = None


class _Nobody:
    def remove(self, call: Call) -> None:
        pass

    def error(self, call: Call) -> DeadstopError:
        return RunCancelledError(run=f"{call.method} {call.path}", reason="its time was up")


_NOBODY = _Nobody()


class Errand(Call):
    """One request of our own. `on_left` is told once when the request has been written; `may()` is asked just before:
    a process that was stopped may find that another one has taken over."""

    resolves_first = True  # a cancel's own times are worth a second look-up, which the system has at hand

    __slots__ = ("_may", "_on_left", "ended_by", "ended_in")

    def __init__(
        self,
        method: str,
        path: str,
        on_left: Callable[[], None],
        may: Optional[Callable[[], bool]] = None,
        *,
        in_task: bool = False,
    ) -> None:
        super().__init__(_NOBODY, method, path, streamed=False, streamed_inside=False, in_task=in_task)
        self._on_left: Optional[Callable[[], None]] = on_left
        self._may = may
        self.ended_in = Phase.UNKNOWN
        self.ended_by = "its time was up"  # where there is no answer, and no error

    def end_by(self, what: str) -> None:
        """Interrupt it because of that. Never blocks; any thread."""
        if not self.cancelled:  # or it was ended before
            self.ended_by = what
        self.interrupt()

    def sending(self, multiplexed: bool) -> None:
        if self._may is not None and not self._may():
            self.cancelled = True
        super().sending(multiplexed)

    def leave(self, again: bool = True) -> None:
        if self.phase is not Phase.ENDED:
            self.ended_in = self.phase
        super().leave(again)

    def request_sent(self) -> None:
        super().request_sent()
        tell, self._on_left = self._on_left, None
        if tell is not None:
            tell()

    def result(self, number: int, answer: Any = None, error: Optional[BaseException] = None) -> Result:
        """The result, from the HTTP response `answer` or from the `error` it ended with; without them, as of now.

        An error of the SDK's that carries a response is an answer.
        """
        if answer is None:
            answer = getattr(error, "response", None)
        phase = self.phase_at_cancel or (self.ended_in if self.phase is Phase.ENDED else self.phase)
        facts = {**self.attempt, "number": number, "ended": time.monotonic()}
        facts.setdefault("started", self.started)
        if answer is None:
            facts["error"] = _in_words(error, self.cancelled, facts.get("error"), self.ended_by)
            return Result(Attempt(**facts), may_have_arrived=self.sent, phase=phase)
        wait = retry_after(answer.headers)
        facts.update(status=answer.status_code, request_id=answer.headers.get("x-request-id"), retry_after=wait)
        return Result(Attempt(**facts), answer.status_code, _json(answer), wait, True, phase, answer.headers)


def _in_words(error: Optional[BaseException], cancelled: bool, noted: Optional[str], ended_by: str) -> str:
    if noted is not None and not cancelled:
        return noted
    if cancelled or error is None:
        return ended_by
    cause = getattr(error, "__cause__", None) or error
    return f"{type(cause).__name__}: {cause}"


def _json(answer: Any) -> Any:
    try:
        return json.loads(answer.content)
    except (ValueError, RuntimeError):  # not JSON; not read
        return None


def retry_after(headers: Any) -> Optional[float]:
    """How long (seconds) the server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    given = headers.get("retry-after")
    if given is None:
        return None
    try:
        wait = float(given)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
    return max(0.0, wait) if wait == wait and wait != float("inf") else None
