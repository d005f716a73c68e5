"""Remote runs on the fake server: what each kind answers, and what the record of it says."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kit_client import KitClient, events_of
from kit_runs import CREATES, Answer, Kit, streamed

from deadstop.testing import FakeOpenAI, Reply, faults

LONG = 50_000  # tokens: fifty seconds of work, more than any test waits for


@pytest.fixture
def kit() -> Iterator[Kit]:
    with FakeOpenAI(rate=1000, tokens=LONG) as server, Kit(server) as one:
        yield one


@pytest.mark.parametrize("kind", CREATES)
def test_a_run_of_every_kind_is_made_and_cancelled(kit: Kit, kind: str) -> None:
    """Its object has its id and its status; a cancel ends it in truth, and the record says when."""
    before = time.monotonic()
    made = kit.create(kind)
    path = kit.path(kind)
    [run] = kit.server.runs
    assert (made.code, made.body["id"], made.body["status"]) == (200, run.id, run.status)
    assert (run.kind, run.truth, run.cancels, run.reads, run.ended_at) == (kind, "active", 0, 0, None)
    assert before < run.created_at < time.monotonic()
    assert kit.post(f"{path}/cancel").code == 200
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    [run] = kit.server.runs
    assert run.status == ("canceled" if kind == "eval_run" else "cancelled")
    assert (run.cancels, run.most_cancels) == (1, 1)
    assert run.first_cancel_at is not None
    assert run.acknowledged_at is not None
    assert run.ended_at is not None
    assert run.created_at < run.first_cancel_at <= min(run.acknowledged_at, run.ended_at)
    assert kit.server.requests[run.request - 1].path == kit.server.requests[0].path


@pytest.mark.parametrize("kind", [kind for kind in CREATES if kind not in ("upload", "chatkit_session")])
def test_a_run_works_without_a_connection(kit: Kit, kind: str) -> None:
    """It is completed after its work, with all its tokens, while nobody is connected."""
    kit.server.reply = Reply(tokens=("a",) * 20)
    kit.create(kind)
    kit.close()
    kit.server.wait_for(lambda _: kit.server.open_connections == 0)
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "completed")
    [run] = kit.server.runs
    assert run.tokens == 20
    assert run.ended_at == pytest.approx(run.created_at + 0.02)
    assert kit.get(kit.path(kind)).body["status"] == run.status
    assert [word for _, word in run.history][-1] == run.status
    assert kit.server.runs[0].reads == 1


@pytest.mark.parametrize("kind", ["upload", "chatkit_session"])
def test_what_can_not_be_read_is_not_found(kit: Kit, kind: str) -> None:
    """The API has no GET for these, and they do not end by themselves."""
    kit.create(kind)
    assert kit.get(kit.path(kind)).code == 404
    assert kit.server.runs[0].tokens == 0


def test_an_upload_is_completed_when_it_is_told_so(kit: Kit) -> None:
    """Once, and it can't be cancelled after that."""
    kit.create("upload")
    assert kit.post(kit.path("upload") + "/complete").body["status"] == "completed"
    assert kit.post(kit.path("upload") + "/complete").code == 400
    assert kit.post(kit.path("upload") + "/cancel").code == 400
    assert kit.server.runs[0].truth == "completed"


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("response", 400, "Cannot cancel a completed response."),
        ("thread_run", 400, "Cannot cancel run with status 'completed'."),
        ("batch", 409, "Cannot cancel a batch with status 'completed'."),
        ("fine_tuning_job", 400, "succeeded"),
        ("vector_store_file_batch", 400, "completed"),
        ("eval_run", 400, "completed"),
    ],
)
def test_a_finished_run_is_not_cancelled(kit: Kit, kind: str, code: int, says: str) -> None:
    """The refusal is in the words of its API."""
    kit.server.reply = Reply(tokens=("a",))
    kit.create(kind)
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "completed")
    refused = kit.post(kit.path(kind) + "/cancel")
    assert refused.code == code
    assert says in refused.body["error"]["message"]
    assert kit.server.runs[0].acknowledged_at is None


