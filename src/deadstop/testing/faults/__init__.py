"""The faults that a FakeOpenAI can play, one per file."""

from __future__ import annotations

from typing import Any

from deadstop.testing.faults.base import Fault
from deadstop.testing.faults.blackhole import Blackhole
from deadstop.testing.faults.burst import Burst
from deadstop.testing.faults.deaf import Deaf
from deadstop.testing.faults.error_mid_stream import ErrorMidStream
from deadstop.testing.faults.half_chunk import HalfChunk
from deadstop.testing.faults.lost_headers import LostHeaders
from deadstop.testing.faults.no_usage import NoUsage
from deadstop.testing.faults.notice_on_write import NoticeOnWrite
from deadstop.testing.faults.overloaded import Overloaded
from deadstop.testing.faults.plain_json import PlainJSON
from deadstop.testing.faults.refuse_stream import RefuseStream
from deadstop.testing.faults.refuse_stream_options import RefuseStreamOptions
from deadstop.testing.faults.reset import Reset
from deadstop.testing.faults.slow_headers import SlowHeaders
from deadstop.testing.faults.slow_tls import SlowTLS
from deadstop.testing.faults.stall_after import StallAfter

__all__ = [
    "Blackhole",
    "Burst",
    "Deaf",
    "ErrorMidStream",
    "Fault",
    "HalfChunk",
    "LostHeaders",
    "NoUsage",
    "NoticeOnWrite",
    "Overloaded",
    "PlainJSON",
    "RefuseStream",
    "RefuseStreamOptions",
    "Reset",
    "SlowHeaders",
    "SlowTLS",
    "StallAfter",
]


def build(name: str, args: dict[str, Any]) -> Fault:
    """The fault of that name. Raises ValueError for an unknown name, TypeError for wrong arguments."""
    if name not in __all__ or name == "Fault":
        known = ", ".join(sorted(set(__all__) - {"Fault"}))
        raise ValueError(f"There is no fault named {name!r}; there are {known}.")
    fault: Fault = globals()[name](**args)
    return fault
