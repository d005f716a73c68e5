"""Calls under attack: cancelled in the cracks between the transport, the SDK and the caller."""

from __future__ import annotations

import contextlib
import contextvars
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nursery import popen
from worlds import CHAT, PATIENCE, Threads, until

import deadstop
from deadstop import RunCancelledError
from deadstop.testing import FakeOpenAI, faults

threads = Threads()


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


def hooked(base_url: str, hook: Any, **kwargs: Any) -> Any:
    """A client whose HTTP client calls `hook` when a response has come, before the SDK sees it."""
    probe = deadstop.OpenAI(api_key="k")
    kind = next(cls for cls in type(probe._client).__mro__ if cls.__name__ == "Client" and cls.__module__[:4] == "http")
    probe.close()
    own = kind(event_hooks={"response": [hook]})
    return deadstop.OpenAI(api_key="k", base_url=base_url, http_client=own, **kwargs)


def child(program: str, *, seconds: float = 20) -> str:
    """What a process of its own prints that runs `program`, with `server` and `client` to hand."""
    head = """
        import contextvars, os, signal, sys, threading, time
        import deadstop
        from deadstop.testing import FakeOpenAI, faults
        CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        server = FakeOpenAI(rate=50, tokens=1000).start()
        client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0)
    """
    source = textwrap.dedent(head) + textwrap.dedent(program) + "\nsys.stdout.flush(); os._exit(0)\n"
    path = os.pathsep.join([str(Path(deadstop.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    with popen(["-c", source], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        finally:
            process.kill()
    return output.strip() or errors[-2000:]


def blocked(call: Any) -> Any:
    """Whether the call's thread has stood at the same spot in a socket's read for 40 looks, 5 ms apart."""
    spots: list[Any] = []

    def look() -> bool:
        frame = sys._current_frames()[call.thread]
        spots.append((frame.f_code.co_filename, frame.f_lasti))
        return "backends" in spots[-1][0] and spots[-40:] == [spots[-1]] * 40

    return look


@pytest.mark.parametrize("where", ["in the hook", "in another thread"])
def test_a_stream_that_is_cancelled_before_the_caller_has_it(server: FakeOpenAI, where: str) -> None:
    """A cancel between the headers and the hand-over is confirmed, and leaves nothing in the registry."""
    receipts: list[Any] = []

    def hook(_response: Any) -> None:
        run = client.runs.list()[0]
        if where == "in the hook":
            run.cancel_soon(reason="stop")
        else:
            threads.start(run.cancel_soon, reason="stop").wait()
        receipts.append(run)

    client = hooked(server.base_url, hook)
    with pytest.raises(RunCancelledError, match="stop"):
        for _ in client.chat.completions.create(**CHAT, stream=True):
            pass
    assert client.runs.list() == []
    assert receipts[0].cancel(timeout=2).outcome == "cancelled"
    server.wait_for(lambda _: server.open_connections == 0)
    client.close()


@pytest.mark.parametrize("what", ["the stream", "the client"])
def test_a_blocked_reader_whose_stream_is_closed_by_somebody_else(server: FakeOpenAI, what: str) -> None:
    """I2: after `close()` from another thread a cancel does not confirm while the reader is blocked; it frees it."""
    server.rate = 0
    server.add(faults.StallAfter(3))
    held: dict[str, Any] = {}
    reading = threading.Event()

    def read() -> None:
        with client.runs.open("r"):
            held["stream"] = client.chat.completions.create(**CHAT, stream=True)
            for count, _ in enumerate(held["stream"]):
                if count == 3:
                    reading.set()

    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0)
    pending = threads.start(read)
    assert reading.wait(PATIENCE)
    run = client.runs.get("r")
    until(blocked(next(iter(run.calls.values()))), "the blocked read")
    (held["stream"].response if what == "the stream" else client).close()
    receipt = client.runs.cancel("r", timeout=3, policy=deadstop.CancelPolicy(on_timeout="return"))
    assert receipt.outcome != "unconfirmed", str(receipt)
    until(lambda: pending.done, "the reader's release, though the receipt says " + str(receipt.outcome))
    client.close()


def test_leaving_a_scope_sends_nothing_again(server: FakeOpenAI) -> None:
    """I13: a plain call that another thread makes in the scope is not closed under the SDK, which would retry it."""
    arrived, left = threading.Event(), threading.Event()
    asked: list[bytes] = []
    body = b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[]}'

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                asked.append(peer.recv(65536))
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                peer.sendall(head % len(body) + body[:5])
                left.wait(PATIENCE)
                with contextlib.suppress(OSError):
                    peer.sendall(body[5:])
                    peer.recv(65536)

    def hook(_response: Any) -> None:
        arrived.set()
        left.wait(PATIENCE)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        client = hooked(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", hook, max_retries=2)
        with client.runs.open("r", streamed_inside=False):
            pending = threads.start(contextvars.copy_context().run, threads.create, client)
            assert arrived.wait(PATIENCE)
        left.set()
        pending.wait()
        client.close()
        listener.shutdown(socket.SHUT_RDWR)
    serving.join(PATIENCE)
    assert len(asked) == 1, f"sent {len(asked)} times; it ended with {pending.error or pending.value!r}"
    assert pending.error is None or isinstance(pending.error, RunCancelledError)


def test_a_keyboard_interrupt_between_the_transport_and_the_sdk(server: FakeOpenAI) -> None:
    """Ctrl-C after the headers of a stream have come gives the connection back, without the garbage collector."""

    def hook(_response: Any) -> None:
        interrupted.append(1)

    interrupted: list[int] = []
    client = hooked(server.base_url, hook)
    cls = type(client)
    original = cls._process_response

    def process(*_args: Any, **_kwargs: Any) -> Any:
        raise KeyboardInterrupt

    cls._process_response = process
    try:
        with pytest.raises(KeyboardInterrupt):
            client.chat.completions.create(**CHAT, stream=True)
    finally:
        del cls._process_response
        assert cls._process_response is original
    assert interrupted
    assert client.runs.list() == []
    pool = client._client._transport._pool
    assert pool._requests == []
    assert all(one.is_idle() or one.is_closed() for one in pool.connections)
    server.wait_for(lambda requests: requests[-1].disconnect_seen_at is not None)
    client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_cancel_in_a_forked_child_leaves_the_parents_calls_alone() -> None:
    """I9: `cancel_all()` in a forked process (a SIGTERM handler) does not shut the parent's sockets down."""
    said = child("""
        server.rate = 20
        got, ended = threading.Event(), []
        def work():
            try:
                with client.runs.open("r"):
                    for chunk in client.chat.completions.create(**CHAT, stream=True, max_tokens=10):
                        got.set()
                ended.append("finished")
            except BaseException as error:
                ended.append(repr(error))
        thread = threading.Thread(target=work)
        thread.start()
        got.wait(10)
        pid = os.fork()
        if pid == 0:
            try:
                client.runs.cancel_all(timeout=0.2)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        thread.join(10)
        print(ended)
    """)
    assert said == "['finished']"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_deadlines_work_in_a_forked_child() -> None:
    """I1: a process that is forked while a deadline runs has deadlines of its own."""
    said = child("""
        with client.runs.open("outer", timeout=60):
            time.sleep(0.2)
            pid = os.fork()
            if pid == 0:
                cancelled = threading.Event()
                with client.runs.open("inner", timeout=0.05) as run:
                    run.on_cancel(lambda _: cancelled.set())
                    os._exit(7 if cancelled.wait(5) else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert said == "7"


def test_a_callback_that_exits_does_not_end_all_deadlines() -> None:
    """I1: whatever an `on_cancel` callback raises in the deadlines' thread, the next deadline comes in time."""
    said = child("""
        threading.excepthook = lambda _: None
        first, second = threading.Event(), threading.Event()
        def leave(_):
            first.set()
            sys.exit(1)
        with client.runs.open("a", timeout=0.05) as run:
            run.on_cancel(leave)
            first.wait(5)
            time.sleep(0.1)
        with client.runs.open("b", timeout=0.05) as run:
            run.on_cancel(lambda _: second.set())
            print(second.wait(5))
    """)
    assert said == "True"


def test_a_signal_handlers_cancel_on_top_of_the_same_cancel() -> None:
    """I1: a handler that runs on top of the thread which does the cancel's books comes back in time."""
    said = child(
        """
        from deadstop.runs import cancelling
        server.add(faults.LostHeaders())
        def work():
            with client.runs.open("r"):
                client.chat.completions.create(**CHAT)
        threading.excepthook = lambda _: None
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        server.wait_for(lambda requests: len(requests) == 1)
        run = client.runs.get("r")
        def handler(*_):
            began = time.monotonic()
            try:
                run.cancel(timeout=0.5)
            except deadstop.DeadstopError:
                pass
            print("in time" if time.monotonic() - began < 1.5 else "late")
        signal.signal(signal.SIGUSR1, handler)
        original, once = cancelling.step, [1]
        def step(*args):
            if once and threading.current_thread() is threading.main_thread():
                once.pop()
                signal.raise_signal(signal.SIGUSR1)
            return original(*args)
        cancelling.step = step
        signal.setitimer(signal.ITIMER_REAL, 4)  # the end of a hang
        run.cancel_soon()
        print(run.cancel(timeout=2).outcome.value)
    """
    )
    assert said.split("\n") == ["in time", "cancelled"]


def test_a_signal_before_the_client_was_ever_used() -> None:
    """A handler that asks for `client.runs` while the first call is importing the machinery does not break it."""
    said = child("""
        count = [0]
        def handler(*_):
            for run in client.runs.list():
                run.cancel_soon()
            count[0] += 1
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        try:
            client.chat.completions.create(**CHAT, max_tokens=1)
        except deadstop.RunCancelledError:
            pass
        except BaseException as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(repr(error)[:300])
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("through" if count[0] else "no signal came")
    """)
    assert said == "through"
