"""Places among the requests that all processes send to one server."""

from __future__ import annotations

import threading
from typing import Any, Optional

from ledger_homes import BASE, HERE, NOW, THERE, home, ledger

from deadstop.ledger import connect
from deadstop.ledger.base import Ledger

__all__ = ["home", "ledger"]


def admit(ledger: Ledger, permit: str, at: float = NOW, **facts: Any) -> Optional[float]:
    asked: dict[str, Any] = {"at_once": 0, "per_second": 0.0, "lasts": 3.0, "by": HERE.owner, "deadline": NOW + 100}
    return ledger.admit(facts.pop("server", BASE), permit, **{**asked, **facts}, now=at)


def test_so_many_at_once_and_no_more(ledger: Ledger) -> None:
    """The third of two gets no place until one is given back; another server has places of its own."""
    assert [admit(ledger, each, at_once=2) for each in "abc"] == [NOW, NOW, None]
    assert admit(ledger, "d", at_once=2, server="https://other.example.com/v1") == NOW
    ledger.dismiss("a")
    ledger.dismiss("a")
    assert [admit(ledger, each, at_once=2) for each in "ce"] == [NOW, None]


def test_a_place_ends_by_itself_and_with_its_owner(ledger: Ledger) -> None:
    """A process that dies keeps no place: until its request must be over, or until it was found dead."""
    assert admit(ledger, "a", at_once=1) == NOW
    assert admit(ledger, "b", at_once=1, at=NOW + 2.9) is None
    assert admit(ledger, "b", at_once=1, at=NOW + 3.0, by=THERE.owner) == NOW + 3.0
    assert admit(ledger, "c", at_once=1, at=NOW + 3.1) is None
    ledger.enter(THERE, now=NOW)
    ledger.leave(THERE.owner, now=NOW + 3.1)
    assert admit(ledger, "c", at_once=1, at=NOW + 3.1) == NOW + 3.1


def test_so_many_a_second_evenly_spaced(ledger: Ledger) -> None:
    """Each gets the next moment, which nobody else gets then; none beyond its deadline; what was not used is lost."""
    assert [admit(ledger, each, per_second=4.0) for each in "abc"] == [NOW, NOW + 0.25, NOW + 0.5]
    assert admit(ledger, "d", per_second=4.0, deadline=NOW + 0.7) is None
    assert admit(ledger, "d", per_second=4.0) == NOW + 0.75
    assert [admit(ledger, each, at=NOW + 60, per_second=4.0) for each in "ef"] == [NOW + 60, NOW + 60.25]


def test_both_limits_hold_at_once(ledger: Ledger) -> None:
    """Who has no place takes no moment either."""
    assert admit(ledger, "a", at_once=1, per_second=1.0) == NOW
    assert admit(ledger, "b", at_once=1, per_second=1.0) is None
    ledger.dismiss("a")
    assert admit(ledger, "b", at_once=1, per_second=1.0) == NOW + 1.0


def test_no_place_is_given_twice(home: str, ledger: Ledger) -> None:
    """Threads with ledgers of their own that ask at the same moment get no more places than there are."""
    url = "memory:" if home == "memory:" else home
    asking = [ledger] * 4 if url == "memory:" else [connect(url) for _ in range(4)]
    start, got = threading.Barrier(8), list[Optional[float]]()

    def ask(number: int) -> None:
        start.wait(10)
        got.append(admit(asking[number % 4], f"permit-{number}", at_once=3))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    for one in asking:
        if one is not ledger:
            one.close()
    assert sorted(map(str, got)) == [str(NOW)] * 3 + ["None"] * 5
