"""A forked child knows no run of its parent's: it has copies of them, and whatever it did to these were no cancel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest
from remote_runs import begin, truth
from worlds import CHAT

from deadstop import OpenAI, RunCancelledError, UnknownRunError
from deadstop.testing import FakeOpenAI

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=100, tokens=10_000) as one:
        yield one


@pytest.fixture
def client(world: Any, server: FakeOpenAI) -> Iterator[Any]:
    one = world.client(server.base_url, max_retries=0)
    yield one
    world.close(one)


@pytest.fixture
def sync_client(server: FakeOpenAI) -> Iterator[OpenAI]:
    with OpenAI(api_key="k", base_url=server.base_url, max_retries=0) as one:
        yield one


def in_child(work: Callable[[], Any]) -> Any:
    """What `work()` gives in a forked child, as JSON does."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        except BaseException as error:
            os.write(writing, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        found = json.load(pipe)
    os.waitpid(pid, 0)
    return found


def raised(work: Callable[[], Any]) -> str:
    try:
        return repr(work())
    except Exception as error:
        return type(error).__name__


def test_a_signal_handler_that_cancels_all_cancels_nothing_of_the_parent(
    world: Any, client: Any, server: FakeOpenAI
) -> None:
    """The child has it from its parent, as a pool's worker that is terminated. No call and no remote run is touched."""
    begin(world, client, "report")
    call = world.start(world.consume, client, "chat-42", max_tokens=60)
    server.wait_for(lambda requests: any(each.tokens_sent for each in requests))

    def work() -> list[str]:
        listed = client.runs.list()
        for each in listed:
            each.cancel_soon(reason="SIGTERM")
        return [each.name for each in (*listed, *(one.run for one in client.runs._registry.cancel_all_soon()))]

    assert in_child(work) == []
    assert call.result() > 50
    assert (truth(server).truth, truth(server).cancels) == ("active", 0)
    assert [each.cancelled for each in client.runs.list()] == [False]
    assert world.run(client.runs.cancel, "report").outcome == "cancelled"


def test_a_name_of_the_parent_is_unknown_to_the_child(sync_client: OpenAI, server: FakeOpenAI) -> None:
    """I2: by its name, by its stream and by its run: what goes on in the parent is never told to be cancelled."""
    runs = sync_client.runs
    held, leave = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with runs.open("elsewhere"):
            held.set()
            leave.wait(20)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert held.wait(20)
    other = runs.get("elsewhere")
    alone = sync_client.chat.completions.create(**CHAT, stream=True, max_tokens=20)
    with runs.open("chat-42"):
        stream = sync_client.chat.completions.create(**CHAT, stream=True, max_tokens=20)
        next(stream)

        def work() -> list[str]:
            other.cancel_soon()
            targets: list[Any] = ["chat-42", "elsewhere", stream, alone, other]
            tried = [raised(lambda each=each: runs.cancel(each, timeout=1)) for each in targets]  # type: ignore[misc]
            return [*tried, raised(other.cancel), raised(lambda: runs.get("chat-42"))]

        assert set(in_child(work)) == {UnknownRunError.__name__}
        assert len(list(stream)) > 15
        assert len(list(alone)) > 15
    assert not other.cancelled
    leave.set()
    thread.join(20)


def test_what_a_child_begins_in_its_parents_scope_is_its_own(sync_client: OpenAI, server: FakeOpenAI) -> None:
    """It is a run that the child lists, and cancels with the scope's object; the call in it is streamed inside, so the
    server stops. The parent's, in the same scope, goes on."""
    with sync_client.runs.open("chat-42") as run:
        stream = sync_client.chat.completions.create(**CHAT, stream=True, max_tokens=100)
        next(stream)

        def work() -> Any:
            names = [each.name for each in sync_client.runs.list()]
            outcomes: list[str] = []
            stop = threading.Timer(0.3, lambda: outcomes.append(run.cancel(reason="stop").outcome.value))
            stop.start()
            with sync_client.runs.open("inner"):
                errors = [raised(lambda: sync_client.chat.completions.create(**CHAT)) for _ in range(2)]
            stop.join()
            return [os.getpid(), names, errors, outcomes]

        pid, names, errors, outcomes = in_child(work)
        assert names == [f"chat-42/fork-{pid}"]
        assert (errors, outcomes) == (["RunCancelledError", "RunCancelledError"], ["cancelled"])
        assert len(list(stream)) > 90
        assert (run.cancelled, run.name) == (False, "chat-42")
        server.wait_for(lambda requests: [each.state for each in requests] == ["completed", "disconnected"])
    assert [each.streamed for each in server.requests] == [True, True]


EARLY = """
import os, signal
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))  # first, so it is done before ours
import deadstop

def handle(*_):
    os.write(1, " ".join(each.name for each in client.runs.list()).encode())
    os._exit(0)

client = deadstop.OpenAI(api_key="k", base_url="http://127.0.0.1:1/v1")
signal.signal(signal.SIGTERM, handle)
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
with client.runs.open("report"):
    pid = os.fork()
    if pid == 0:
        os._exit(signal.pthread_sigmask(signal.SIG_BLOCK, []) != mask)
    os.waitpid(pid, 0)
    os.write(1, b" %d" % (signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask))
"""


def test_a_signal_that_comes_right_after_the_fork_finds_no_run_of_the_parent() -> None:
    """A worker that is terminated while it is being made: its handler runs, and is not too early for that."""
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=50, check=True)
    assert re.fullmatch(r"report/fork-\d+ 1", done.stdout), done.stderr


def test_a_child_that_leaves_its_parents_scope_leaves_what_is_in_it(sync_client: OpenAI, server: FakeOpenAI) -> None:
    """A stream that is open in the parent's is neither closed nor cancelled, and the child is out of the scope."""
    with sync_client.runs.open("chat-42") as run:
        stream = sync_client.chat.completions.create(**CHAT, stream=True, max_tokens=20)
        next(stream)

        def work() -> list[str]:
            run.__exit__(None, None, None)
            return [each.name for each in sync_client.runs.list()]

        assert in_child(work) == []
        assert len(list(stream)) > 15


def test_what_is_begun_under_a_cancel_is_born_cancelled_in_a_child_too(sync_client: OpenAI) -> None:
    """I15: the scope that the child stands in was cancelled before the fork."""
    with sync_client.runs.open("chat-42") as run:
        run.cancel()
        assert (
            in_child(lambda: raised(lambda: sync_client.chat.completions.create(**CHAT))) == RunCancelledError.__name__
        )
        assert in_child(lambda: raised(run.cancel)) == UnknownRunError.__name__
