"""The server as a process of its own, and its remote control."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit_client import KitClient

from deadstop.testing import FakeProcess, faults


@pytest.fixture(scope="module")
def process() -> Iterator[FakeProcess]:
    """One child process for all."""
    with FakeProcess(rate=0, tokens=5) as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(process: FakeProcess) -> None:
    """Each test begins with no faults and no records."""
    process.reset()


def test_the_records_come_over(process: FakeProcess) -> None:
    """The child's records read like our own, on the same clock; the control is not among them."""
    before = time.monotonic()
    with KitClient(process) as client:
        client.send()
        client.read_until(b"usage")
    [record] = process.wait("completed")
    assert (record.model, record.tokens_generated, record.state) == ("m", 5, "completed")
    assert record.received_at is not None
    assert before < record.received_at < time.monotonic()
    assert process.requests == [record]


def test_a_fault_is_set_and_cleared_from_outside(process: FakeProcess) -> None:
    """Faults travel with all their parameters and limits."""
    process.add(faults.StallAfter(2), path="/chat/completions", model="m", times=1)
    with KitClient(process) as client:
        client.send(stream=True)
        [record] = process.wait("generating", tokens=2)
    assert process.wait("disconnected", id=record.id)[0].tokens_generated == 2
    process.add(faults.Overloaded(429))
    process.clear()
    with KitClient(process) as client:
        client.send()
        assert client.read_until(b"usage").startswith(b"HTTP/1.1 200")


def test_the_runs_come_over(process: FakeProcess) -> None:
    """The child's remote runs read like our own, and can be waited for without asking again and again."""
    process.add(faults.StaysCancelling(0.05), path="/cancel")
    with KitClient(process) as client:
        client.send("/v1/uploads", {"bytes": 1})
        client.read_until(b"upload_fake")
        [made] = process.wait_runs("active", kind="upload")
        client.send(f"/v1/uploads/{made.id}/cancel")
        process.wait("completed", id=made.request + 1)  # answered, so acknowledged
        [run] = process.wait_runs("cancelled", kind="upload", id=made.id, cancels=1)
    assert (run.ids, run.status, run.truth) == (made.ids, "cancelled", "cancelled")
    assert run.history[0] == (run.created_at, "pending")
    assert process.runs() == [run]
    with pytest.raises(TimeoutError, match=f"upload:{made.id} says cancelled"):
        process.wait_runs("completed", timeout=0.01)
    process.reset()
    assert process.runs() == []


def test_a_blackhole_does_not_lock_its_owner_out(process: FakeProcess) -> None:
    """The control goes on over its own connection, whatever new connections suffer."""
    process.add(faults.Blackhole())
    with KitClient(process) as client:
        client.send()
        assert process.records() == []
        process.clear()


def test_a_wait_in_vain_ends_in_time(process: FakeProcess) -> None:
    """A wait for what does not come raises TimeoutError."""
    with pytest.raises(TimeoutError, match=r"did not come true within 0\.01 s\. The records:"):
        process.wait("completed", id=10**6, timeout=0.01)


def test_senseless_commands_are_refused(process: FakeProcess) -> None:
    """What can't be done from outside is a ValueError with the server's own words."""
    with pytest.raises(ValueError, match="before a request is read"):
        process.add(faults.Blackhole(), path="/x")

    class Homemade(faults.Fault):
        """Known to this process alone."""

    with pytest.raises((ValueError, TypeError)):
        process.add(Homemade())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_foreground_server_cleanly(number: signal.Signals) -> None:
    """The module, run by hand, prints its base URL and exits with 0 on SIGTERM and SIGINT."""
    sources = str(Path(__file__).parents[2] / "src")
    with subprocess.Popen(
        [sys.executable, "-m", "deadstop.testing"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([sources, os.environ.get("PYTHONPATH", "")])},
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("http://127.0.0.1:")
        running.send_signal(number)
        assert running.wait(10) == 0


def test_the_child_ends_with_the_context() -> None:
    """After the context the child is gone, over TLS as well."""
    certificate = str(Path(__file__).with_name("localhost.pem"))
    with FakeProcess(certfile=certificate) as running:
        assert running.base_url.startswith("https://")
        assert running.records() == []
        pid = running.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
