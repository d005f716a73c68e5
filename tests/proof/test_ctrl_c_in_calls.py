"""Ctrl-C in our own code, at every line of what opens, begins, answers, closes and leaves: nothing stays behind."""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from test_adversary_points import NEVER, Lines, nothing_left
from worlds import CHAT, until

import deadstop
from deadstop import Evidence
from deadstop.testing import FakeOpenAI

WHERE = {
    "calls/blocking.py": ("_send", "_body", "__init__", "_exchange", "__iter__", "_close"),
    "calls/call.py": ("__init__", "headers_read", "begin_exchange", "leave"),
    "calls/entry.py": ("run_blocking", "_give"),
    "calls/fence.py": ("hand_over",),
    "calls/loops.py": ("who_runs",),
    "calls/sockets.py": ("let_go",),
    "calls/streamed.py": ("_pump_blocking", "_to_drain", "_assemble"),
    "calls/tracker.py": ("__init__", "begin", "sending", "headers", "feed", "end"),
    "runs/births.py": ("expect", "__init__", "learned", "lost"),
    "runs/registry.py": ("begin", "open", "retire", "christen"),
    "runs/run.py": ("add", "enter", "join_parent", "leave", "remove", "remote_changed", "end"),
}
"""The rest of a scope's beginning and end is Python's own: what interrupts `with` itself can't be helped."""


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=0, tokens=3) as one:
        yield one


class CtrlC(Lines):
    """A KeyboardInterrupt at the n-th line of what is in `WHERE`, in this thread."""

    def __init__(self, at: int) -> None:
        super().__init__(at, self._interrupt)

    def _interrupt(self) -> None:
        raise KeyboardInterrupt

    def looks_at(self, code: Any) -> bool:
        folder, name = os.path.split(code.co_filename)
        return "deadstop" in folder and code.co_name in WHERE.get(f"{os.path.basename(folder)}/{name}", ())

    def does_something(self, frame: Any) -> bool:
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        return text not in ("try:", "finally:")


@pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else is tracing")
@pytest.mark.parametrize("shape", ["plain", "plain in a scope", "stream in a scope", "raw", "job in a scope"])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_line_of_a_call(server: FakeOpenAI, shape: str) -> None:
    """No run stays live, no connection busy, the scope's name is free, and what is called next is not cancelled."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0)

    def call() -> None:
        with contextlib.ExitStack() as stack:
            if shape.endswith("scope"):
                stack.enter_context(client.runs.open("r", timeout=100))
            if shape.startswith("job"):
                client.fine_tuning.jobs.create(model="m", training_file="file-1")
            elif shape == "raw":
                client.chat.completions.with_raw_response.create(**CHAT).parse()
            elif shape.startswith("stream"):
                stream = client.chat.completions.create(**CHAT, stream=True)
                with contextlib.closing(stream.response):  # not by the collector, which takes Ctrl-C for nobody's
                    assert len(list(stream)) > 1
            else:
                client.chat.completions.create(**CHAT)

    call()
    with CtrlC(NEVER) as clean:
        call()
    assert clean.count > 50
    for at in range(1, clean.count + 1):
        with CtrlC(at) as interrupted:
            try:
                call()
            except KeyboardInterrupt:
                pass
            else:
                assert not interrupted.fired_in, f"it was swallowed at {interrupted.fired_in}"
        for run in client.runs.list():  # one that the server has goes on there
            if run.remote is not None and run.remote.ref is not None and not run.calls:
                client.runs._registry.observe(run.remote.ref, "succeeded", Evidence.STATUS)
        until(lambda: nothing_left(client), f"the end, after Ctrl-C at {interrupted.fired_in}")
        if at % 10 == 0:
            call()
    client.close()
    server.wait_for(lambda _: server.open_connections == 0)


@pytest.mark.skipif(sys.gettrace() is not None, reason="somebody else is tracing")
def test_ctrl_c_as_a_cancelled_scope_is_left(server: FakeOpenAI) -> None:
    """Wherever its end is broken off, the thread is out of it: the next call is not born cancelled."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0)

    def scope(at: int) -> CtrlC:
        interrupt = CtrlC(at)
        with contextlib.suppress(KeyboardInterrupt), client.runs.open("r") as run:
            run.cancel(timeout=5)
            interrupt.__enter__()
        interrupt.__exit__()
        return interrupt

    last = scope(NEVER).count
    assert last > 5
    for at in range(1, last + 1):
        interrupted = scope(at)
        assert client.chat.completions.create(**CHAT).choices, interrupted.fired_in
        assert client.runs.list() == [], interrupted.fired_in
    client.close()
