"""The faults that a FakeOpenAI can play, one per file."""

from __future__ import annotations

from typing import Any

from deadstop.testing.faults.base import Fault
from deadstop.testing.faults.blackhole import Blackhole
from deadstop.testing.faults.burst import Burst
from deadstop.testing.faults.cancel_event_absent import CancelEventAbsent
from deadstop.testing.faults.cancel_event_late import CancelEventLate
from deadstop.testing.faults.cancel_reply_lost import CancelReplyLost
from deadstop.testing.faults.cancel_reply_slow import CancelReplySlow
from deadstop.testing.faults.cancelled_but_runs_on import CancelledButRunsOn
from deadstop.testing.faults.cancelled_then_completed import CancelledThenCompleted
from deadstop.testing.faults.comes_back_to_life import ComesBackToLife
from deadstop.testing.faults.completes_first import CompletesFirst
from deadstop.testing.faults.create_reply_lost import CreateReplyLost
from deadstop.testing.faults.create_reply_slow import CreateReplySlow
from deadstop.testing.faults.deaf import Deaf
from deadstop.testing.faults.error_mid_stream import ErrorMidStream
from deadstop.testing.faults.false_conflict import FalseConflict
from deadstop.testing.faults.half_chunk import HalfChunk
from deadstop.testing.faults.ignores_cancel import IgnoresCancel
from deadstop.testing.faults.lost_headers import LostHeaders
from deadstop.testing.faults.no_usage import NoUsage
from deadstop.testing.faults.not_yet_known import NotYetKnown
from deadstop.testing.faults.notice_on_write import NoticeOnWrite
from deadstop.testing.faults.overloaded import Overloaded
from deadstop.testing.faults.plain_json import PlainJSON
from deadstop.testing.faults.prefix_match import PrefixMatch
from deadstop.testing.faults.refuse_stream import RefuseStream
from deadstop.testing.faults.refuse_stream_options import RefuseStreamOptions
from deadstop.testing.faults.reset import Reset
from deadstop.testing.faults.run_fails import RunFails
from deadstop.testing.faults.slow_headers import SlowHeaders
from deadstop.testing.faults.slow_tls import SlowTLS
from deadstop.testing.faults.stall_after import StallAfter
from deadstop.testing.faults.stays_cancelling import StaysCancelling
from deadstop.testing.faults.stays_queued import StaysQueued
from deadstop.testing.faults.stream_runs_on import StreamRunsOn
from deadstop.testing.faults.wedges_on_duplicate import WedgesOnDuplicate

__all__ = [
    "Blackhole",
    "Burst",
    "CancelEventAbsent",
    "CancelEventLate",
    "CancelReplyLost",
    "CancelReplySlow",
    "CancelledButRunsOn",
    "CancelledThenCompleted",
    "ComesBackToLife",
    "CompletesFirst",
    "CreateReplyLost",
    "CreateReplySlow",
    "Deaf",
    "ErrorMidStream",
    "FalseConflict",
    "Fault",
    "HalfChunk",
    "IgnoresCancel",
    "LostHeaders",
    "NoUsage",
    "NotYetKnown",
    "NoticeOnWrite",
    "Overloaded",
    "PlainJSON",
    "PrefixMatch",
    "RefuseStream",
    "RefuseStreamOptions",
    "Reset",
    "RunFails",
    "SlowHeaders",
    "SlowTLS",
    "StallAfter",
    "StaysCancelling",
    "StaysQueued",
    "StreamRunsOn",
    "WedgesOnDuplicate",
]


def build(name: str, args: dict[str, Any]) -> Fault:
    """The fault of that name. Raises ValueError for an unknown name, TypeError for wrong arguments."""
    if name not in __all__ or name == "Fault":
        known = ", ".join(sorted(set(__all__) - {"Fault"}))
        raise ValueError(f"There is no fault named {name!r}; there are {known}.")
    fault: Fault = globals()[name](**args)
    return fault