@pytest.mark.parametrize(("kind", "code"), [("response", 200), ("upload", 200), ("thread_run", 400), ("batch", 409)])
def test_a_second_cancel_is_answered_as_its_api_does(kit: Kit, kind: str, code: int) -> None:
    """Some give the object again, others refuse."""
    kit.create(kind)
    kit.post(kit.path(kind) + "/cancel")
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    assert kit.post(kit.path(kind) + "/cancel").code == code
    assert (kit.server.runs[0].cancels, kit.server.runs[0].most_cancels) == (2, 1)


@pytest.mark.parametrize("kind", CREATES)
def test_an_unknown_run_is_not_found(kit: Kit, kind: str) -> None:
    """Neither read nor cancelled, not by the beginning of its id either."""
    kit.create(kind)
    path = kit.path(kind)[:-1]
    assert kit.get(path).code == 404
    assert kit.post(f"{path}/cancel").code == 404
    assert kit.server.runs[0].cancels == 0


@pytest.mark.parametrize("kind", ["thread_run", "batch"])
def test_cancelling_comes_before_cancelled(kit: Kit, kind: str) -> None:
    """These kinds say `cancelling` first, and work on until they are cancelled."""
    kit.create(kind)
    assert kit.post(kit.path(kind) + "/cancel").body["status"] == "cancelling"
    kit.server.wait_for_runs(lambda runs: runs[0].status == "cancelled")
    [run] = kit.server.runs
    assert [word for _, word in run.history] == ["in_progress", "cancelling", "cancelled"]
    assert [at for at, _ in run.history] == sorted(at for at, _ in run.history)
    assert run.history[-1][0] == run.ended_at
    assert run.tokens_after_request > 0
    assert run.tokens_after_request >= run.tokens_after_cancel


def test_an_eval_run_is_cancelled_at_both_paths(kit: Kit) -> None:
    """At the one that the SDK uses, and at the one in the API's own description."""
    kit.create("eval_run")
    assert kit.post(kit.path("eval_run")).body["status"] == "canceled"
    assert kit.server.runs[0].truth == "cancelled"


def test_an_active_run_locks_its_thread(kit: Kit) -> None:
    """A second run on it is refused until the first one is over; another thread is free."""
    assert kit.post("/threads", {}).body["object"] == "thread"
    kit.create("thread_run")
    assert kit.create("thread_run").code == 400
    assert kit.post("/threads/other/runs", {"assistant_id": "a"}).code == 200
    kit.post(kit.path("thread_run", 0) + "/cancel")
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    assert kit.create("thread_run").code == 200
    assert len(kit.server.runs) == 3


def test_one_of_many_creates_at_once_gets_the_thread(kit: Kit) -> None:
    """The lock has no gap."""
    answers: list[int] = []

    def create() -> None:
        with Kit(kit.server) as own:
            answers.append(own.create("thread_run").code)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [400] * 7
    assert len(kit.server.runs) == 1


def test_a_foreground_response_is_no_run(kit: Kit) -> None:
    """It can be read and not cancelled, and its id is never that of a run."""
    kit.server.reply = Reply(text="yes")
    foreground = kit.post("/responses", {"model": "m", "input": "hi"}).body
    background = kit.create("response").body
    assert foreground["id"] != background["id"]
    refused = kit.post(f"/responses/{foreground['id']}/cancel")
    assert (refused.code, refused.body["error"]["message"]) == (400, "Cannot cancel a synchronous response.")
    assert kit.get(f"/responses/{foreground['id']}").body["output"] == foreground["output"]
    assert len(kit.server.runs) == 1


@pytest.mark.parametrize("kind", ["batch", "fine_tuning_job", "thread_run", "eval_run"])
def test_runs_are_listed(kit: Kit, kind: str) -> None:
    """The newest first, page by page; an API that has runs inside something lists only those."""
    if kind == "thread_run":
        kit.server.reply = Reply(tokens=("a",))
    for _ in range(3):
        kit.create(kind)
        if kind == "thread_run":
            kit.server.wait_for_runs(lambda runs: runs[-1].truth == "completed")
    ids = [run.id for run in kit.server.runs]
    where = kit.path(kind).rpartition("/")[0]
    assert [each["id"] for each in kit.get(where).body["data"]] == ids[::-1]
    page = kit.get(f"{where}?limit=1&after={ids[2]}").body
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([ids[1]], True)
    if "eval" in kind:
        assert kit.get("/evals/other/runs").body["data"] == []


