"""What OpenTelemetry is told, as its own SDK records it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from worlds import PATIENCE

from deadstop import CancelPolicy, CancelReceipt, Outcome, telemetry
from deadstop.core.model import Attempt
from deadstop.telemetry import AttemptMade
from deadstop.telemetry.otel import OpenTelemetryHook
from deadstop.testing import FakeOpenAI, faults

RETURN = CancelPolicy(on_timeout="return", poll=0.05, give_up=0)


class Recorded:
    """OpenTelemetry's SDK, with what it was told."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._reader])

    @property
    def spans(self) -> list[Any]:
        return list(self._spans.get_finished_spans())

    def points(self, name: str) -> dict[frozenset[Any], Any]:
        """The data points of a metric, by their attributes."""
        data: Any = self._reader.get_metrics_data()
        metrics = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        found = [point for metric in metrics if metric.name == name for point in metric.data.data_points]
        return {frozenset(point.attributes.items()): point for point in found}

    def shutdown(self) -> None:
        self.tracers.shutdown()
        self.meters.shutdown()


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    one = Recorded()
    undo = telemetry.add_hook(OpenTelemetryHook(tracer_provider=one.tracers, meter_provider=one.meters))
    yield one
    undo()
    one.shutdown()


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    yield one
    world.close(one)


def create(client: Any) -> Any:
    """Start a remote run: a background response; to be awaited in a task."""
    body = {"model": "m", "input": "hi", "background": True}
    return client.post("/responses", body=body, cast_to=Dict[str, object])  # noqa: UP006


def seconds(span: Any) -> float:
    return float(span.end_time - span.start_time) / 1e9


def test_a_cancelled_stream_is_a_span_with_what_was_done_to_its_call(
    world: Any, client: Any, server: FakeOpenAI, recorded: Recorded
) -> None:
    """The span lasts as long as the cancel, below the span of whoever asked, and says what the receipt says."""
    begun = threading.Event()
    reading = world.start(world.consume, client, "chat-1", lambda _: begun.set())
    assert begun.wait(PATIENCE)
    with recorded.tracers.get_tracer("app").start_as_current_span("POST /stop") as around:
        client.runs.get("chat-1").cancel_soon(reason="stop")
    reading.failure()
    receipt = world.run(client.runs.wait, "chat-1", PATIENCE)
    assert telemetry.flush(PATIENCE)
    (span,) = [each for each in recorded.spans if each.name == "deadstop.cancel"]
    assert span.parent.span_id == around.get_span_context().span_id
    assert seconds(span) == pytest.approx(receipt.elapsed, abs=1e-5)
    assert span.attributes["deadstop.run"] == "chat-1"
    assert span.attributes["deadstop.outcome"] == "cancelled"
    assert span.attributes["deadstop.reason"] == "stop"
    assert span.attributes["deadstop.delivered.chunks"] == receipt.delivered.chunks > 0
    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("127.0.0.1", server.port)
    (call,) = span.events
    assert call.name == "deadstop.call"
    assert call.attributes["url.path"] == "/chat/completions"
    assert call.attributes["gen_ai.operation.name"] == "chat"
    assert call.attributes["http.response.status_code"] == 200
    assert call.attributes["deadstop.call.interrupted"] == receipt.calls[0].interrupted
    assert span.status.is_ok is True or span.status.is_unset


def test_a_remote_cancel_s_requests_are_spans_below_it(world: Any, client: Any, recorded: Recorded) -> None:
    """Each cancel and status read is a client span with status and timing; the metrics count them."""
    made = world.run(create, client)
    receipt = world.run(client.runs.cancel, f"response:{made['id']}")
    assert telemetry.flush(PATIENCE)
    span = recorded.spans[-1]
    assert span.name == "deadstop.cancel"
    assert span.attributes["gen_ai.response.id"] == made["id"]
    below = [each for each in recorded.spans if each.parent is not None]
    assert [each.name for each in below] == ["deadstop.cancel.cancel"] * len(receipt.attempts) + [
        "deadstop.cancel.read"
    ] * len(receipt.reads)
    for each, attempt in zip(below, (*receipt.attempts, *receipt.reads)):
        assert each.parent.span_id == span.context.span_id
        assert each.attributes["http.response.status_code"] == attempt.status == 200
        assert each.attributes["deadstop.attempt.first_byte"] == attempt.first_byte
        assert seconds(each) == pytest.approx(attempt.ended - attempt.started, abs=1e-5)
        assert span.start_time <= each.start_time <= each.end_time
    counted = recorded.points("deadstop.cancel.attempts")
    assert sum(point.value for point in counted.values()) == len(below)
    for attributes in counted:
        assert ("http.response.status_code", 200) in attributes
        assert ("deadstop.kind", "response") in attributes
    assert sum(point.count for point in recorded.points("deadstop.cancel.attempt.duration").values()) == len(below)


