"""`deadstop demo`: the main job in one command, and its verdicts."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from cli_child import command, warm

from deadstop.cli.demo.cases import CASES, Case, Moment
from deadstop.cli.demo.judge import Played, judge
from deadstop.cli.demo.remote import REMOTE_CASES
from deadstop.core.model import (
    CallFacts,
    CancelReceipt,
    Delivered,
    Diagnosis,
    DiagnosisClass,
    Evidence,
    Interrupted,
    Outcome,
    ServerWork,
    Streamed,
)
from deadstop.errors import RunCancellationTimeoutError, RunCancelledError
from deadstop.testing import FakeOpenAI, RequestRecord

CALL = CallFacts(
    "1",
    "POST",
    "/chat/completions",
    interrupted=Interrupted.SOCKET,
    streamed=Streamed.ASKED,
    released=True,
    socket_closed=True,
)


def played(*, call: dict[str, Any] | None = None, record: dict[str, Any] | None = None, **facts: Any) -> Played:
    """A stream that was cancelled properly at 10 s, but for what is given."""
    told = CallFacts(**{**CALL.__dict__, **(call or {})})
    receipt = CancelReceipt(
        "demo", Outcome.CANCELLED, evidence=Evidence.TRANSPORT, calls=(told,), delivered=Delivered(chunks=5)
    )
    seen = {
        "state": "disconnected",
        "status": 200,
        "streamed": True,
        "opened_at": 9.0,
        "started_at": 9.1,
        "tokens_sent": 4,
        "peer_gone_at": 10.001,
        **(record or {}),
    }
    final = RequestRecord(id=1, connection_id=1, nth_on_connection=1, method="POST", path="/v1/x", **seen)
    known: dict[str, Any] = {
        "receipt": receipt,
        "error": RunCancelledError(run="demo"),
        "counted": True,
        "seen": 5,
        "asked_at": 10.0,
        "returned_at": 10.002,
        "freed_at": 10.002,
        "final": [final],
        "then": [final],
    }
    return Played(Case("chat, streamed", Moment.READING), **{**known, **facts})


def test_a_receipt_that_the_record_bears_out_has_no_problems() -> None:
    """Where everything is as the receipt says, the judge is silent."""
    assert judge(played()) == []


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"record": {"state": "completed", "peer_gone_at": None}}, "never saw"),
        ({"record": {"tokens_after_disconnect": 30}}, "30 tokens after the disconnect"),
        ({"record": {"tokens_after_disconnect": 1}, "call": {"server_work": ServerWork.STOPPED}}, "stopped, and 1"),
        ({"call": {"server_work": ServerWork.STOPPED}, "record": {"state": "generating"}}, "still generating"),
        ({"call": {"interrupted": Interrupted.NOT_STARTED}}, "nothing was sent"),
        ({"call": {"released": False}}, "not released"),
        ({"call": {"streamed": Streamed.PLAIN}}, "streamed=True"),
        ({"record": {"opened_at": 10.5}}, "came after the cancel"),
        ({"record": {"tokens_sent": 0}}, "sent none"),
        ({"late": 1}, "delivered after the cancel"),
        ({"seen": 6}, "the receipt says 5"),
        ({"freed_at": None}, "never came back"),
        ({"error": ValueError()}, "instead of RunCancelledError"),
        ({"receipt": None}, "no receipt"),
        ({"beside": ["the neighbour broke"]}, "neighbour"),
    ],
)
def test_each_disagreement_is_named(facts: dict[str, Any], says: str) -> None:
    """Whatever a receipt claims beyond the server's record is found, and said in a sentence."""
    problems = judge(played(**facts))
    assert any(says in each for each in problems), problems


@pytest.mark.parametrize(("record", "agree"), [({"state": "generating", "peer_gone_at": None}, True), ({}, False)])
def test_an_unconfirmed_receipt_holds_while_the_call_goes_on(record: dict[str, Any], agree: bool) -> None:
    """`unconfirmed` is borne out by a record that still generates for us, and by no other."""
    diagnosis = Diagnosis(DiagnosisClass.CALLER_BLOCKED, "It is blocked.")
    receipt = CancelReceipt("demo", Outcome.UNCONFIRMED, diagnosis=diagnosis, calls=(CALL,))
    facts = played(record=record, receipt=receipt, error=RunCancellationTimeoutError(), counted=False)
    assert (judge(facts) == []) is agree


@pytest.mark.timeout(150)
def test_the_demo_holds() -> None:
    """Every case is played or skipped visibly, calls beside them finish untouched, and every receipt holds."""
    with command("demo") as child:
        assert child.end(within=120.0) == 0, "\n".join(child.output)
    output = "\n".join(child.output)
    numbers = re.findall(r"^(?:yes|skipped) +(\d+)\. ", output, re.MULTILINE)
    assert {int(number) for number in numbers} == set(range(1, len(CASES) + 1))
    kinds = r"^(?:yes|skipped) (?:sync|async) (?:background response|thread run|batch)"
    remote = re.findall(kinds, output, re.MULTILINE)
    assert len(remote) == len(REMOTE_CASES)
    assert "neighbour-sync" in output
    assert "receipts hold" in child.output[-1]
    assert "Traceback" not in child.errors


LIAR = """
import sys
from deadstop.calls import facts
from deadstop.core.model import ServerWork

facts._server_work = lambda call: ServerWork.STOPPED
sys.argv = ["deadstop", "demo", "--only", "Deaf"]

from deadstop.cli import main
sys.exit(main())
"""


def test_a_receipt_that_claims_too_much_fails_the_demo() -> None:
    """A library whose receipts say `stopped` of a server that runs on is caught by its record: exit code 1."""
    done = subprocess.run([sys.executable, "-c", LIAR], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the receipt says stopped, and" in done.stdout


def test_a_real_server_is_asked_the_same(fake_openai: FakeOpenAI) -> None:
    """With --base-url and --model the calls go there, with the key, and there is no column for a record."""
    fake_openai.rate = 100
    options = ("--base-url", fake_openai.base_url, "--model", "some-model", "--api-key", "sk-1")
    with warm("demo", *options, "--only", "async chat, streamed") as child:
        assert child.end() == 0, "\n".join(child.output)
    assert {each.model for each in fake_openai.requests} == {"some-model"}
    assert {each.headers["authorization"] for each in fake_openai.requests} == {"Bearer sk-1"}
    assert "own record" not in "\n".join(child.output)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--base-url", "http://127.0.0.1:1/v1"), "--model"),
        (("--base-url", "http://127.0.0.1:1/v1", "--model", "m"), "key"),
        (("--only", "no such call"), "no such call"),
    ],
)
def test_wrong_options_are_told(options: tuple[str, ...], says: str) -> None:
    """What is missing is named, and the exit code is 2."""
    with warm("demo", *options, OPENAI_API_KEY="") as child:
        assert child.end() == 2
    assert says in "\n".join(child.output) + child.errors


def test_a_server_that_is_not_there_is_no_success() -> None:
    """Where nothing could be played, nothing holds: the exit code is 2."""
    options = ("--base-url", "http://127.0.0.1:1/v1", "--model", "m", "--api-key", "k", "--only", "sync chat, no scope")
    with warm("demo", *options) as child:
        assert child.end() == 2
    assert "Nothing could be played" in child.output[-1]
