"""deadstop makes "cancel" mean cancelled, for LLM runs."""

from __future__ import annotations

from deadstop.clients import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI, attach, install, uninstall
from deadstop.core.diagnosis import Diagnosis, DiagnosisClass
from deadstop.core.model import Attempt, CallFacts, CancelReceipt, Cause, Evidence, Level, Outcome
from deadstop.core.policy import Backoff, CancelPolicy
from deadstop.errors import (
    DeadstopError,
    RunAlreadyOpenError,
    RunCancellationTimeoutError,
    RunCancelledError,
    UnknownRunError,
    UnsupportedClientError,
    UsageError,
)
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
    "Cause",
    "DeadstopError",
    "Diagnosis",
    "DiagnosisClass",
    "Evidence",
    "Level",
    "OpenAI",
    "Outcome",
    "Run",
    "RunAlreadyOpenError",
    "RunCancellationTimeoutError",
    "RunCancelledError",
    "Runs",
    "UnknownRunError",
    "UnsupportedClientError",
    "UsageError",
    "attach",
    "install",
    "uninstall",
]
