"""`deadstop exec`: its runs are on record in this user's own ledger, and can be cancelled from another terminal."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_child import command, key_and_url, seed, warm
from test_exec_signals import asked, script

from deadstop.testing import FakeOpenAI, faults


@pytest.fixture
def state() -> Iterator[str]:
    """A state directory of the test's own. A short path: sockets have no long ones."""
    made = tempfile.mkdtemp(prefix="ds-")
    yield made
    shutil.rmtree(made)


def test_another_terminal_cancels_a_run_of_the_script(tmp_path: Path, fake_openai: FakeOpenAI, state: str) -> None:
    """`deadstop ps` lists what the script holds, `deadstop cancel` ends it, and the script goes on from there."""
    fake_openai.add(faults.LostHeaders())
    body = """
    client = OpenAI()
    try:
        with client.runs.open("job-7"):
            ask(client)
    except RunCancelledError as error:
        print(error.reason, error.actor)
    """
    here = {"XDG_STATE_HOME": state}
    with command("exec", script(tmp_path, body), **key_and_url(fake_openai.base_url), **here) as child:
        fake_openai.wait_for(asked, 20)
        with warm("ps", "--json", **here) as ps:
            assert ps.end() == 0
        assert [each["run"] for each in json.loads("\n".join(ps.output))] == ["job-7"]
        with warm("cancel", "job-7", "--reason", "too dear", "--actor", "ann", **here) as cancel:
            assert cancel.end() == 0, cancel.errors
        assert child.end() == 0
    assert child.output == ["too dear ann", "finally", "atexit"]


def test_what_a_signal_cancelled_is_on_record(tmp_path: Path, fake_openai: FakeOpenAI, state: str) -> None:
    """The receipt that was printed can be read later, by `deadstop receipts`."""
    fake_openai.add(faults.LostHeaders())
    here = {"XDG_STATE_HOME": state}
    with warm("exec", "--grace", "20", *seed(tmp_path), **key_and_url(fake_openai.base_url), **here) as child:
        fake_openai.wait_for(asked, 20)
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    with warm("receipts", "--json", **here) as receipts:
        assert receipts.end() == 0
    (found,) = json.loads("\n".join(receipts.output))
    assert "SIGTERM" in json.dumps(found)


def test_a_ledger_that_cant_be_used_keeps_no_script_from_running(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """A warning, and then all is as without one: the script runs, and a signal cancels its call."""
    fake_openai.add(faults.LostHeaders())
    nowhere = {"XDG_STATE_HOME": "/proc/nowhere"}
    with warm("exec", "--grace", "20", *seed(tmp_path), **key_and_url(fake_openai.base_url), **nowhere) as child:
        fake_openai.wait_for(asked, 20)
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    assert child.errors.count("Nothing of this process is put on record") == 1
    assert "cancelled, in" in child.errors


def test_a_ledger_that_was_asked_for_has_to_be_usable(tmp_path: Path) -> None:
    """With --url the script is told what is wrong with it, by the client's constructor."""
    with warm("exec", "--url", "redis://x", *seed(tmp_path), **key_and_url("http://127.0.0.1:9/v1")) as child:
        assert child.end() != 0
    assert "LedgerUrlError" in child.errors
