"""Telemetry: what becomes of cancels, for whoever watches.

Three ways to hear of it, all after the fact and none of them in a cancel's way:

- **Hooks**: `add_hook(hook)` has `hook(event)` called for each `CancelRequested`, `AttemptMade`, `CancelSettled` and
  `CancelRefined` of this process, and returns a function that undoes it.
- **OpenTelemetry**: where the application uses it, by itself: spans and metrics, `deadstop.telemetry.otel`.
- **Logs**: one record for each settled cancel, logger `deadstop.cancels`.

`DEADSTOP_TELEMETRY=off`, or `turn_off()`, switches off the last two. `flush()` waits until everybody was told.
"""

from __future__ import annotations

from deadstop.telemetry.dispatch import add_hook, flush, turn_off
from deadstop.telemetry.events import AttemptMade, CancelRefined, CancelRequested, CancelSettled, Event, Hook

__all__ = [
    "AttemptMade",
    "CancelRefined",
    "CancelRequested",
    "CancelSettled",
    "Event",
    "Hook",
    "add_hook",
    "flush",
    "turn_off",
]
