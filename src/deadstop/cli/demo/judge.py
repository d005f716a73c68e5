"""Whether a receipt and the server's own record agree. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Optional

from deadstop.cli.demo.cases import Case, Moment
from deadstop.core.model import CallFacts, CancelReceipt, Evidence, Interrupted, Outcome, ServerWork, Streamed
from deadstop.errors import RunCancellationTimeoutError, RunCancelledError
from deadstop.testing.record import RequestRecord

__all__ = ["Played", "judge", "judge_alone"]


@dataclass
class Played:
    """What became of one case. `then` are the server's records when the receipt came, `final` those in the end."""

    case: Case
    receipt: Optional[CancelReceipt] = None
    error: Optional[BaseException] = None
    counted: bool = False
    seen: int = 0
    late: int = 0
    asked_at: float = 0.0
    returned_at: float = 0.0
    freed_at: Optional[float] = None
    then: Sequence[RequestRecord] = ()
    final: Sequence[RequestRecord] = ()
    skipped: Optional[str] = None
    failed: Optional[str] = None
    beside: Sequence[str] = ()  # what went wrong with calls that nobody cancelled
    problems: list[str] = field(default_factory=list)

    @property
    def free_after(self) -> Optional[float]:
        """Seconds from the cancel to its caller being free; None where the caller was free all along."""
        held = self.case.moment in (Moment.BETWEEN, Moment.BUFFERED, Moment.BEFORE_START, Moment.OVER)
        return None if held or self.freed_at is None else self.freed_at - self.asked_at

    @property
    def gone_after(self) -> Optional[float]:
        """Seconds from the cancel to the end-of-file on the server's side."""
        gone = [each.peer_gone_at for each in self.final if each.peer_gone_at is not None]
        return gone[0] - self.asked_at if gone else None


def judge(played: Played) -> list[str]:
    """Where the receipt and the record disagree, in sentences. Empty: nowhere."""
    return [*_alone(played), *_against_the_record(played)]


def judge_alone(played: Played) -> list[str]:
    """What can be said without a record."""
    return list(_alone(played))


def _alone(played: Played) -> Iterator[str]:
    receipt = played.receipt
    yield from played.beside
    if played.failed:
        yield played.failed
        return
    if receipt is None:
        yield "there is no receipt"
        return
    if played.freed_at is None:
        yield "the caller never came back"
    elif receipt.outcome is not Outcome.FINISHED_FIRST:
        timed_out = receipt.outcome is Outcome.UNCONFIRMED
        wanted = RunCancellationTimeoutError if timed_out else RunCancelledError
        if not isinstance(played.error, wanted):
            yield f"the caller got {type(played.error).__name__} instead of {wanted.__name__}"
    if played.late:
        yield f"{played.late} events were delivered after the cancel"
    if played.counted and played.seen > receipt.delivered.chunks:
        yield f"the caller was given {played.seen} events, and the receipt says {receipt.delivered.chunks}"


def _against_the_record(played: Played) -> Iterator[str]:
    receipt, case = played.receipt, played.case
    if receipt is None:
        return
    calls = [*receipt.calls, *(call for child in receipt.children for call in child.calls)]
    for record in played.final:
        if record.opened_at is not None and record.opened_at > played.returned_at:
            yield f"request #{record.id} came after the cancel"
        if case.most_after is not None and record.tokens_after_disconnect > case.most_after:
            yield f"the server generated {record.tokens_after_disconnect} tokens after the disconnect"
    if receipt.outcome is Outcome.CANCELLED:
        if receipt.evidence is not Evidence.TRANSPORT:
            yield f"the receipt rests on {receipt.evidence}"
        for call in calls:
            yield from _cancelled(call, played.final, bool(receipt.delivered.chunks))
    elif receipt.outcome is Outcome.FINISHED_FIRST:
        if not any(each.state == "completed" for each in played.final):
            yield "the receipt says finished, and the record has no completed request"
    elif receipt.outcome is Outcome.UNCONFIRMED:
        if receipt.diagnosis is None:
            yield "the receipt has no diagnosis"
        if not any(each.state == "generating" and each.peer_gone_at is None for each in played.then):
            yield "the receipt is unconfirmed, and by the record the call was over"
    else:
        yield f"the receipt says {receipt.outcome}"


def _cancelled(call: CallFacts, records: Sequence[RequestRecord], delivered: bool) -> Iterator[str]:
    if not call.released:
        yield "the receipt says cancelled, and its call was not released"
    if call.interrupted in (Interrupted.NOT_STARTED, Interrupted.CONNECT):
        if records:
            yield "the receipt says that nothing was sent, and the record has a request"
        return
    for record in records:
        answered = record.state == "completed" and record.status != 200  # a 429: its connection is idle, and kept
        if call.socket_closed and not answered and record.peer_gone_at is None and record.state != "disconnected":
            yield f"the receipt says that the socket was closed, and the server never saw request #{record.id} end"
        if call.server_work is ServerWork.STOPPED and record.tokens_after_disconnect:
            yield f"the receipt says stopped, and {record.tokens_after_disconnect} tokens came after"
        if call.server_work is ServerWork.STOPPED and record.state in ("receiving", "generating"):
            yield f"the receipt says stopped, and request #{record.id} is still {record.state}"
        streamed = call.streamed in (Streamed.ASKED, Streamed.INSIDE)
        if record.started_at is not None and streamed != record.streamed:
            yield f"the receipt says {call.streamed}, and the record says streamed={record.streamed}"
    if delivered and not any(record.tokens_sent for record in records):
        yield "the receipt counts events, and the server sent none"
