"""How many cancels a server gets of all processes that share a ledger, at once and per second; what they are is told by
the server's own record."""

from __future__ import annotations

import time
from typing import Any, Dict  # noqa: UP035 - the SDK looks at it at run time, on Python 3.9 too

import pytest
from fleet_processes import Holder
from worlds import until

import deadstop
from deadstop import CancelPolicy, RunCancellationTimeoutError
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Process
from deadstop.testing import FakeOpenAI, FakeProcess
from deadstop.testing.faults import CancelReplySlow

JSON = Dict[str, object]  # noqa: UP006
EACH = 4
PROCESSES = 3


def cancels(child: Any, url: str, server: FakeProcess, **env: str) -> list[tuple[float, float]]:
    """Three processes cancel all the runs that they hold, at the same moment. When each cancel came and was over,
    counted from then."""
    processes = [Holder(child, url, server.base_url, **env) for _ in range(PROCESSES)]
    try:
        for number, process in enumerate(processes):
            for count in range(EACH):
                answer = process.do("open", run=f"chat-{number}-{count}", cancellers=None)
                assert answer is not None
                assert answer["said"] == "open"
        start = time.monotonic()
        for each in processes:
            each.tell("cancel_all")
        said = [each.answer() for each in processes]
        assert said == [{"said": ["cancelled"] * EACH}] * PROCESSES
    finally:
        for each in processes:
            each.kill()
    assert {(each.truth, each.cancels) for each in server.runs()} == {("cancelled", 1)}
    found = [each for each in server.records() if each.path.endswith("/cancel")]
    assert len(found) == EACH * PROCESSES
    return sorted(((each.opened_at or 0.0) - start, (each.finished_at or 0.0) - start) for each in found)


def most_at_once(spans: list[tuple[float, float]]) -> int:
    return max(sum(began <= at < ended for began, ended in spans) for at, _ in spans)


def test_no_more_cancels_at_once_than_the_limit(child: Any, url: str) -> None:
    """Two at once over three processes: never three, and two where there is work for two."""
    with FakeProcess(rate=50, tokens=100_000) as server:
        server.add(CancelReplySlow(seconds=0.2))
        spans = cancels(child, url, server, DEADSTOP_CONCURRENCY="2", DEADSTOP_TIMEOUT="20")
    assert most_at_once(spans) == 2


def test_without_a_limit_they_go_out_at_once(child: Any, url: str) -> None:
    """The same without it, or the other tests would say nothing."""
    with FakeProcess(rate=50, tokens=100_000) as server:
        server.add(CancelReplySlow(seconds=1.0))
        spans = cancels(child, url, server)
    assert most_at_once(spans) > 4


def test_no_more_cancels_per_second_than_the_limit(child: Any, url: str) -> None:
    """Ten a second over three processes: the n-th comes no sooner than n tenths of a second after the first could."""
    with FakeProcess(rate=50, tokens=100_000) as server:
        began = [began for began, _ in cancels(child, url, server, DEADSTOP_RATE="10", DEADSTOP_TIMEOUT="20")]
    # Each arrives after its moment, and the moments are a tenth of a second apart.
    assert all(at >= number / 10 - 0.02 for number, at in enumerate(began)), began


@pytest.mark.parametrize("settings", [{"concurrency": 1}, {"rate": 0.1}], ids=["concurrency", "rate"])
def test_who_gets_no_place_in_time_is_unconfirmed(
    world: Any, url: str, ledger: Ledger, server: FakeOpenAI, settings: dict[str, Any]
) -> None:
    """The cancel ends with its timeout, having sent nothing, and says why; a place that comes free later is used."""
    client = world.client(server.base_url, max_retries=0, runs_url=url)
    client.runs.policy = CancelPolicy(timeout=0.7, recheck=0, give_up=20.0, **settings)
    body: Any = {"model": "m", "input": "hi", "background": True}
    world.run(world.call, client, "chat-42", client.post, "/responses", body=body, cast_to=JSON)
    elsewhere = Process("elsewhere:1:1", "elsewhere", 1)
    facts = {"at_once": 1, "per_second": settings.get("rate", 0.0), "lasts": 60.0, "by": elsewhere.owner}
    now = time.time()
    assert ledger.admit(server.base_url, "theirs", deadline=now + 60, now=now, **facts) == now
    with pytest.raises(RunCancellationTimeoutError) as late:
        world.run(client.runs.cancel, "chat-42")
    assert late.value.diagnosis.klass == "not_sent"
    assert "limit" in str(late.value.diagnosis.evidence)
    assert server.runs[0].cancels == 0
    if "concurrency" in settings:
        ledger.dismiss("theirs")
        until(lambda: server.runs[0].truth == "cancelled", "the place that came free to be used")
    world.close(client)


@pytest.mark.parametrize("wrong", [{"concurrency": 1.5}, {"concurrency": -1}, {"rate": "many"}])
def test_nonsense_is_refused(wrong: Any) -> None:
    """A limit that is none is told by its name."""
    with pytest.raises(deadstop.UsageError, match=next(iter(wrong))):
        CancelPolicy(**wrong)
