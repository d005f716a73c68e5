"""`deadstop ps`, `cancel`, `receipts` and `reconcile`: a terminal beside the processes that hold runs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import pytest
from cli_child import command, key_and_url, surroundings, warm
from nursery import popen
from worlds import CHAT, until

import deadstop
from deadstop.fleet import members
from deadstop.ledger import connect
from deadstop.runs.hearing import Hearing
from deadstop.testing import FakeOpenAI

JSON = Dict[str, object]  # noqa: UP006
REMOTE = """
import sys, time, deadstop
from typing import Dict
client = deadstop.OpenAI(api_key="k", base_url=sys.argv[1], runs_url="sqlite:")
with client.runs.open("chat-42"):
    client.post("/responses", body={"model": "m", "input": "hi", "background": True}, cast_to=Dict[str, object])
client.runs._registry.keeper.member.writes.drain(20)
print("ready", flush=True)
time.sleep(50)
"""


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a user with an empty state directory."""
    home = tempfile.mkdtemp(prefix="ds-")
    monkeypatch.setenv("XDG_STATE_HOME", home)
    monkeypatch.delenv("DEADSTOP_URL", raising=False)
    try:
        yield {"XDG_STATE_HOME": home}
    finally:
        for each in list(members._members.values()):
            each.close()
        members._members.clear()
        shutil.rmtree(home)


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=100_000) as one:
        yield one


@pytest.fixture
def held(state: dict[str, str], server: FakeOpenAI) -> Iterator[Any]:
    """A run of this process, with a call under way in it; what the call ends with."""
    client = deadstop.OpenAI(api_key="k", base_url=server.base_url, max_retries=0, runs_url="sqlite:")
    ended: list[BaseException] = []

    def hold() -> None:
        try:
            with client.runs.open("chat-42"):
                client.chat.completions.create(**CHAT)
        except deadstop.RunCancelledError as error:
            ended.append(error)

    thread = threading.Thread(target=hold)
    thread.start()
    until(lambda: any(run.calls for run in client.runs.list()), "a call")
    yield ended
    client.runs.cancel_all()
    thread.join(20.0)
    client.close()


