"""`deadstop exec`: a signal to a process that the script has forked, such as a worker of a pool that is terminated."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_child import key_and_url, warm
from test_exec_signals import script

from deadstop.testing import FakeOpenAI

FORKS = """
import signal
from typing import Dict
client = OpenAI()
with client.runs.open("parent") as run:
    client.post("/responses", body={"model": "m", "input": "hi", "background": True}, cast_to=Dict[str, object])
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, b"!")
            while True:
                time.sleep(0.02)  # Python's own handler is run between two of these: within one it may come too late
        except KeyboardInterrupt:
            os._exit(7)
        finally:
            os._exit(8)
    os.read(reading, 1)
    os.kill(pid, signal.NUMBER)
    _, status = os.waitpid(pid, 0)
    print(os.WTERMSIG(status), os.WEXITSTATUS(status), run.cancelled)
"""

WAITS = """
import signal

client = OpenAI()
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
ended = []
for _ in range(ROUNDS):
    pid = os.fork()
    if pid == 0:
        signal.pause()  # nothing of Python's runs here again
        os._exit(8)
    os.kill(pid, signal.SIGTERM)  # often before the child is itself
    ended.append(os.WTERMSIG(os.waitpid(pid, 0)[1]))
print(set(ended), signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask)
"""
ROUNDS = 50


@pytest.mark.parametrize(("number", "ended"), [("SIGTERM", "15 0"), ("SIGINT", "0 7")])
def test_a_signal_to_a_forked_child_cancels_nothing_of_its_parent(tmp_path: Path, number: str, ended: str) -> None:
    """The child ends as it would without us, and the background response of its parent goes on."""
    body = FORKS.replace("NUMBER", number)
    with FakeOpenAI(rate=50, tokens=100_000) as server:
        with warm("exec", script(tmp_path, body), **key_and_url(server.base_url)) as child:
            assert child.end() == 0, child.errors
        assert child.output == [f"{ended} False", "finally", "atexit"]
        assert [(each.truth, each.cancels) for each in server.runs] == [("active", 0)]


def test_a_forked_child_that_waits_is_ended_at_once(tmp_path: Path) -> None:
    """As `terminate()` does of a pool's worker: by the system, wherever the child is, be it not begun."""
    body = WAITS.replace("ROUNDS", str(ROUNDS))
    with warm("exec", script(tmp_path, body), **key_and_url("http://127.0.0.1:1/v1")) as child:
        assert child.end() == 0, child.errors
    assert child.output == ["{15} True", "finally", "atexit"]
