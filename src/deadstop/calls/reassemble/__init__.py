"""Streamed inside: ask for a stream, hand back the JSON body of the call that was not streamed.

Most servers notice a lost connection only when they write to it. A call that is not streamed writes once, at
its end, so closing its connection stops nothing. `plan` turns such a request into a streamed one, and the
plan's assembler turns the server-sent events back into the body the caller asked for.

Bytes in, bytes out: nothing here opens a socket, reads a clock or knows a transport.
"""

from __future__ import annotations

from deadstop.calls.reassemble.answer import Assembled, Assembler, Truncated, is_answer, is_error
from deadstop.calls.reassemble.plan import Plan, is_signed, plan
from deadstop.calls.reassemble.refusals import REFUSE, Refusal, refusal

__all__ = [
    "REFUSE",
    "Assembled",
    "Assembler",
    "Plan",
    "Refusal",
    "Truncated",
    "is_answer",
    "is_error",
    "is_signed",
    "plan",
    "refusal",
]