def test_a_process_that_is_slow_to_answer_is_not_left_out(
    state: dict[str, str], held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cancel --all` waits for those that have taken its question."""
    answer, never = Hearing._list, threading.Event()
    monkeypatch.setattr(Hearing, "_list", lambda *facts: never.wait(1.0) or answer(*facts))
    with warm("cancel", "--all", **state) as child:
        assert child.end() == 0, child.errors
    until(lambda: held, "the end of the call")


@pytest.fixture
def left(state: dict[str, str], server: FakeOpenAI) -> None:
    """A remote run whose process was killed."""
    env = {**surroundings(), **state}
    with popen(["-c", REMOTE, server.base_url], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()


def test_a_run_of_another_process_is_listed_and_cancelled(state: dict[str, str], held: Any) -> None:
    """`ps` shows what other processes hold, `cancel` reaches it and says 0, `receipts` has it on record."""
    with command("ps", "--json", **state) as child:
        assert child.end() == 0
    (row,) = json.loads("\n".join(child.output))
    assert (row["run"], row["state"], row["calls"]) == ("chat-42", "open", 1)
    with command("cancel", "chat-42", "--reason", "wrong prompt", "--actor", "ann", **state) as child:
        assert child.end() == 0, child.errors
    assert "cancelled" in child.output[0]
    until(lambda: held, "the end of the call")
    assert (held[0].reason, held[0].actor) == ("wrong prompt", "ann")
    with command("receipts", "--json", **state) as child:
        assert child.end() == 0
    (receipt,) = json.loads("\n".join(child.output))
    assert (receipt["run"], receipt["outcome"], receipt["actor"]) == ("chat-42", "cancelled", "ann")


def test_all_runs_are_cancelled(state: dict[str, str], held: Any, server: FakeOpenAI) -> None:
    """`cancel --all` takes every named run."""
    with warm("cancel", "--all", **state) as child:
        assert child.end() == 0, child.errors
    until(lambda: held, "the end of the call")


def test_what_a_dead_process_left_is_cancelled_with_the_key(
    state: dict[str, str], left: None, server: FakeOpenAI
) -> None:
    """`cancel NAME` stops the remote run of a process that was killed; a second one finds it cancelled."""
    with warm("ps", **state) as child:
        assert child.end() == 0
    assert "chat-42" in "\n".join(child.output)
    with warm("cancel", "chat-42", "--timeout", "20", **state, **key_and_url(server.base_url)) as child:
        assert child.end() == 0, child.errors
    (run,) = server.runs
    assert (run.truth, run.cancels) == ("cancelled", 1)


def test_a_remote_run_is_cancelled_by_its_address(state: dict[str, str], left: None, server: FakeOpenAI) -> None:
    """`cancel response:...` needs no record, but a key: 2 without one, 0 once confirmed, 4 if it had finished."""
    address = "response:" + server.runs[0].ids[0]
    with warm("cancel", address, **state, OPENAI_API_KEY="") as child:
        assert child.end() == 2
    assert "OPENAI_API_KEY" in child.errors
    with warm("cancel", address, **state, **key_and_url(server.base_url)) as child:
        assert child.end() == 0, child.errors
    assert server.runs[0].truth == "cancelled"
    with FakeOpenAI(rate=0, tokens=1) as quick:
        client = deadstop.OpenAI(api_key="k", base_url=quick.base_url)
        client.post("/responses", body={"model": "m", "input": "hi", "background": True}, cast_to=JSON)
        quick.wait_for_runs(lambda runs: runs[0].truth == "completed")
        address = "response:" + quick.runs[0].ids[0]
        with warm("cancel", address, **state, **key_and_url(quick.base_url)) as child:
            assert child.end() == 4, child.errors
        client.close()


def test_a_name_that_nobody_holds_is_parked(state: dict[str, str]) -> None:
    """A cancel of it is no success: 3; wrong usage is 2."""
    with warm("cancel", "nobody", **state) as child:
        assert child.end() == 3
    assert "parked" in child.output[0]
    for wrong in ((), ("x", "--all"), ("x", "--wait", "soon"), ("x", "--url", "redis:")):
        with warm("cancel", *wrong, **state) as child:
            assert child.end() == 2


def test_the_reconciler_finishes_what_was_left_and_stops_on_sigterm(
    state: dict[str, str], left: None, server: FakeOpenAI
) -> None:
    """A cancel without a key is only put on record; `reconcile` finishes it, and ends with 0 on SIGTERM."""
    with warm("cancel", "chat-42", "--timeout", "0.5", **state, OPENAI_API_KEY="") as child:
        assert child.end() == 3, child.errors
    assert server.runs[0].cancels == 0
    with warm("reconcile", **state, **key_and_url(server.base_url)) as child:
        child.until("Reconciling")
        server.wait_for_runs(lambda runs: runs[0].truth == "cancelled", 20.0)
        with connect("sqlite:") as ledger:
            until(lambda: not ledger.open_intents(), "the outcome's record")
            assert [each.outcome for each in ledger.receipts("chat-42")] == ["cancelled"]
        child.signal(signal.SIGTERM)
        assert child.end() == 0, child.errors
    assert server.runs[0].cancels == 1
    assert "1 finished." in child.output


def test_the_reconciler_ends_when_there_is_nothing_left(state: dict[str, str], server: FakeOpenAI) -> None:
    """`reconcile --once` is for a timer."""
    with command("reconcile", "--once", **state, **key_and_url(server.base_url)) as child:
        assert child.end() == 0, child.errors
    assert child.output[-1] == "0 finished."


def test_the_reconciler_counts_what_it_finished_alone(state: dict[str, str], server: FakeOpenAI) -> None:
    """A cancel that could not be confirmed once more is not called finished: it will be taken up again."""
    known = {**state, **key_and_url(server.base_url)}
    with warm("cancel", "response:resp_of_nobody", "--timeout", "5", **known) as child:
        assert child.end() == 3, child.errors
    with warm("reconcile", "--once", **known) as child:
        assert child.end() == 0, child.errors
    assert "diagnosis wrong_target" in child.errors
    assert child.output[-1] == "0 finished."
