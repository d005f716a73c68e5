"""OpenTelemetry: a span for each cancel, and metrics. Needs the API alone; the application brings the SDK.

Names follow the semantic conventions where there is one (`http.*`, `server.*`, `error.type`, `gen_ai.*`); the others
begin with `deadstop.`. The name of a run, a reason and an actor are on spans only: metrics stay low in cardinality.

| metric | unit | attributes |
|---|---|---|
| `deadstop.cancels` (counter) | `{cancel}` | `deadstop.outcome`, `deadstop.cause`, `deadstop.kind`, `error.type` |
| `deadstop.cancel.duration` (histogram) | `s` | the same |
| `deadstop.cancel.refinements` (counter) | `{cancel}` | the same |
| `deadstop.cancel.attempts` (counter) | `{request}` | `deadstop.request`, `deadstop.kind`, and below |
| `deadstop.cancel.attempt.duration` (histogram) | `s` | the same |
| `deadstop.delivered.chunks` (counter) | `{chunk}` | `deadstop.cause`, `deadstop.kind` |

An attempt also has `http.response.status_code`, `error.type`, `server.address` and `server.port`.
`error.type` is the diagnosis of an unconfirmed cancel; for an attempt, the status code from 400 on, or the class of
the error that it ended with.
"""

from __future__ import annotations

import time
from typing import Any, Optional, Union

from deadstop.core.model import Attempt, CallFacts, CancelReceipt, Cause
from deadstop.telemetry.events import AttemptMade, CancelRefined, CancelSettled, Event
from deadstop.telemetry.logs import path_of

try:
    from opentelemetry import metrics, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError as error:
    raise ImportError("OpenTelemetry's API is needed here: pip install 'deadstop[otel]'", name=error.name) from error

__all__ = ["OpenTelemetryHook"]

Outcome = Union[CancelSettled, CancelRefined]

SECONDS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
"""The bounds of the histograms' buckets: a call is aborted in about a millisecond, a batch may take a minute."""

_OPERATIONS = {"/chat/completions": "chat", "/completions": "text_completion", "/embeddings": "embeddings"}
_PROVIDERS = {"openai.com": "openai", "openai.azure.com": "azure.ai.openai", "anthropic.com": "anthropic"}


