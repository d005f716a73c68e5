"""Run scopes: what users hold, in every world."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest
from worlds import CHAT, until

from deadstop import (
    CancelPolicy,
    RunAlreadyOpenError,
    RunCancellationTimeoutError,
    RunCancelledError,
    UnknownRunError,
    UsageError,
)
from deadstop.testing import FakeOpenAI, faults


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url)
    yield one
    world.close(one)


def generating(server: FakeOpenAI, count: int = 1) -> None:
    server.wait_for(lambda requests: sum(each.state == "generating" for each in requests) == count)


def test_a_scope_stops_everything_in_it(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Two calls of one scope, in two threads or tasks: one cancel ends both, with one receipt."""
    if world.is_async:

        async def program() -> None:
            async with client.runs.open("chat-42"), anyio.create_task_group() as group:
                group.start_soon(lambda: client.chat.completions.create(**CHAT))
                group.start_soon(lambda: client.chat.completions.create(**CHAT))

    else:

        def program() -> None:
            with client.runs.open("chat-42"):
                context = contextvars.copy_context()

                def work() -> None:
                    with pytest.raises(RunCancelledError):
                        context.run(world.create, client)

                other = threading.Thread(target=work)
                other.start()
                try:
                    client.chat.completions.create(**CHAT)
                finally:
                    other.join(10)

    pending = world.start(program)
    generating(server, 2)
    receipt = world.run(client.runs.cancel, "chat-42", reason="user pressed stop", actor="alice")
    pending.failure()
    assert receipt.outcome == "cancelled"
    assert len(receipt.calls) == 2
    assert (receipt.reason, receipt.actor, receipt.cause) == ("user pressed stop", "alice", "user")
    server.wait_for(lambda requests: all(each.state == "disconnected" for each in requests))


