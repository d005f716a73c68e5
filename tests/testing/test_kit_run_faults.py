"""Each fault of a remote run's life does what it says, by the record of the run and by what a client is told."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kit_client import KitClient, events_of
from kit_runs import CREATES, Kit

from deadstop.testing import FakeOpenAI, Reply, RunRecord, faults

KINDS = ["response", "thread_run", "batch", "eval_run"]
CANCELLED = ("cancelled", "canceled")
STREAM = {**CREATES["response"][1], "stream": True}


@pytest.fixture
def kit() -> Iterator[Kit]:
    with FakeOpenAI(rate=1000, tokens=50_000) as server, Kit(server) as one:
        yield one


def cancel(kit: Kit, kind: str = "response") -> tuple[int, Any]:
    """Cancel the newest run; the HTTP status, and the status of the run or None."""
    answer = kit.post(kit.path(kind) + "/cancel")
    return answer.code, answer.body.get("status")


def read(kit: Kit, kind: str = "response") -> Any:
    """The status of the newest run, as it is read."""
    return kit.get(kit.path(kind)).body.get("status")


def the_run(kit: Kit) -> RunRecord:
    """The only run."""
    [run] = kit.server.runs
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_cancel_reply_lost_cancels_all_the_same(kit: Kit, kind: str) -> None:
    """The connection is reset, the run is cancelled; nothing was acknowledged."""
    kit.create(kind)
    kit.server.add(faults.CancelReplyLost(), path="/cancel", times=1)
    with pytest.raises((ConnectionError, http.client.BadStatusLine)):
        cancel(kit, kind)
    kit.close()
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    assert read(kit, kind) in CANCELLED
    assert the_run(kit).acknowledged_at is None


def test_cancel_reply_slow_cancels_at_once(kit: Kit) -> None:
    """The run is cancelled while the answer is still to come, and acknowledged only by the answer."""
    kit.create("response")
    kit.server.add(faults.CancelReplySlow(0.1))
    with KitClient(kit.server) as client:
        client.send("/v1" + kit.path("response") + "/cancel")
        kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
        assert client.read_until(b"cancelled").startswith(b"HTTP/1.1 200")
    run = the_run(kit)
    assert run.acknowledged_at is not None
    assert run.ended_at is not None
    assert run.acknowledged_at - run.ended_at >= 0.1


@pytest.mark.parametrize("stream", [False, True])
def test_create_reply_lost_makes_the_run(kit: Kit, stream: bool) -> None:
    """Nobody is told its id, and it works."""
    kit.server.add(faults.CreateReplyLost(), times=1)
    with pytest.raises((ConnectionError, http.client.BadStatusLine)):
        kit.post("/responses", {**STREAM, "stream": stream})
    assert the_run(kit).truth == "active"


def test_create_reply_slow_makes_the_run_at_once(kit: Kit) -> None:
    """The run is at work before its id is told."""
    kit.server.add(faults.CreateReplySlow(0.05))
    kit.create("batch")
    assert time.monotonic() - the_run(kit).created_at >= 0.05


@pytest.mark.parametrize("status", [409, 400])
def test_false_conflict_does_nothing(kit: Kit, status: int) -> None:
    """As often as it is asked for; the run works on, and the next cancel is a real one."""
    kit.create("response")
    kit.server.add(faults.FalseConflict(status), path="/cancel", times=2)
    assert [cancel(kit)[0], cancel(kit)[0]] == [status, status]
    assert (the_run(kit).truth, the_run(kit).cancels, the_run(kit).acknowledged_at) == ("active", 2, None)
    assert cancel(kit) == (200, "cancelled")


def test_not_yet_known_is_not_found_while_young(kit: Kit) -> None:
    """Neither read nor cancelled before its time, by time or by number."""
    kit.create("response")
    kit.server.add(faults.NotYetKnown(60), times=2)
    assert (kit.get(kit.path("response")).code, cancel(kit)[0]) == (404, 404)
    assert read(kit) == "in_progress"
    kit.server.add(faults.NotYetKnown(0.0))
    assert cancel(kit) == (200, "cancelled")


@pytest.mark.parametrize("kind", KINDS)
def test_stays_cancelling_takes_its_time(kit: Kit, kind: str) -> None:
    """It generates on for so long, and then it is cancelled."""
    kit.create(kind)
    kit.server.add(faults.StaysCancelling(0.1))
    said = cancel(kit, kind)[1]
    assert said == ("cancelling" if kind in ("thread_run", "batch") else "in_progress")
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    run = the_run(kit)
    assert run.status in CANCELLED
    assert run.ended_at is not None
    assert run.first_cancel_at is not None
    assert run.ended_at - run.first_cancel_at >= 0.1
    assert run.tokens_after_request > 0


def test_stays_cancelling_for_ever_is_never_cancelled(kit: Kit) -> None:
    """It works to its end, and is completed."""
    kit.server.reply = Reply(tokens=("a",) * 500)
    kit.create("batch")
    kit.server.add(faults.StaysCancelling(None))
    assert cancel(kit, "batch") == (200, "cancelling")
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "completed")
    assert [word for _, word in the_run(kit).history] == ["in_progress", "cancelling", "completed"]


@pytest.mark.parametrize("kind", KINDS)
def test_completes_first_refuses(kit: Kit, kind: str) -> None:
    """The run is completed at the moment its cancel arrives."""
    kit.create(kind)
    kit.server.add(faults.CompletesFirst())
    assert cancel(kit, kind)[0] in (400, 409)
    assert read(kit, kind) == "completed"
    assert the_run(kit).truth == "completed"


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_then_completed_takes_it_back(kit: Kit, kind: str) -> None:
    """What was said to be cancelled is completed a little later, in truth too."""
    kit.create(kind)
    kit.server.add(faults.CancelledThenCompleted(0.1))
    code, said = cancel(kit, kind)
    assert (code, said in CANCELLED) == (200, True)
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "completed")
    assert read(kit, kind) == "completed"
    assert [word for _, word in the_run(kit).history] == ["in_progress", said, "completed"]
    assert the_run(kit).tokens_after_request > 50


@pytest.mark.parametrize("kind", KINDS)
def test_comes_back_to_life_works_on(kit: Kit, kind: str) -> None:
    """What was said to be cancelled is at work a little later; the next cancel then is a real one."""
    kit.create(kind)
    kit.server.add(faults.ComesBackToLife(0.05))
    code, said = cancel(kit, kind)
    assert (code, said in CANCELLED) == (200, True)
    kit.server.wait_for_runs(lambda runs: runs[0].status == "in_progress")
    assert (the_run(kit).truth, the_run(kit).ended_at) == ("active", None)
    assert cancel(kit, kind)[0] == 200
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    assert read(kit, kind) in CANCELLED
    assert the_run(kit).tokens_after_request > 0


def test_comes_back_to_life_ends_like_any_other(kit: Kit) -> None:
    """If nobody cancels it again it is completed, and says so."""
    kit.server.reply = Reply(tokens=("a",) * 500)
    kit.create("response")
    kit.server.add(faults.ComesBackToLife(0.01))
    cancel(kit)
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "completed")
    assert [word for _, word in the_run(kit).history] == ["in_progress", "cancelled", "in_progress", "completed"]


@pytest.mark.parametrize("kind", KINDS)
def test_ignores_cancel_says_what_is(kit: Kit, kind: str) -> None:
    """The answer is 200 with a run at work, which it stays."""
    kit.create(kind)
    kit.server.add(faults.IgnoresCancel(), times=1)
    assert cancel(kit, kind) == (200, "in_progress")
    kit.server.wait_for_runs(lambda runs: runs[0].tokens_after_cancel > 5)
    assert the_run(kit).truth == "active"
    assert cancel(kit, kind)[0] == 200


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_but_runs_on_generates_all(kit: Kit, kind: str) -> None:
    """The status is `cancelled` for good, and every token is generated."""
    kit.server.reply = Reply(tokens=("a",) * 500)
    kit.create(kind)
    kit.server.add(faults.CancelledButRunsOn())
    code, said = cancel(kit, kind)
    assert (code, said in CANCELLED) == (200, True)
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "completed")
    run = the_run(kit)
    assert (run.tokens, run.status in CANCELLED) == (500, True)
    assert run.tokens_after_request > 0
    assert read(kit, kind) in CANCELLED


def test_prefix_match_takes_another_run(kit: Kit) -> None:
    """The beginning of an id is taken for the run; the answer has the id of that run."""
    made = kit.create("response").body["id"]
    kit.server.add(faults.PrefixMatch())
    answer = kit.post(f"/responses/{made[:-1]}/cancel")
    assert (answer.code, answer.body["id"], answer.body["status"]) == (200, made, "cancelled")
    run = the_run(kit)
    assert (run.truth, run.cancels, run.most_cancels) == ("cancelled", 1, 1)
    assert kit.post("/responses/other/cancel").code == 404


@pytest.mark.parametrize("kind", ["response", "thread_run"])
def test_wedges_on_duplicate_hangs(kit: Kit, kind: str) -> None:
    """A second cancel while the first is pending is never answered, and the run never ends."""
    kit.create(kind)
    kit.server.add(faults.StaysCancelling(30))
    kit.server.add(faults.WedgesOnDuplicate())
    assert cancel(kit, kind)[0] == 200
    with KitClient(kit.server) as client:
        client.send("/v1" + kit.path(kind) + "/cancel")
        kit.server.wait_for_runs(lambda runs: runs[0].cancels == 2)
        kit.server.wait_for_runs(lambda runs: runs[0].history[-1][1] == runs[0].status)
        assert client.is_silent()
    assert the_run(kit).truth == "active"
    assert read(kit, kind) == ("cancelling" if kind == "thread_run" else "in_progress")


def test_wedges_on_duplicate_changes_nothing_that_is_over(kit: Kit) -> None:
    """A run that was cancelled stays so in truth, though its status hangs."""
    kit.create("response")
    kit.server.add(faults.WedgesOnDuplicate())
    assert cancel(kit) == (200, "cancelled")
    with KitClient(kit.server) as client:
        client.send("/v1" + kit.path("response") + "/cancel")
        kit.server.wait_for_runs(lambda runs: runs[0].status == "in_progress")
        assert client.is_silent()
    assert the_run(kit).truth == "cancelled"


@pytest.mark.parametrize(
    ("kind", "word"), [("response", "queued"), ("thread_run", "queued"), ("batch", "validating"), ("upload", "pending")]
)
def test_stays_queued_waits_before_it_works(kit: Kit, kind: str, word: str) -> None:
    """It generates nothing as long as it is queued; and it can be cancelled."""
    kit.server.add(faults.StaysQueued(60), times=1)
    assert kit.create(kind).body["status"] == word
    assert the_run(kit).tokens == 0
    assert cancel(kit, kind)[0] == 200
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    assert the_run(kit).tokens == 0


def test_stays_queued_works_after_that(kit: Kit) -> None:
    """Its events wait as well."""
    kit.server.reply = Reply(tokens=("a",) * 5)
    kit.server.add(faults.StaysQueued(0.05))
    kit.create("response")
    events = kit.events(kit.path("response") + "?stream=true")
    run = the_run(kit)
    assert events[-1]["type"] == "response.completed"
    assert [word for _, word in run.history] == ["queued", "in_progress", "completed"]
    assert run.ended_at == pytest.approx(run.created_at + 0.055)


@pytest.mark.parametrize("kind", ["response", "batch", "fine_tuning_job", "eval_run", "vector_store_file_batch"])
def test_run_fails_by_itself(kit: Kit, kind: str) -> None:
    """In truth and in its words, and its cancel is refused."""
    kit.server.add(faults.RunFails(0.01))
    kit.create(kind)
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "failed")
    assert read(kit, kind) == "failed"
    assert cancel(kit, kind)[0] in (400, 409)
    assert the_run(kit).tokens <= 10


def test_run_fails_in_its_stream(kit: Kit) -> None:
    """The last event says so."""
    kit.server.add(faults.RunFails(0.01))
    with KitClient(kit.server) as client:
        client.send("/v1/responses", STREAM)
        events = events_of(client.read_until(b"\r\n0\r\n"))
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.failed", "failed")


# What a run's stream tells of its cancel


def listening(kit: Kit, client: KitClient) -> None:
    """Begin a run with a stream, and wait until it has told something."""
    client.send("/v1/responses", STREAM)
    client.read_until(b"delta")


def test_cancel_event_late_is_silent_first(kit: Kit) -> None:
    """The run is cancelled, its stream tells of it later."""
    kit.server.add(faults.CancelEventLate(0.1))
    with KitClient(kit.server) as client:
        listening(kit, client)
        cancel(kit)
        events = events_of(client.read_until(b"response.incomplete"))
        at = time.monotonic()
    ended = the_run(kit).ended_at
    assert ended is not None
    assert at - ended >= 0.1
    assert events


def test_cancel_event_never_comes(kit: Kit) -> None:
    """With None the stream stays open, and tells nothing more."""
    kit.server.add(faults.CancelEventLate(None), path="/responses")
    with KitClient(kit.server) as client:
        listening(kit, client)
        cancel(kit)
        kit.server.wait_for(lambda requests: requests[0].tokens_sent == kit.server.runs[0].tokens)
        client.sock.settimeout(0.05)
        with pytest.raises((TimeoutError, socket.timeout)):
            client.read_until(b"response.incomplete")
        assert kit.server.requests[0].state == "generating"


@pytest.mark.parametrize("kind", ["response", "thread_run"])
def test_cancel_event_absent_ends_the_stream_without(kit: Kit, kind: str) -> None:
    """The stream ends in good order, and nothing says that the run was cancelled."""
    kit.server.add(faults.CancelEventAbsent())
    where, body = CREATES[kind]
    with KitClient(kit.server) as client:
        client.send(f"/v1{where}", {**body, "stream": True})
        client.read_until(b"delta")
        cancel(kit, kind)
        said = client.read_until(b"\r\n0\r\n")
    assert b"cancelled" not in said.replace(b'"cancelled_at"', b"")
    assert b"completed" not in said.replace(b'"completed_at"', b"")


def test_stream_runs_on_tells_the_rest(kit: Kit) -> None:
    """A stream that is opened after a cancel gives all that is generated after it, to the end."""
    kit.server.reply = Reply(tokens=("a",) * 500)
    kit.create("response")
    kit.server.add(faults.CancelledButRunsOn(), path="/cancel")
    kit.server.add(faults.StreamRunsOn())
    assert cancel(kit) == (200, "cancelled")
    events = kit.events(kit.path("response") + "?stream=true")
    assert sum(event["type"] == "response.output_text.delta" for event in events) == 500
    assert read(kit) == "cancelled"


def test_faults_go_together(kit: Kit) -> None:
    """A server that says `cancelled`, works on, and loses that answer."""
    kit.create("batch")
    kit.server.add(faults.CancelledButRunsOn(), path="/cancel")
    kit.server.add(faults.CancelReplyLost(), path="/cancel")
    with pytest.raises((ConnectionError, http.client.BadStatusLine)):
        cancel(kit, "batch")
    assert (the_run(kit).status, the_run(kit).truth) == ("cancelled", "active")


def test_all_who_wait_see_the_end(kit: Kit) -> None:
    """Whoever waits for a run is told by the change itself."""
    kit.create("response")
    seen: list[float] = []

    def wait() -> None:
        kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
        seen.append(time.monotonic())

    waiters = [threading.Thread(target=wait) for _ in range(20)]
    for waiter in waiters:
        waiter.start()
    cancel(kit)
    for waiter in waiters:
        waiter.join()
    assert len(seen) == 20


def test_a_fault_of_any_stream_plays_on_a_runs_stream(kit: Kit) -> None:
    """Its stream stalls after some tokens, and the run works on all the same."""
    kit.server.add(faults.StallAfter(3), path="/responses")
    with KitClient(kit.server) as client:
        client.send("/v1/responses", STREAM)
        kit.server.wait_for_runs(lambda runs: bool(runs) and runs[0].tokens > 50)
        kit.server.wait_for(lambda requests: requests[0].tokens_sent == 3)
        assert kit.server.requests[0].tokens_generated == 3
    assert the_run(kit).truth == "active"
