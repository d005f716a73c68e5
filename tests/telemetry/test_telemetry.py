"""What is told of cancels, and to whom."""

from __future__ import annotations

import contextvars
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import pytest
from test_house import without_extras
from worlds import PATIENCE

from deadstop import CancelPolicy, Outcome, UsageError, telemetry
from deadstop.core.model import Cause
from deadstop.telemetry import AttemptMade, CancelRefined, CancelRequested, CancelSettled
from deadstop.testing import FakeOpenAI, faults

RETURN = CancelPolicy(on_timeout="return", poll=0.05)
RUN = {"model": "m", "input": "hi", "background": True}


def create(client: Any) -> Any:
    """Start a remote run: a background response; to be awaited in a task."""
    return client.post("/responses", body=RUN, cast_to=Dict[str, object])  # noqa: UP006


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    yield one
    world.close(one)


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """Every event of the test."""
    events: list[Any] = []
    undo = telemetry.add_hook(events.append)
    yield events
    undo()


def cancel_a_stream(world: Any, client: Any, name: str = "chat-1", **facts: Any) -> Any:
    """Cancel a stream that has begun; its receipt, once everybody was told."""
    begun = threading.Event()
    reading = world.start(world.consume, client, name, lambda _: begun.set())
    assert begun.wait(PATIENCE)
    receipt = world.run(client.runs.cancel, name, **facts)
    reading.failure()
    assert telemetry.flush(PATIENCE)
    return receipt


def test_a_hook_is_told_of_the_request_and_of_the_outcome(
    world: Any, client: Any, server: FakeOpenAI, told: list[Any]
) -> None:
    """A scope's cancel gives two events: asked for by whom and why, and the receipt that its caller got."""
    receipt = cancel_a_stream(world, client, reason="stop", actor="u-7")
    requested, settled = told
    assert isinstance(requested, CancelRequested)
    assert (requested.run, requested.kind, requested.cause) == ("chat-1", "scope", Cause.USER)
    assert (requested.reason, requested.actor) == ("stop", "u-7")
    assert isinstance(settled, CancelSettled)
    assert (settled.receipt, settled.at, settled.kind) == (receipt, requested.at, "scope")
    assert server.base_url.startswith(f"http://{settled.server}/")
    assert receipt.calls[0].host == settled.server


def test_a_hook_is_told_of_each_request_that_a_cancel_makes(world: Any, client: Any, told: list[Any]) -> None:
    """The cancel of a remote run tells of its requests, with status and timing, before it tells of the outcome."""
    made = world.run(create, client)
    receipt = world.run(client.runs.cancel, f"response:{made['id']}")
    assert telemetry.flush(PATIENCE)
    attempts = [each for each in told if isinstance(each, AttemptMade)]
    assert [each.attempt for each in attempts if each.request == "cancel"] == list(receipt.attempts)
    assert [each.attempt for each in attempts if each.request == "read"] == list(receipt.reads)
    assert attempts[0].attempt.status == 200
    assert attempts[0].attempt.first_byte is not None
    assert [each.kind for each in told] == ["response"] * len(told)
    assert isinstance(told[-1], CancelSettled)


def test_a_hook_is_told_when_an_unconfirmed_cancel_comes_to_something(
    world: Any, client: Any, server: FakeOpenAI, told: list[Any]
) -> None:
    """First that it was not confirmed, and then, once, what became of it: with the outcome before."""
    refined = threading.Event()
    undo = telemetry.add_hook(lambda event: refined.set() if isinstance(event, CancelRefined) else None)
    server.rate = 300  # so that it ends by itself, in a few seconds, if the second cancel is ignored, too
    server.add(faults.IgnoresCancel())
    made = world.run(create, client)
    receipt = world.run(client.runs.cancel, f"response:{made['id']}", timeout=0.3, policy=RETURN)
    assert receipt.outcome is Outcome.UNCONFIRMED
    server.clear()
    assert refined.wait(PATIENCE)
    undo()
    outcomes = [each for each in told if isinstance(each, (CancelSettled, CancelRefined))]
    assert [type(each) for each in outcomes] == [CancelSettled, CancelRefined]
    assert outcomes[1].before.outcome is Outcome.UNCONFIRMED
    assert outcomes[1].receipt.ok