class OpenTelemetryHook:
    """A hook that reports to OpenTelemetry: to the global providers, or to those given.

    Where the application uses OpenTelemetry one is at work by itself. To have your own providers used,
    `turn_off()` and `add_hook(OpenTelemetryHook(tracer_provider=..., meter_provider=...))`.
    """

    def __init__(self, *, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        self._tracer: Any = trace.get_tracer("deadstop", tracer_provider=tracer_provider)
        meter: Any = metrics.get_meter("deadstop", meter_provider=meter_provider)
        self._cancels = meter.create_counter("deadstop.cancels", "{cancel}", "Cancels that have an outcome.")
        self._refinements = meter.create_counter(
            "deadstop.cancel.refinements", "{cancel}", "Unconfirmed cancels that came to something after all."
        )
        self._attempts = meter.create_counter("deadstop.cancel.attempts", "{request}", "Requests that cancels made.")
        self._chunks = meter.create_counter(
            "deadstop.delivered.chunks", "{chunk}", "What callers had been given of runs before they were cancelled."
        )
        self._duration = _histogram(meter, "deadstop.cancel.duration", "From a cancel's request to its outcome.")
        self._attempt_duration = _histogram(meter, "deadstop.cancel.attempt.duration", "How long a request took.")

    def __call__(self, event: Event) -> None:
        """Report one event."""
        if isinstance(event, AttemptMade):
            self._count_attempt(event)
        elif isinstance(event, (CancelSettled, CancelRefined)):
            self._count(event)
            if event.receipt.cause is not Cause.PARENT:  # a child's span is made with that of what it is in
                self._trace(event)

    # Metrics

    def _count(self, event: Outcome) -> None:
        receipt = event.receipt
        place = {"deadstop.cause": str(receipt.cause), "deadstop.kind": event.kind}
        attributes = {"deadstop.outcome": str(receipt.outcome), **place}
        if receipt.diagnosis is not None:
            attributes["error.type"] = str(receipt.diagnosis.klass)
        if isinstance(event, CancelRefined):
            self._refinements.add(1, attributes)
            return
        self._cancels.add(1, attributes)
        self._duration.record(receipt.elapsed, attributes)
        if receipt.delivered.chunks and receipt.cause is not Cause.PARENT:
            self._chunks.add(receipt.delivered.chunks, place)

    def _count_attempt(self, event: AttemptMade) -> None:
        attempt = event.attempt
        attributes = {
            "deadstop.request": event.request,
            "deadstop.kind": event.kind,
            **_server(event.server),
            **_result(attempt),
        }
        self._attempts.add(1, attributes)
        if attempt.ended is not None:
            self._attempt_duration.record(max(attempt.ended - attempt.started, 0.0), attributes)

    # Spans

    def _trace(self, event: Outcome) -> None:
        wall = time.time() - time.monotonic()  # what turns a moment of the monotonic clock into one of the calendar
        self._span(event.receipt, event.kind, event.server, event.at, wall, refined=isinstance(event, CancelRefined))

    def _span(
        self, receipt: CancelReceipt, kind: str, server: Optional[str], at: float, wall: float, refined: bool = False
    ) -> None:
        span = self._tracer.start_span(
            "deadstop.cancel", start_time=_nanoseconds(at + wall), attributes=_attributes(receipt, kind, server)
        )
        if span.is_recording():
            if refined:
                span.set_attribute("deadstop.refined", True)
            if receipt.diagnosis is not None:
                span.set_status(Status(StatusCode.ERROR, str(receipt.diagnosis)))
            for call in receipt.calls:
                span.add_event("deadstop.call", _call(call), timestamp=_nanoseconds(at + wall))
            with trace.use_span(span, end_on_exit=False):
                for name, attempts in (("cancel", receipt.attempts), ("read", receipt.reads)):
                    for attempt in attempts:
                        self._attempt_span(name, attempt, server, wall)
                for child in receipt.children:
                    self._span(child, child.kind or "scope", server if child.kind else None, at, wall)
        span.end(_nanoseconds(at + receipt.elapsed + wall))

    def _attempt_span(self, name: str, attempt: Attempt, server: Optional[str], wall: float) -> None:
        attributes: dict[str, Any] = {
            "deadstop.attempt": attempt.number,
            **_server(server),
            **_result(attempt),
            **_timing(attempt),
        }
        if name == "cancel" and attempt.number > 1:
            attributes["http.request.resend_count"] = attempt.number - 1
        span = self._tracer.start_span(
            f"deadstop.cancel.{name}",
            kind=SpanKind.CLIENT,
            start_time=_nanoseconds(attempt.started + wall),
            attributes=attributes,
        )
        if "error.type" in attributes:
            span.set_status(Status(StatusCode.ERROR, attempt.error))
        span.end(_nanoseconds((attempt.started if attempt.ended is None else attempt.ended) + wall))


def _histogram(meter: Any, name: str, description: str) -> Any:
    try:
        return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=SECONDS)
    except TypeError:  # before 1.30
        return meter.create_histogram(name, "s", description)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _known(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _server(server: Optional[str]) -> dict[str, Any]:
    if not server:
        return {}
    host, colon, port = server.rpartition(":")
    if colon and port.isdigit():
        return {"server.address": host.strip("[]"), "server.port": int(port)}
    return {"server.address": server}


def _provider(server: Optional[str]) -> Optional[str]:
    host = (server or "").partition(":")[0]
    return next((name for end, name in _PROVIDERS.items() if host == end or host.endswith("." + end)), None)


def _result(attempt: Attempt) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if attempt.status is not None:
        facts["http.response.status_code"] = attempt.status
        if attempt.status >= 400:
            facts["error.type"] = str(attempt.status)
    elif attempt.error is not None:
        kind = attempt.error.partition(":")[0]
        other = "timeout" if kind == "its time was up" else "_OTHER"  # the client was closed, say
        facts["error.type"] = kind if kind.isidentifier() else other
    return facts


def _timing(attempt: Attempt) -> dict[str, Any]:
    names = ("dns", "connect", "tls", "first_byte", "retry_after", "request_id")
    return _known(**{f"deadstop.attempt.{name}": getattr(attempt, name) for name in names})


def _attributes(receipt: CancelReceipt, kind: str, server: Optional[str]) -> dict[str, Any]:
    usage = receipt.usage or {}
    facts = {
        "deadstop.run": receipt.run,
        "deadstop.kind": kind,
        "deadstop.outcome": str(receipt.outcome),
        "deadstop.cause": str(receipt.cause),
        "deadstop.evidence": str(receipt.evidence),
        "deadstop.reason": receipt.reason,
        "deadstop.actor": receipt.actor,
        "deadstop.status": receipt.status,
        "deadstop.delivered.chunks": receipt.delivered.chunks,
        "deadstop.delivered.characters": receipt.delivered.characters,
        "gen_ai.provider.name": _provider(server),
        "gen_ai.response.id": receipt.run.partition(":")[2] if kind == "response" and ":" in receipt.run else None,
        "gen_ai.usage.input_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
        "gen_ai.usage.output_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
        "error.type": None if receipt.diagnosis is None else str(receipt.diagnosis.klass),
        **_server(server),
    }
    return _known(**facts)


def _call(call: CallFacts) -> dict[str, Any]:
    path = path_of(call.path)
    facts = {
        "http.request.method": call.method,
        "url.path": path,
        "gen_ai.operation.name": next((name for end, name in _OPERATIONS.items() if path.endswith(end)), None),
        "gen_ai.provider.name": _provider(call.host),
        "deadstop.call.phase": str(call.phase),
        "deadstop.call.interrupted": str(call.interrupted),
        "deadstop.call.streamed": str(call.streamed),
        "deadstop.call.server_work": str(call.server_work),
        "deadstop.call.released": call.released,
        "deadstop.call.elapsed": call.elapsed,
        "deadstop.delivered.chunks": call.chunks,
        **_server(call.host),
    }
    if call.attempt is not None:
        facts.update(_timing(call.attempt))
        if call.attempt.status is not None:
            facts["http.response.status_code"] = call.attempt.status
    return _known(**facts)
