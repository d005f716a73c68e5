"""Which cancel request is under way for a remote run: one, whoever asks and by whatever name."""

from __future__ import annotations

import threading
import time

import pytest
from ledger_homes import HERE, NOW, THERE, home, ledger, remote

from deadstop.errors import UsageError
from deadstop.ledger import connect
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Flight

__all__ = ["home", "ledger"]


def off(
    ledger: Ledger, *tokens: str, by: str = HERE.owner, at: float = NOW, again: bool = False, **more: object
) -> str:
    lasts = float(more.pop("lasts", 60.0))  # type: ignore[arg-type]
    asked = [Flight(each, remote(**more), lasts, again) for each in tokens]  # type: ignore[arg-type]
    return "".join(sorted(ledger.take_off(asked, by=by, now=at)))


def test_one_at_a_time_for_each_remote_run(ledger: Ledger) -> None:
    """The second gets none until the first is over, under another name either; another run, or server, is another's."""
    assert off(ledger, "a", "b") == "a"
    assert off(ledger, "a") == "a"  # it was not heard
    assert off(ledger, "c", run="other", by=THERE.owner) == ""
    assert off(ledger, "c", again=True) == ""
    assert off(ledger, "d", id="resp_2") == "d"
    assert off(ledger, "e", base_url="https://other.example.com/v1") == "e"
    ledger.land(["a", "unknown"])
    ledger.land(["a"])
    assert off(ledger, "c", again=True) == "c"


def test_it_ends_by_itself_and_with_its_owner(ledger: Ledger, home: str) -> None:
    """A process that dies keeps none: until its request must be over, or until it was found dead."""
    start = time.time()
    assert off(ledger, "a", lasts=0.4, at=start) == "a"
    while not off(ledger, "b", again=True, by=THERE.owner, at=time.time()):
        assert time.time() < start + 10
        time.sleep(0.02)
    assert time.time() >= start + 0.4
    ledger.enter(THERE, now=NOW)
    ledger.leave(THERE.owner, now=NOW)
    assert off(ledger, "c", again=True, at=time.time()) == "c"


def test_no_more_is_kept_than_is_under_way(ledger: Ledger) -> None:
    """What nobody gave back is forgotten with the rest that ended long ago."""
    assert off(ledger, "a", lasts=0.0, at=NOW) == "a"
    assert ledger.sweep(before=time.time() + 1.0, now=NOW) == 1
    assert ledger.sweep(before=time.time() + 1.0, now=NOW) == 0


def test_only_what_has_an_exact_address_takes_off(ledger: Ledger) -> None:
    """I9: a remote run without an id is nobody's."""
    with pytest.raises(UsageError):
        off(ledger, "a", ids=())


def test_no_two_take_off_at_once(home: str, ledger: Ledger) -> None:
    """Threads with ledgers of their own that ask for the same runs, in another order: one of them gets each."""
    asking = [ledger] * 4 if home == "memory:" else [connect(home) for _ in range(4)]
    start, got = threading.Barrier(8), list[str]()
    names = [f"resp_{count}" for count in range(8)]

    def ask(number: int) -> None:
        asked = [Flight(f"{id}-{number}", remote(id=id), 60.0) for id in (names if number % 2 else names[::-1])]
        start.wait(10)
        got.extend(asking[number % 4].take_off(asked, by=HERE.owner, now=time.time()))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    for one in asking:
        if one is not ledger:
            one.close()
    assert sorted(each.split("-")[0] for each in got) == names
