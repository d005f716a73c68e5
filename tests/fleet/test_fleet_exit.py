"""The end of a process that has something still to be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOCKED = """
import atexit, sqlite3, sys

def look():
    for each in engine._open:
        try:
            each.in_transaction, each.total_changes
        except sqlite3.ProgrammingError:
            print("closed")
        else:
            print("open")

atexit.register(look)  # before all of ours, so it runs after that
import deadstop
from deadstop.fleet.member import Member

Member.close.__defaults__ = (0.2,)
path, url = sys.argv[1:]
client = deadstop.OpenAI(api_key="k", base_url="http://127.0.0.1:1/v1", runs_url=url)
member = client.runs._registry.keeper.member
engine = member.ledger.engine
assert member.writes.drain(20.0)
holder = sqlite3.connect(path, isolation_level=None)
holder.execute("BEGIN IMMEDIATE")
with client.runs.open("chat-42") as run:
    run.cancel_soon()
"""


def test_a_process_that_ends_while_its_file_is_locked_ends_well(tmp_path: Path) -> None:
    """No connection is closed under the thread that waits with it for the file: that would be a crash."""
    path = str(tmp_path / "ledger.db")
    command = [sys.executable, "-c", LOCKED, path, f"sqlite:///{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"open"}, done.stderr
