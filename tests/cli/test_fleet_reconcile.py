"""What `deadstop reconcile` does with a ledger that fails it, and with one that has other work to do."""

from __future__ import annotations

import logging
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deadstop.cli import fleet
from deadstop.errors import LedgerUnavailable
from deadstop.fleet import members
from deadstop.fleet.member import Member


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Iterator[Member]:
    """This process, in an empty ledger of the test's own, once it has entered itself."""
    home = tempfile.mkdtemp(prefix="ds-")
    monkeypatch.setenv("XDG_STATE_HOME", home)
    monkeypatch.delenv("DEADSTOP_URL", raising=False)
    made = members.member_of("sqlite:")
    try:
        assert made.writes.drain(20.0)
        yield made
    finally:
        made.close()
        members._members.clear()
        shutil.rmtree(home)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in the tests' own process: it leaves signals and log levels as they are."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(logging.Logger, "setLevel", lambda *_: None)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")


@pytest.mark.usefixtures("quiet")
def test_once_tells_that_the_record_could_not_be_read(
    member: Member, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer's job that finished nothing because it saw nothing has failed: on standard error, and with 3."""

    def down(**_: Any) -> Any:
        raise LedgerUnavailable("The database is down.")

    monkeypatch.setattr(member.ledger, "open_intents", down)
    assert fleet.reconcile(None, once=True) == fleet.UNCONFIRMED
    said = capsys.readouterr()
    assert "0 finished." in said.out
    assert "The database is down." in said.err


@pytest.mark.usefixtures("quiet")
def test_once_ends_well_after_a_failure_that_passed(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last look counts: the record was read after all."""
    read, down = member.ledger.open_intents, [LedgerUnavailable("The server was restarted.")]

    def once(**facts: Any) -> Any:
        if down:
            raise down.pop()
        return read(**facts)

    monkeypatch.setattr(member.ledger, "open_intents", once)
    assert fleet.reconcile(None, once=True) == fleet.CONFIRMED


def test_what_is_to_be_written_goes_before_the_next_batch_of_old_runs(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Months of runs may be there to forget: a cancel's record waits for one batch of them at most."""
    order: list[str] = []
    left = [1, 1, 0]

    def sweep(**_: Any) -> int:
        order.append("a batch")
        if len(left) == 3:
            member.write(lambda: order.append("a cancel"))
        return left.pop(0)

    monkeypatch.setattr(member.ledger, "sweep", sweep)
    tidy, now = threading.Event(), time.time()
    member.write(lambda: fleet._sweep(member, now, now, tidy))
    assert tidy.wait(20.0)
    assert order == ["a batch", "a cancel", "a batch", "a batch"]
