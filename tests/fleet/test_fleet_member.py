"""A process that uses a ledger, seen by the others."""

from __future__ import annotations

import threading

from worlds import until

from deadstop.fleet.member import Member


def test_a_process_is_there_until_all_is_written(url: str) -> None:
    """While it closes it is not taken for dead: what it has still to write is not finished by others."""
    leaving, other, go_on = Member(url), Member(url), threading.Event()
    assert leaving.writes.drain(20.0)
    leaving.writes.submit(lambda: go_on.wait(20.0))
    closing = threading.Thread(target=leaving.close, args=(20.0,))
    closing.start()
    until(lambda: leaving._closed, "the closing to begin")
    assert other.alive(leaving.process.owner)
    go_on.set()
    closing.join(20.0)
    assert not other.alive(leaving.process.owner)
    other.close()
