"""deadstop's public test kit: an OpenAI-compatible server that misbehaves on demand and records the truth.

    from deadstop.testing import FakeOpenAI, faults

    with FakeOpenAI(rate=200, tokens=50) as server:
        server.add(faults.StallAfter(3))
        ...  # OpenAI(base_url=server.base_url, api_key="any")
        server.wait_for(lambda requests: requests[-1].state == "disconnected")

It has remote runs, too: background responses (streamed or not, taken up with `starting_after`, the beta's as well),
thread runs, batches, fine-tuning jobs, vector-store file batches, eval runs, uploads and ChatKit sessions. A run works
by the clock (tokens at the server's rate, connected or not) until it is done or is cancelled for real. `server.runs`
says what is true of each, whatever a fault makes the server say, and `server.wait_for_runs` waits for it:

    server.add(faults.CancelledButRunsOn(), path="/cancel")
    ...  # create a background response, cancel it
    server.wait_for_runs(lambda runs: runs[0].truth == "completed")  # it says "cancelled"

Faults of a run's life: at its create CreateReplyLost, CreateReplySlow, StaysQueued, RunFails; at its cancel
CancelReplyLost, CancelReplySlow, FalseConflict, IgnoresCancel, StaysCancelling, CompletesFirst, CancelledThenCompleted,
ComesBackToLife, CancelledButRunsOn, WedgesOnDuplicate; at any request about it NotYetKnown, PrefixMatch; in its stream
of events CancelEventLate, CancelEventAbsent, StreamRunsOn. An overloaded cancel is Overloaded with `path="/cancel"`;
`times` limits each of them.

It needs h11 (`pip install "deadstop[testing]"`), and knows neither the SDK nor its transports. POSIX only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deadstop.testing import faults
    from deadstop.testing.backlog import full_backlog
    from deadstop.testing.dns import slow_dns
    from deadstop.testing.process import FakeProcess, serve
    from deadstop.testing.proxy import FakeProxy
    from deadstop.testing.record import RequestRecord
    from deadstop.testing.reply import Audio, Extra, Reply, ToolCall
    from deadstop.testing.runs import RunRecord
    from deadstop.testing.server import FakeOpenAI

__all__ = [
    "Audio",
    "Extra",
    "FakeOpenAI",
    "FakeProcess",
    "FakeProxy",
    "Reply",
    "RequestRecord",
    "RunRecord",
    "ToolCall",
    "faults",
    "full_backlog",
    "serve",
    "slow_dns",
]

_HOME = {
    "Audio": "reply",
    "Extra": "reply",
    "FakeOpenAI": "server",
    "FakeProcess": "process",
    "FakeProxy": "proxy",
    "Reply": "reply",
    "RequestRecord": "record",
    "RunRecord": "runs",
    "ToolCall": "reply",
    "full_backlog": "backlog",
    "serve": "process",
    "slow_dns": "dns",
}


def __getattr__(name: str) -> Any:
    # On demand: the pytest plugin costs nothing where it is not used, and a missing h11 is said clearly.
    if name == "faults":
        return importlib.import_module("deadstop.testing.faults")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"deadstop.testing.{_HOME[name]}")
    value = globals()[name] = getattr(module, name)
    return value
