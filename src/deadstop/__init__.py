"""deadstop makes "cancel" mean cancelled, for LLM runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deadstop.clients import (
        AsyncAzureOpenAI,
        AsyncOpenAI,
        AzureOpenAI,
        OpenAI,
        attach,
        install,
        uninstall,
    )
    from deadstop.core.diagnosis import Diagnosis, DiagnosisClass
    from deadstop.core.model import Attempt, CallFacts, CancelReceipt, Cause, Evidence, Level, Orphan, Outcome
    from deadstop.core.policy import Backoff, CancelPolicy
    from deadstop.errors import (
        CancelRefusedError,
        DeadstopError,
        LedgerError,
        LedgerUnavailable,
        RunAlreadyOpenError,
        RunCancellationTimeoutError,
        RunCancelledError,
        UnknownRunError,
        UnsupportedClientError,
        UsageError,
    )
    from deadstop.kinds.base import Kind
    from deadstop.kinds.register import register_kind
    from deadstop.kinds.servers import ServerProfile
    from deadstop.runs.blocking import Run, Runs
    from deadstop.runs.concurrent import AsyncRun, AsyncRuns

__version__ = "0.1.0"

__all__ = [
    "AsyncAzureOpenAI",
    "AsyncOpenAI",
    "AsyncRun",
    "AsyncRuns",
    "Attempt",
    "AzureOpenAI",
    "Backoff",
    "CallFacts",
    "CancelPolicy",
    "CancelReceipt",
    "CancelRefusedError",
    "Cause",
    "DeadstopError",
    "Diagnosis",
    "DiagnosisClass",
    "Evidence",
    "Kind",
    "LedgerError",
    "LedgerUnavailable",
    "Level",
    "OpenAI",
    "Orphan",
    "Outcome",
    "Run",
    "RunAlreadyOpenError",
    "RunCancellationTimeoutError",
    "RunCancelledError",
    "Runs",
    "ServerProfile",
    "UnknownRunError",
    "UnsupportedClientError",
    "UsageError",
    "attach",
    "install",
    "register_kind",
    "uninstall",
]

_HOME = {
    "AsyncAzureOpenAI": "deadstop.clients",
    "AsyncOpenAI": "deadstop.clients",
    "AsyncRun": "deadstop.runs.concurrent",
    "AsyncRuns": "deadstop.runs.concurrent",
    "Attempt": "deadstop.core.model",
    "AzureOpenAI": "deadstop.clients",
    "Backoff": "deadstop.core.policy",
    "CallFacts": "deadstop.core.model",
    "CancelPolicy": "deadstop.core.policy",
    "CancelReceipt": "deadstop.core.model",
    "CancelRefusedError": "deadstop.errors",
    "Cause": "deadstop.core.model",
    "DeadstopError": "deadstop.errors",
    "Diagnosis": "deadstop.core.diagnosis",
    "DiagnosisClass": "deadstop.core.diagnosis",
    "Evidence": "deadstop.core.model",
    "Kind": "deadstop.kinds.base",
    "LedgerError": "deadstop.errors",
    "LedgerUnavailable": "deadstop.errors",
    "Level": "deadstop.core.model",
    "OpenAI": "deadstop.clients",
    "Orphan": "deadstop.core.model",
    "Outcome": "deadstop.core.model",
    "Run": "deadstop.runs.blocking",
    "RunAlreadyOpenError": "deadstop.errors",
    "RunCancellationTimeoutError": "deadstop.errors",
    "RunCancelledError": "deadstop.errors",
    "Runs": "deadstop.runs.blocking",
    "ServerProfile": "deadstop.kinds.servers",
    "UnknownRunError": "deadstop.errors",
    "UnsupportedClientError": "deadstop.errors",
    "UsageError": "deadstop.errors",
    "attach": "deadstop.clients",
    "install": "deadstop.clients",
    "register_kind": "deadstop.kinds.register",
    "uninstall": "deadstop.clients",
}


def __getattr__(name: str) -> Any:
    # On demand: `import deadstop` costs nothing, and a name costs what stands behind it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