def test_cancels_are_counted_by_outcome_cause_and_kind(world: Any, client: Any, recorded: Recorded) -> None:
    """Two cancels are two in the counter and in the histogram of seconds; chunks delivered before them are summed."""
    delivered, took = 0, 0.0
    for name in ("a", "b"):
        begun = threading.Event()
        reading = world.start(world.consume, client, name, lambda _, begun=begun: begun.set())
        assert begun.wait(PATIENCE)
        receipt = world.run(client.runs.cancel, name)
        reading.failure()
        delivered += receipt.delivered.chunks
        took += receipt.elapsed
    assert telemetry.flush(PATIENCE)
    place = {("deadstop.cause", "user"), ("deadstop.kind", "scope")}
    ((attributes, point),) = recorded.points("deadstop.cancels").items()
    assert attributes == {("deadstop.outcome", "cancelled"), *place}
    assert point.value == 2
    ((attributes, point),) = recorded.points("deadstop.cancel.duration").items()
    assert attributes == {("deadstop.outcome", "cancelled"), *place}
    assert (point.count, point.sum) == (2, pytest.approx(took))
    ((attributes, point),) = recorded.points("deadstop.delivered.chunks").items()
    assert attributes == place
    assert point.value == delivered


def test_an_unconfirmed_cancel_is_an_error_with_its_diagnosis(
    world: Any, client: Any, server: FakeOpenAI, recorded: Recorded
) -> None:
    """`error.type` is the diagnosis, on the span and in the metrics; no metric carries the name of a run."""
    server.add(faults.IgnoresCancel())
    made = world.run(create, client)
    receipt = world.run(client.runs.cancel, f"response:{made['id']}", timeout=0.3, policy=RETURN)
    assert receipt.outcome is Outcome.UNCONFIRMED
    assert telemetry.flush(PATIENCE)
    span = recorded.spans[-1]
    assert not span.status.is_ok
    assert span.status.description == str(receipt.diagnosis)
    assert span.attributes["error.type"] == "server_ignored"
    ((attributes, _),) = recorded.points("deadstop.cancels").items()
    assert ("error.type", "server_ignored") in attributes
    for name in ("deadstop.cancels", "deadstop.cancel.duration", "deadstop.cancel.attempts"):
        assert made["id"] not in repr(list(recorded.points(name)))


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (Attempt(1, 1.0, 2.0, status=503), {("http.response.status_code", 503), ("error.type", "503")}),
        (Attempt(1, 1.0, 2.0, error="ConnectError: refused by 10.0.0.1"), {("error.type", "ConnectError")}),
        (Attempt(1, 1.0, 2.0, error="its time was up"), {("error.type", "timeout")}),
        (Attempt(1, 1.0, 2.0, error="the client was closed"), {("error.type", "_OTHER")}),
        (Attempt(1, 1.0, 2.0, status=200), {("http.response.status_code", 200)}),
    ],
)
def test_what_an_attempt_came_to_is_a_few_words(attempt: Attempt, expected: Any, recorded: Recorded) -> None:
    """A status, or the class of an error: never the text of one, which would be another for each host."""
    hook = OpenTelemetryHook(tracer_provider=recorded.tracers, meter_provider=recorded.meters)
    hook(AttemptMade("response:r", "response", "cancel", attempt, "api.openai.com"))
    ((attributes, point),) = recorded.points("deadstop.cancel.attempts").items()
    plain = {("deadstop.kind", "response"), ("deadstop.request", "cancel"), ("server.address", "api.openai.com")}
    assert attributes == plain | expected
    assert point.value == 1


def test_children_are_spans_below_their_scope_s(recorded: Recorded) -> None:
    """A scope's cancel is one tree of spans, with that of each child in it."""
    child = CancelReceipt(
        "response:r", Outcome.CANCELLED, kind="response", attempts=(Attempt(1, 1.5, 2.0, status=200),)
    )
    hook = OpenTelemetryHook(tracer_provider=recorded.tracers, meter_provider=recorded.meters)
    hook(telemetry.CancelSettled("a", "scope", CancelReceipt("a", Outcome.CANCELLED, children=(child,)), at=1.0))
    spans = {each.attributes.get("deadstop.run", each.name): each for each in recorded.spans}
    assert spans["response:r"].parent.span_id == spans["a"].context.span_id
    assert spans["deadstop.cancel.cancel"].parent.span_id == spans["response:r"].context.span_id
    assert spans["a"].parent is None


BY_ITSELF = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(MeterProvider([reader]))

from deadstop import OpenAI, telemetry

with OpenAI(api_key="none").runs.open("a") as run:
    run.cancel()
assert telemetry.flush(20)
data = reader.get_metrics_data()
names = [] if data is None else [each.name for each in data.resource_metrics[0].scope_metrics[0].metrics]
print(len(spans.get_finished_spans()), "deadstop.cancels" in names)
"""


@pytest.mark.parametrize(("setting", "expected"), [("", "1 True"), ("off", "0 False")])
def test_it_is_found_where_the_application_uses_it(setting: str, expected: str, monkeypatch: Any) -> None:
    """Spans and metrics go to the application's own providers without a word of set-up; off is off."""
    monkeypatch.setenv("DEADSTOP_TELEMETRY", setting)
    done = subprocess.run([sys.executable, "-c", BY_ITSELF], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.strip() == expected
