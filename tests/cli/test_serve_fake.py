"""`deadstop serve-fake`: the fake server by hand."""

from __future__ import annotations

import signal

import pytest
from cli_child import command, warm

from deadstop import OpenAI
from deadstop.cli.serve_fake import BadFault, parse_fault
from deadstop.testing import FakeOpenAI, faults
from deadstop.testing.faults.base import Fault

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(number: int) -> None:
    """It prints its base URL and an example, answers as it was told to, logs it, and stops cleanly on a signal."""
    with command("serve-fake", "--rate", "0", "--tokens", "3", "--fault", "NoUsage") as child:
        url = child.line()
        assert url in child.line()
        with OpenAI(api_key="any", base_url=url) as client:
            answer = client.chat.completions.create(**ASK)
        assert answer.choices[0].message.content == "t0 t1 t2 "
        assert answer.usage is None
        assert "completed (3 tokens generated" in child.until("#1")
        child.signal(number)
        assert child.end() == 0
    assert child.errors == ""


def test_it_has_remote_runs() -> None:
    """It makes and cancels a run, with the faults of a run's life, and logs what was true of it."""
    with warm("serve-fake", "--rate", "1000", "--tokens", "50000", "--fault", "StaysCancelling:seconds=0.01") as child:
        url = child.line()
        with OpenAI(api_key="any", base_url=url) as client:
            job = client.fine_tuning.jobs.create(model="m", training_file="f")
            client.fine_tuning.jobs.cancel(job.id)
        assert "says cancelled, is cancelled" in child.until(f"fine_tuning_job:{job.id}")
        child.signal(signal.SIGTERM)
        assert child.end() == 0
    assert child.errors == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Deaf", faults.Deaf()),
        ("StallAfter:tokens=3", faults.StallAfter(3)),
        ("StallAfter:tokens=3,seconds=0.5", faults.StallAfter(3, 0.5)),
        ("StallAfter:tokens=3,seconds=None", faults.StallAfter(3)),
        ("Overloaded:status=429,retry_after=5", faults.Overloaded(429, "5")),
        ("HalfChunk:then=close", faults.HalfChunk(then="close")),
    ],
)
def test_a_fault_is_read(text: str, fault: Fault) -> None:
    """A fault's arguments are read as the types that they have."""
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Nonsense", "There are: Blackhole"),
        ("Fault", "There are: Blackhole"),
        ("StallAfter", "takes tokens=..., seconds=..."),
        ("StallAfter:after=3", "takes tokens=..., seconds=..."),
        ("StallAfter:tokens", "takes tokens=..., seconds=..."),
        ("StallAfter:tokens=x", "'x' is not"),
        ("HalfChunk:then=sing", "sing"),
    ],
)
def test_a_wrong_fault_is_refused(text: str, says: str) -> None:
    """What can't be read is named, with what could be."""
    with pytest.raises(BadFault) as caught:
        parse_fault(text)
    assert says in str(caught.value)


def test_a_wrong_fault_is_a_wrong_command_line() -> None:
    """The command says what is wrong with a fault, without a traceback."""
    with warm("serve-fake", "--fault", "Nonsense") as child:
        assert child.end() == 2
    assert "There are: Blackhole" in " ".join(child.errors.split())


def test_a_taken_port_is_told(fake_openai: FakeOpenAI) -> None:
    """Where another server listens already, one sentence says so."""
    with warm("serve-fake", "--port", str(fake_openai.port)) as child:
        assert child.end() == 1
    assert child.errors.startswith("The server can't start: ")