def test_the_paths_of_azure_and_of_the_beta_are_understood(kit: Kit) -> None:
    """With a prefix, with a query: it is the same run."""
    made = kit.post("/openai/v1/responses?api-version=1", CREATES["response"][1], bare=True).body
    assert kit.get(f"/openai/responses/{made['id']}", bare=True).code == 200
    assert kit.get(f"/responses/{made['id']}?beta=true").code == 200
    assert kit.post(f"/responses/{made['id']}/cancel?beta=true").body["status"] == "cancelled"


@pytest.mark.parametrize("kind", CREATES)
def test_a_create_that_is_not_json_is_refused(kit: Kit, kind: str) -> None:
    """And makes nothing."""
    assert kit.post(CREATES[kind][0], [1]).code == 400
    assert kit.server.runs == []


def test_a_thousand_runs_cost_nothing_while_they_work(kit: Kit) -> None:
    """No thread stands behind a run; each is told apart, and their number is right."""
    kit.create("batch")
    before = threading.active_count()
    for _ in range(999):
        kit.create("batch")
    assert threading.active_count() == before
    assert len({run.id for run in kit.server.runs}) == 1000
    kit.post(kit.path("batch", 500) + "/cancel")
    kit.server.wait_for_runs(lambda runs: [run.truth for run in runs].count("cancelled") == 1)


def test_cancels_at_once_are_counted(kit: Kit) -> None:
    """`most_cancels` counts those whose client waits: not one after another, nor one whose client has left."""
    kit.create("response")
    kit.server.add(faults.CancelReplySlow(None), path="/cancel")
    path = "/v1" + kit.path("response") + "/cancel"
    with KitClient(kit.server) as first:
        first.send(path)
        kit.server.wait_for_runs(lambda runs: runs[0].cancels == 1)
    with KitClient(kit.server) as second:
        second.send(path)
        kit.server.wait_for_runs(lambda runs: runs[0].cancels == 2)
        assert kit.server.runs[0].most_cancels == 1
        with KitClient(kit.server) as third:
            third.send(path)
            kit.server.wait_for_runs(lambda runs: runs[0].cancels == 3)
    assert kit.server.runs[0].most_cancels == 2
    assert kit.server.runs[0].acknowledged_at is None


def test_waiting_in_vain_ends_in_time(kit: Kit) -> None:
    """A TimeoutError names the runs."""
    kit.create("batch")
    with pytest.raises(TimeoutError, match="batch:batch_fake1 says in_progress, is active"):
        kit.server.wait_for_runs(lambda runs: False, timeout=0.02)


def test_what_comes_by_the_clock_is_seen_in_time(kit: Kit) -> None:
    """A wait ends at the moment of the change, though nothing happens on any connection."""
    kit.create("response")
    kit.server.wait_for_runs(lambda runs: runs[0].tokens >= 10)
    assert kit.server.runs[0].truth == "active"
    kit.server.add(faults.StaysCancelling(0.05))
    kit.post(kit.path("response") + "/cancel")
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    ended = kit.server.runs[0].ended_at
    assert ended is not None
    assert time.monotonic() - ended < 2.0


def test_reset_forgets_the_runs(kit: Kit) -> None:
    """And never gives an id twice."""
    first = kit.create("response").body["id"]
    kit.server.reset()
    assert kit.server.runs == []
    assert kit.create("response").body["id"] != first


# Streams


def test_a_streamed_background_response_tells_its_id_first(kit: Kit) -> None:
    """`response.created` comes at once; the events are numbered, and the last one holds the whole."""
    kit.server.reply = Reply(text="one two")
    events = streamed(kit, "/responses", CREATES["response"][1])
    assert events[0]["type"] == "response.created"
    assert events[0]["response"]["id"] == kit.server.runs[0].id
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"] == kit.get(kit.path("response")).body


@pytest.mark.parametrize("cut", [-1, 0, 5])
def test_a_stream_is_taken_up_where_it_was_left(kit: Kit, cut: int) -> None:
    """GET with `starting_after` gives the events after that one: those that were, and those that come."""
    kit.server.reply = Reply(tokens=("a ",) * 50)
    with KitClient(kit.server) as client:
        client.send("/v1/responses", {**CREATES["response"][1], "stream": True})
        client.read_until(b"delta")
    kit.server.wait_for_runs(lambda runs: len(runs) == 1)
    more = "" if cut < 0 else f"&starting_after={cut}"
    events = kit.events(kit.path("response") + f"?stream=true{more}")
    assert [event["sequence_number"] for event in events] == list(range(cut + 1, events[-1]["sequence_number"] + 1))
    assert events[-1]["type"] == "response.completed"
    assert kit.server.runs[0].truth == "completed"
    assert kit.server.runs[0].tokens == 50