def test_a_hook_is_told_of_a_child_and_of_its_scope(world: Any, client: Any, told: list[Any]) -> None:
    """A remote run inside a cancelled scope settles first, its cause the scope around it."""
    begun = threading.Event()

    async def in_a_task() -> None:
        async with client.runs.open("job"):
            await create(client)
            begun.set()
            async for _ in await client.chat.completions.create(model="m", messages=[], stream=True):
                pass

    def in_a_thread() -> None:
        with client.runs.open("job"):
            create(client)
            begun.set()
            for _ in client.chat.completions.create(model="m", messages=[], stream=True):
                pass

    working = world.start(in_a_task if world.is_async else in_a_thread)
    assert begun.wait(PATIENCE)
    receipt = world.run(client.runs.cancel, "job")
    working.failure()
    assert telemetry.flush(PATIENCE)
    settled = [each for each in told if isinstance(each, CancelSettled)]
    assert [(each.kind, each.receipt.cause) for each in settled] == [
        ("response", Cause.PARENT),
        ("scope", Cause.USER),
    ]
    assert settled[1].receipt == receipt


def test_a_hook_that_raises_disturbs_nobody_and_is_complained_about_once(
    world: Any, client: Any, told: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Two cancels come to their end, other hooks hear of them, and one log record says what went wrong."""
    asked = []

    def broken(event: Any) -> None:
        asked.append(event)
        raise SystemExit("no")

    undo = telemetry.add_hook(broken)
    try:
        for name in ("a", "b"):
            assert cancel_a_stream(world, client, name).outcome is Outcome.CANCELLED
    finally:
        undo()
    assert asked == told
    assert len(told) == 4
    assert [each.message for each in caplog.records if "telemetry hook" in each.message] == [
        f"The telemetry hook {broken!r} failed; cancels go on, and this is said once."
    ]


def test_a_hook_runs_in_the_context_of_whoever_asked(world: Any, client: Any) -> None:
    """Context variables are those of the canceller, in a thread that is not the canceller's; no run is open there."""
    from deadstop.runs.run import current_run

    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen: list[Any] = []
    undo = telemetry.add_hook(lambda _: seen.append((user.get(), current_run.get(), threading.get_ident())))
    begun = threading.Event()
    reading = world.start(world.consume, client, "chat-1", lambda _: begun.set())
    assert begun.wait(PATIENCE)
    user.set("u-7")
    run = client.runs.get("chat-1")
    run.cancel_soon()
    reading.failure()
    assert telemetry.flush(PATIENCE)
    undo()
    assert [each[:2] for each in seen] == [("u-7", None)] * 2
    assert threading.get_ident() not in {each[2] for each in seen}


def test_a_slow_hook_does_not_hold_up_a_cancel(world: Any, client: Any) -> None:
    """A hook that blocks delays other events only: the cancel is confirmed meanwhile."""
    entered, go = threading.Event(), threading.Event()
    undo = telemetry.add_hook(lambda _: (entered.set(), go.wait(PATIENCE)))
    begun = threading.Event()
    reading = world.start(world.consume, client, "chat-1", lambda _: begun.set())
    assert begun.wait(PATIENCE)
    assert world.run(client.runs.cancel, "chat-1").outcome is Outcome.CANCELLED
    reading.failure()
    assert entered.wait(PATIENCE)
    assert not telemetry.flush(0.01)
    undo()
    go.set()
    assert telemetry.flush(PATIENCE)


def test_what_was_added_is_undone_and_what_is_no_hook_refused(world: Any, client: Any) -> None:
    """After its undo (also the second one) a hook hears nothing; a thing that can't be called raises."""
    events: list[Any] = []
    undo = telemetry.add_hook(events.append)
    undo()
    undo()
    cancel_a_stream(world, client)
    assert events == []
    with pytest.raises(UsageError):
        telemetry.add_hook(None)  # type: ignore[arg-type]


def test_a_settled_cancel_is_one_log_record_with_the_receipt(
    world: Any, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """At INFO, with the receipt as plain data, and nothing of the prompt, the answer or the key in it."""
    caplog.set_level(logging.INFO, logger="deadstop")
    receipt = cancel_a_stream(world, client, reason="stop")
    (record,) = [each for each in caplog.records if each.name == "deadstop.cancels"]
    assert record.levelno == logging.INFO
    assert record.message == str(receipt)
    facts = record.deadstop  # type: ignore[attr-defined]
    assert facts == {**receipt.to_dict(), "kind": "scope", "server": receipt.calls[0].host}
    assert "Authorization" not in repr(facts)


def test_an_unconfirmed_cancel_is_a_warning(
    world: Any, client: Any, server: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be confirmed is logged louder, with its diagnosis, also where INFO is not logged."""
    caplog.set_level(logging.WARNING, logger="deadstop")
    server.add(faults.IgnoresCancel())
    made = world.run(create, client)
    world.run(client.runs.cancel, f"response:{made['id']}", timeout=0.3, policy=RETURN.replace(give_up=0))
    assert telemetry.flush(PATIENCE)
    (record,) = [each for each in caplog.records if each.name == "deadstop.cancels"]
    assert record.levelno == logging.WARNING
    assert record.deadstop["diagnosis"]["klass"] == "server_ignored"  # type: ignore[attr-defined]


def test_a_query_is_not_logged() -> None:
    """Of a call's URL the path alone is on record: a query, a user or a password may be secret."""
    from deadstop.core.model import CallFacts, CancelReceipt
    from deadstop.telemetry.logs import facts

    call = CallFacts(id="1", method="GET", path="https://u:secret@h/a?key=secret")
    inner = CancelReceipt(run="b", outcome=Outcome.CANCELLED, calls=(call,))
    plain = facts(CancelReceipt(run="a", outcome=Outcome.CANCELLED, calls=(call,), children=(inner,)))
    assert plain["calls"][0]["path"] == plain["children"][0]["calls"][0]["path"] == "/a"
    assert "secret" not in repr(plain)


@pytest.mark.parametrize("how", ["environment", "code"])
def test_what_reports_by_itself_can_be_turned_off(
    world: Any, client: Any, told: list[Any], caplog: pytest.LogCaptureFixture, how: str, monkeypatch: Any
) -> None:
    """No log record then; hooks that were added are told all the same; what was turned off comes back."""
    caplog.set_level(logging.INFO, logger="deadstop")
    if how == "environment":
        monkeypatch.setenv("DEADSTOP_TELEMETRY", "off")
    undo = telemetry.turn_off() if how == "code" else lambda: monkeypatch.delenv("DEADSTOP_TELEMETRY")
    cancel_a_stream(world, client, "a")
    assert len(told) == 2
    assert [each for each in caplog.records if each.name == "deadstop.cancels"] == []
    undo()
    cancel_a_stream(world, client, "b")
    assert [each.deadstop["run"] for each in caplog.records if each.name == "deadstop.cancels"] == ["b"]


def test_nothing_is_started_where_nobody_listens(world: Any, client: Any, monkeypatch: Any) -> None:
    """Without a hook, OpenTelemetry and INFO logs a cancel puts nothing in the queue."""
    from deadstop.telemetry import dispatch

    undo = telemetry.turn_off()
    queued: list[Any] = []
    monkeypatch.setattr(dispatch, "emit", lambda *args: queued.append(args))
    cancel_a_stream(world, client)
    undo()
    assert queued == []


def test_hooks_are_told_without_any_extra() -> None:
    """With OpenTelemetry missing, and its environment set, a cancel is told of and nothing is printed."""
    done = without_extras(
        """
import os
os.environ["OTEL_PYTHON_TRACER_PROVIDER"] = "sdk_tracer_provider"
from deadstop import OpenAI, telemetry
events = []
telemetry.add_hook(events.append)
client = OpenAI(api_key="none")
with client.runs.open("a") as run:
    run.cancel()
assert telemetry.flush(20)
assert [type(each).__name__ for each in events] == ["CancelRequested", "CancelSettled"], events
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "deadstop[otel]" in done.stderr


def test_the_end_of_the_process_waits_for_what_was_not_told() -> None:
    """A cancel in a program's last line is told of before the program ends."""
    code = """
from deadstop import OpenAI, telemetry
telemetry.add_hook(lambda event: print(type(event).__name__, flush=True))
with OpenAI(api_key="none").runs.open("a") as run:
    run.cancel()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.split() == ["CancelRequested", "CancelSettled"]