def test_neighbours_are_left_alone(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Cancelling one of two runs on the same client leaves the other to finish."""
    healthy = world.start(world.consume, client, "healthy", max_tokens=50)
    doomed = world.start(world.consume, client, "doomed")
    generating(server, 2)
    world.run(client.runs.cancel, "doomed")
    assert isinstance(doomed.failure(), RunCancelledError)
    assert healthy.result() >= 50


def test_a_deadline_cancels_the_scope(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A scope with a timeout is cancelled when it is over, and its calls say that it was the deadline."""
    pending = world.start(world.create, client, "r", scope={"timeout": 0.2})
    error = pending.failure()
    assert isinstance(error, RunCancelledError)
    assert error.cause == "deadline"
    assert "0.2" in str(error)
    until(lambda: client.runs.get("r").receipt is not None, "the receipt")
    assert client.runs.get("r").receipt.outcome == "cancelled"


def test_the_deadline_of_a_finished_scope_does_nothing(world: Any, client: Any, server: FakeOpenAI) -> None:
    """When the scope is left in time, its timer is gone."""
    server.rate = 0
    world.start(world.create, client, "r", scope={"timeout": 30}, max_tokens=2).result()
    until(
        lambda: not any("deadlines" in thread.name for thread in threading.enumerate()), "the end of the timer thread"
    )


def nest(world: Any, client: Any, inner: Any) -> Any:
    """A program that opens `outer`, in it `inner`, and runs `inner(run)` there."""
    if world.is_async:

        async def program() -> Any:
            async with client.runs.open("outer"), client.runs.open("inner") as run:
                return await inner(run)

    else:

        def program() -> Any:
            with client.runs.open("outer"), client.runs.open("inner") as run:
                return inner(run)

    return program


def test_the_cancel_of_a_parent_cancels_its_children(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A nested scope is stopped with the one around it, and says so."""
    pending = world.start(nest(world, client, lambda run: client.chat.completions.create(**CHAT)))
    generating(server)
    receipt = world.run(client.runs.cancel, "outer", reason="stop")
    error = pending.failure()
    assert isinstance(error, RunCancelledError)
    assert (error.run, error.cause, error.reason) == ("inner", "parent", "stop")
    assert receipt.outcome == "cancelled"
    assert [child.run for child in receipt.children] == ["inner"]
    assert receipt.children[0].outcome == "cancelled"


def test_the_cancel_of_a_child_leaves_its_parent(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Cancelling the inner scope does not touch the outer one."""
    pending = world.start(nest(world, client, lambda run: client.chat.completions.create(**CHAT)))
    generating(server)
    world.run(client.runs.cancel, "inner")
    assert isinstance(pending.failure(), RunCancelledError)
    assert not client.runs.get("outer").cancelled


def test_a_child_of_a_cancelled_parent_is_born_cancelled(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A scope opened under a cancelled one never sends anything (I15)."""
    if world.is_async:

        async def program() -> None:
            async with client.runs.open("outer") as outer:
                outer.cancel_soon()
                async with client.runs.open("inner"):
                    await client.chat.completions.create(**CHAT)

    else:

        def program() -> None:
            with client.runs.open("outer") as outer:
                outer.cancel_soon()
                with client.runs.open("inner"):
                    client.chat.completions.create(**CHAT)

    assert isinstance(world.start(program).failure(), RunCancelledError)
    assert server.requests == []


def test_check_and_callbacks(world: Any, client: Any, server: FakeOpenAI) -> None:
    """`check()` raises once cancelled; callbacks are called once, also late ones; a failing one stops nothing."""
    called: list[str] = []

    def broken(run: Any) -> None:
        raise RuntimeError("mine")

    def body(run: Any) -> None:
        run.check()
        run.on_cancel(broken)
        run.on_cancel(lambda run: called.append(run.name))
        undo = run.on_cancel(lambda run: called.append("never"))
        undo()
        run.cancel_soon(reason="enough")
        run.cancel_soon(reason="again")
        run.on_cancel(lambda run: called.append("late"))
        with pytest.raises(RunCancelledError, match="enough"):
            run.check()

    if world.is_async:

        async def program() -> None:
            async with client.runs.open("r") as run:
                body(run)

    else:

        def program() -> None:
            with client.runs.open("r") as run:
                body(run)

    world.start(program).result()
    assert called == ["r", "late"]
    receipt = client.runs.get("r").receipt
    assert receipt.reason == "enough", "the first cause sticks (I10)"
    assert [reason for reason, _ in receipt.later] == ["again"]


def test_everybody_who_cancels_gets_the_same_record(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Many cancels at once: one cancellation, one outcome, all reasons kept (I7, I8, I10)."""
    pending = world.start(world.create, client, "r")
    generating(server)
    cancels = [world.start(client.runs.cancel, "r", reason=f"reason {number}") for number in range(20)]
    receipts = [each.result() for each in cancels]
    assert isinstance(pending.failure(), RunCancelledError)
    assert {receipt.outcome for receipt in receipts} == {"cancelled"}
    assert len({receipt.reason for receipt in receipts}) == 1
    assert world.run(client.runs.cancel, "r").outcome == "cancelled", "and after the end"


def test_cancel_all(world: Any, client: Any, server: FakeOpenAI) -> None:
    """Every live run goes, named or not; one receipt each."""
    pending = [world.start(world.create, client, name) for name in ("a", "b", None)]
    generating(server, 3)
    assert len(client.runs.list()) == 3
    receipts = world.run(client.runs.cancel_all, reason="shutdown")
    assert sorted(receipt.outcome for receipt in receipts) == ["cancelled"] * 3
    for each in pending:
        assert isinstance(each.failure(), RunCancelledError)
    assert client.runs.list() == []


def test_levels(world: Any, client: Any, server: FakeOpenAI) -> None:
    """`wait="sent"` and `wait="accepted"` do not wait for the end."""
    for wait in ("sent", "accepted"):
        pending = world.start(world.create, client, wait)
        server.wait_for(lambda requests: any(each.state == "generating" for each in requests))
        receipt = world.run(client.runs.cancel, wait, wait=wait)
        assert receipt.outcome in (wait, "cancelled")
        assert isinstance(pending.failure(), RunCancelledError)
        server.reset()


def test_copies_share_the_runs(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A copy's call is cancelled through the original, and the other way round."""
    copy = client.with_options(timeout=30)
    assert type(copy) is type(client)
    pending = world.start(world.create, copy, "r")
    generating(server)
    assert world.run(client.runs.cancel, "r").outcome == "cancelled"
    assert isinstance(pending.failure(), RunCancelledError)


def test_wait(world: Any, client: Any, server: FakeOpenAI) -> None:
    """`wait()` gives the receipt of a cancel that somebody else asked for; None where nobody did."""
    pending = world.start(world.create, client, "r")
    generating(server)
    assert world.run(client.runs.wait, "r", timeout=0.01) is None
    client.runs.get("r").cancel_soon()
    assert world.run(client.runs.wait, "r", timeout=10).outcome == "cancelled"
    assert isinstance(pending.failure(), RunCancelledError)


def test_reset_replaces_the_pool_while_healthy_calls_finish(world: Any, client: Any, server: FakeOpenAI) -> None:
    """A call under way ends on the old pool; what comes after goes over the new one; nothing stays open."""
    healthy = world.start(world.consume, client, max_tokens=20)
    generating(server)
    old = client._client._transport._pool
    assert world.run(client.runs.reset) >= 1
    assert client._client._transport._pool is not old
    server.rate = 0
    assert world.start(world.create, client, max_tokens=2).result().choices
    assert healthy.result() >= 20
    until(lambda: not old._connections, "the end of the old pool")
    assert not client._client.is_closed


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda runs: runs.open(""), UsageError, "empty"),
    (lambda runs: runs.open("  "), UsageError, "empty"),
    (lambda runs: runs.open(7), UsageError, "string"),
    (lambda runs: runs.open("x", timeout=-1), UsageError, "timeout"),
    (lambda runs: runs.open("x", timeout=0), UsageError, "timeout"),
    (lambda runs: runs.open("x", timeout="soon"), UsageError, "timeout"),
    (lambda runs: runs.open("x", timeout=float("nan")), UsageError, "timeout"),
    (lambda runs: runs.open("x", policy=3), UsageError, "policy"),
    (lambda runs: runs.open("x", metadata=3), UsageError, "metadata"),
    (lambda runs: runs.get("nobody"), UnknownRunError, "nobody"),
    (lambda runs: runs.get(""), UsageError, "empty"),
]


@pytest.mark.parametrize(("use", "kind", "word"), BAD)
def test_bad_input_is_refused_and_nothing_is_left_open(
    world: Any, client: Any, use: Any, kind: type[Exception], word: str
) -> None:
    """Bad input gets an error that names it, and leaves nothing half open."""
    with pytest.raises(kind, match=word):
        use(client.runs)
    assert client.runs.list() == []


@pytest.mark.parametrize(
    ("target", "kwargs", "kind"),
    [
        ("nobody", {}, UnknownRunError),
        ("", {}, UsageError),
        (object(), {}, UnknownRunError),
        (None, {}, UnknownRunError),
        ("r", {"timeout": -1}, UsageError),
        ("r", {"timeout": 0}, UsageError),
        ("r", {"wait": "done"}, UsageError),
        ("r", {"policy": "fast"}, UsageError),
    ],
)
def test_a_bad_cancel_cancels_nothing(
    world: Any, client: Any, server: FakeOpenAI, target: Any, kwargs: Any, kind: type[Exception]
) -> None:
    """A cancel with bad input raises, and the run goes on."""
    pending = world.start(world.consume, client, "r", max_tokens=10)
    generating(server)
    error = world.start(lambda: client.runs.cancel(target, **kwargs)).failure()
    assert isinstance(error, kind), repr(error)
    assert str(error).endswith("."), "a full sentence"
    assert pending.result() >= 10


def test_a_name_that_is_open_can_not_be_opened_again(world: Any, client: Any, server: FakeOpenAI) -> None:
    """The second opening is refused, the first run goes on, and once it has ended the name is free."""
    pending = world.start(world.consume, client, "r", max_tokens=10)
    generating(server)
    with pytest.raises(RunAlreadyOpenError, match="'r'"):
        client.runs.open("r")
    assert pending.result() >= 10
    world.start(world.consume, client, "r", max_tokens=2).result()


def test_an_opaque_transport_is_fenced_and_the_wait_is_bounded(world: Any) -> None:
    """A transport that can't be interrupted: the cancel says so in time, the late answer is not delivered."""
    probe = world.client("http://127.0.0.1:1/v1")
    package = __import__(
        next(c.__module__.partition(".")[0] for c in type(probe._client).__mro__ if c.__module__.startswith("httpx"))
    )
    world.close(probe)
    entered, release = threading.Event(), threading.Event()

    def handler(request: Any) -> Any:
        entered.set()
        release.wait(20)  # blocks whatever thread it is in: nothing can wake it
        return package.Response(200, json={"id": "x", "object": "chat.completion", "choices": [], "created": 1})

    kind = package.AsyncClient if world.is_async else package.Client
    client = world.client("http://fake.test/v1", http_client=kind(transport=package.MockTransport(handler)))
    if world.is_async:
        pytest.skip("a transport that blocks the loop blocks the canceller, too")
    pending = world.start(world.create, client, "r")
    assert entered.wait(10)
    with pytest.raises(RunCancellationTimeoutError) as caught:
        client.runs.cancel("r", timeout=0.2)
    assert str(caught.value) == "Run cancellation timed out after waiting for the operation to abort."
    assert caught.value.receipt.outcome == "unconfirmed"
    assert caught.value.diagnosis.klass == "caller_blocked"
    assert caught.value.receipt.calls[0].server_work == "runs_on"
    assert not pending.done
    release.set()
    late = pending.failure()
    assert isinstance(late, RunCancellationTimeoutError)
    assert late.diagnosis.klass == "caller_blocked"
    assert client.runs.get("r").receipt.outcome == "cancelled", "refined once it came back (I6)"
    world.close(client)


def test_on_timeout_return(world: Any) -> None:
    """`on_timeout="return"` gives the unconfirmed receipt instead of raising."""
    if world.is_async:
        pytest.skip("needs a transport that blocks its thread")
    probe = world.client("http://127.0.0.1:1/v1")
    package = __import__(
        next(c.__module__.partition(".")[0] for c in type(probe._client).__mro__ if c.__module__.startswith("httpx"))
    )
    entered, release = threading.Event(), threading.Event()

    def handler(request: Any) -> Any:
        entered.set()
        release.wait(20)
        return package.Response(500)

    client = world.client("http://fake.test/v1", http_client=package.Client(transport=package.MockTransport(handler)))
    pending = world.start(world.create, client, "r")
    assert entered.wait(10)
    receipt = client.runs.cancel("r", policy=CancelPolicy(timeout=0.1, grace=0.05, on_timeout="return"))
    assert receipt.outcome == "unconfirmed"
    assert not receipt.ok
    release.set()
    pending.failure()


def test_streamed_inside_is_seen_by_the_server_and_said_by_the_receipt(
    world: Any, client: Any, server: FakeOpenAI
) -> None:
    """In a scope a plain call is sent streamed; switched off, or outside of one, it is not."""
    server.rate = 0
    for scope, name, streamed in (
        ({}, "a", True),
        ({"streamed_inside": False}, "b", False),
        (None, None, False),
    ):
        reply = world.start(world.create, client, name, scope=scope, max_tokens=5).result()
        assert reply.object == "chat.completion"
        assert reply.choices[0].message.content.strip() == "t0 t1 t2 t3 t4"
        assert reply.usage.completion_tokens == 5
        assert server.requests[-1].streamed is streamed


@pytest.mark.parametrize("fault", ["RefuseStream", "PlainJSON", "RefuseStreamOptions"])
def test_a_server_that_will_not_stream_is_served_as_it_wants_and_remembered(
    world: Any, client: Any, server: FakeOpenAI, fault: str
) -> None:
    """The answer is right at once; the second call goes the server's way without trying again."""
    server.rate = 0
    server.add(getattr(faults, fault)())
    first = world.start(world.create, client, "a", max_tokens=5).result()
    tries = len(server.requests)
    second = world.start(world.create, client, "b", max_tokens=5).result()
    assert first.choices[0].message.content == second.choices[0].message.content == "t0 t1 t2 t3 t4 "
    assert len(server.requests) == tries + 1


def test_streamed_inside_really_stops_the_server(world: Any, client: Any, server: FakeOpenAI) -> None:
    """On a server that looks at the connection only when it writes, a handful of tokens are the difference."""
    server.rate = 200
    server.add(faults.NoticeOnWrite())
    inside = world.start(world.create, client, "inside", max_tokens=60)
    server.wait_for(lambda requests: len(requests) == 1 and requests[0].tokens_generated > 3)
    world.run(client.runs.cancel, "inside")
    assert isinstance(inside.failure(), RunCancelledError)
    server.wait_for(lambda requests: requests[0].finished_at is not None)
    assert server.requests[0].tokens_after_disconnect <= 5
    plain = world.start(world.create, client, "plain", scope={"streamed_inside": False}, max_tokens=60)
    server.wait_for(lambda requests: len(requests) == 2 and requests[1].tokens_generated > 3)
    world.run(client.runs.cancel, "plain")
    assert isinstance(plain.failure(), RunCancelledError)
    server.wait_for(lambda requests: requests[1].finished_at is not None)
    assert server.requests[1].tokens_generated == 60


def test_the_read_timeout_keeps_its_meaning(world: Any, server: FakeOpenAI) -> None:
    """Streamed inside, an answer that takes longer than the read timeout fails as the plain call does."""
    server.rate = 20
    client = world.client(server.base_url, timeout=0.5, max_retries=0)
    for inside in (True, False):
        error = world.start(
            world.create, client, "r", scope={"streamed_inside": inside}, max_tokens=100
        ).failure()
        # openai 1.0's async client lets the transport's own error through.
        assert isinstance(error, openai.APITimeoutError) or type(error).__name__ == "ReadTimeout", repr(error)
    world.close(client)