def test_a_cancelled_response_ends_its_stream(kit: Kit) -> None:
    """The last event has the status; taken up again, the stream gives what was generated, and that event."""
    with KitClient(kit.server) as client:
        client.send("/v1/responses", {**CREATES["response"][1], "stream": True})
        client.read_until(b"delta")
        kit.post(kit.path("response") + "/cancel")
        events = events_of(client.read_until(b"\r\n0\r\n"))
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.incomplete", "cancelled")
    again = kit.events(kit.path("response") + "?stream=true")
    assert again == events
    deltas = [event for event in again if event["type"] == "response.output_text.delta"]
    assert len(deltas) == kit.server.runs[0].tokens
    assert again[-1]["response"]["status"] == "cancelled"


def test_a_cancelled_thread_run_tells_its_cancel(kit: Kit) -> None:
    """`thread.run.cancelling`, `thread.run.cancelled`, then `done`."""
    with KitClient(kit.server) as client:
        client.send("/v1/threads/thread_1/runs", {"assistant_id": "a", "stream": True})
        client.read_until(b"delta")
        kit.post(kit.path("thread_run") + "/cancel")
        said = client.read_until(b"\r\n0\r\n")
    names = [line[len(b"event: ") :].decode() for line in said.split(b"\n") if line.startswith(b"event: ")]
    assert names[:3] == ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
    assert [name for name in names if "cancel" in name] == ["thread.run.cancelling", "thread.run.cancelled"]
    assert names[-2:] == ["thread.run.cancelled", "done"]


def test_a_thread_and_its_run_are_made_in_one_stream(kit: Kit) -> None:
    """The thread comes first, then its run and its message."""
    kit.server.reply = Reply(text="hello there")
    events = streamed(kit, "/threads/runs", {"assistant_id": "a"})
    assert events[0]["object"] == "thread"
    assert events[1]["thread_id"] == events[0]["id"] == kit.server.runs[0].ids[0]
    assert events[-2]["content"][0]["text"]["value"] == "hello there"
    assert events[-1]["status"] == "completed"


def test_leaving_the_stream_leaves_the_run_at_work(kit: Kit) -> None:
    """The request is disconnected, the run goes on: only a cancel ends it."""
    with KitClient(kit.server) as client:
        client.send("/v1/responses", {**CREATES["response"][1], "stream": True})
        client.read_until(b"delta")
    kit.server.wait_for(lambda requests: requests[0].state == "disconnected")
    tokens = kit.server.runs[0].tokens
    kit.server.wait_for_runs(lambda runs: runs[0].tokens > tokens)
    assert kit.server.runs[0].truth == "active"


def test_the_reply_of_a_run_is_that_of_its_create(kit: Kit) -> None:
    """A reply that depends on the request is asked once; reading the run gives the same."""
    kit.server.reply = lambda body: Reply(text=str(body["input"]))
    kit.create("response")
    kit.server.wait_for_runs(lambda runs: runs[0].truth == "completed")
    assert kit.get(kit.path("response")).body["output"][0]["content"][0]["text"] == "hi"


def test_answers_are_whole_http(kit: Kit) -> None:
    """One connection serves many requests about runs, with a request id on each."""
    client = http.client.HTTPConnection(kit.server.host, kit.server.port, timeout=10)
    for number in (1, 2):
        client.request("POST", "/v1/batches", json.dumps(CREATES["batch"][1]))
        response = client.getresponse()
        assert Answer(response.status, json.loads(response.read())).code == 200
        assert response.headers["x-request-id"] == f"req_fake{number}"
    client.close()


def test_an_ordinary_fault_plays_on_the_requests_about_runs(kit: Kit) -> None:
    """`path` and `times` choose which: an overloaded cancel is `Overloaded` on `/cancel`."""
    kit.create("batch")
    kit.server.add(faults.Overloaded(429, "2"), path="/cancel", times=2)
    codes: list[Any] = [kit.post(kit.path("batch") + "/cancel").code for _ in range(3)]
    assert codes == [429, 429, 200]
