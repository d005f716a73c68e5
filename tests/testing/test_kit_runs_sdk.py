"""The official SDK takes the server's remote runs for the real thing: every kind, from its making to its cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kit_runs import CREATES

from deadstop.testing import FakeOpenAI, Reply

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic", minversion="2")

EVAL_SOURCE = {"type": "jsonl", "source": {"type": "file_id", "id": "f"}}
# kind: the resource, the arguments of its create, how the ids are given to the other methods
WALKS: dict[str, tuple[str, dict[str, Any], Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]]] = {
    "response": ("responses", CREATES["response"][1], lambda run: ((run.id,), {})),
    "beta_response": ("beta.responses", CREATES["response"][1], lambda run: ((run.id,), {})),
    "thread_run": (
        "beta.threads.runs",
        {"thread_id": "thread_1", "assistant_id": "asst_1"},
        lambda run: ((run.id,), {"thread_id": run.thread_id}),
    ),
    "batch": ("batches", CREATES["batch"][1], lambda run: ((run.id,), {})),
    "fine_tuning_job": ("fine_tuning.jobs", CREATES["fine_tuning_job"][1], lambda run: ((run.id,), {})),
    "vector_store_file_batch": (
        "vector_stores.file_batches",
        {"vector_store_id": "vs_1", "file_ids": ["f"]},
        lambda run: ((run.id,), {"vector_store_id": run.vector_store_id}),
    ),
    "eval_run": (
        "evals.runs",
        {"eval_id": "eval_1", "data_source": EVAL_SOURCE},
        lambda run: ((run.id,), {"eval_id": run.eval_id}),
    ),
    "upload": ("uploads", CREATES["upload"][1], lambda run: ((run.id,), {})),
    "chatkit_session": ("beta.chatkit.sessions", CREATES["chatkit_session"][1], lambda run: ((run.id,), {})),
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the SDK's, of the Assistants API


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=1000, tokens=50_000) as one:
        yield one


@pytest.fixture
def client(server: FakeOpenAI) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as one:
        yield one


def resource(client: Any, path: str) -> Any:
    """That resource of the SDK; skips where this SDK has none."""
    for name in path.split("."):
        if not hasattr(client, name):
            pytest.skip(f"openai {openai.__version__} has no {path}")
        client = getattr(client, name)
    return client


def valid(found: Any) -> Any:
    """What the SDK gave, looked at strictly: the SDK itself takes anything for its models."""
    if int(openai.__version__.split(".")[0]) >= 2:  # older models are older than what is rendered
        type(found).model_validate(found.to_dict(mode="json"))
    return found


@pytest.mark.parametrize("kind", WALKS)
def test_the_sdk_walks_every_kind(client: Any, server: FakeOpenAI, kind: str) -> None:
    """It makes a run, reads it where its API can, cancels it, and reads that; all of it valid."""
    path, arguments, address = WALKS[kind]
    runs = resource(client, path)
    if kind == "response" and not hasattr(runs, "cancel"):
        pytest.skip(f"openai {openai.__version__} can't cancel a response")
    made = valid(runs.create(**arguments))
    args, within = address(made)
    assert made.id == server.runs[0].id
    if hasattr(runs, "retrieve"):
        assert valid(runs.retrieve(*args, **within)).status == made.status
        assert server.runs[0].reads == 1
    cancelled = valid(runs.cancel(*args, **within))
    assert cancelled.id == made.id
    server.wait_for_runs(lambda runs: runs[0].truth == "cancelled")
    if hasattr(runs, "retrieve"):
        assert valid(runs.retrieve(*args, **within)).status == server.runs[0].status
    assert server.runs[0].status == ("canceled" if kind == "eval_run" else "cancelled")


@pytest.mark.parametrize("kind", [kind for kind in WALKS if kind not in ("upload", "chatkit_session")])
def test_the_sdk_reads_what_is_finished(client: Any, server: FakeOpenAI, kind: str) -> None:
    """A completed run is valid as well, and its cancel is an error of the SDK's."""
    path, arguments, address = WALKS[kind]
    runs = resource(client, path)
    server.reply = Reply(text="yes")
    made = runs.create(**arguments)
    args, within = address(made)
    server.wait_for_runs(lambda runs: runs[0].truth == "completed")
    assert valid(runs.retrieve(*args, **within)).status in ("completed", "succeeded")
    with pytest.raises((openai.BadRequestError, openai.ConflictError)):
        runs.cancel(*args, **within)


@pytest.mark.parametrize("path", ["batches", "fine_tuning.jobs"])
def test_the_sdk_lists_runs(client: Any, server: FakeOpenAI, path: str) -> None:
    """All pages, newest first."""
    runs = resource(client, path)
    for _ in range(3):
        runs.create(**CREATES["batch" if path == "batches" else "fine_tuning_job"][1])
    assert [valid(each).id for each in runs.list(limit=2)] == [run.id for run in server.runs[::-1]]


def test_the_sdk_completes_an_upload(client: Any, server: FakeOpenAI) -> None:
    """An upload ends when it is told so."""
    uploads = resource(client, "uploads")
    made = uploads.create(**CREATES["upload"][1])
    assert valid(uploads.complete(made.id, part_ids=[])).status == "completed"
    assert server.runs[0].truth == "completed"


@pytest.mark.parametrize("path", ["responses", "beta.responses"])
def test_the_sdk_follows_a_background_response(client: Any, server: FakeOpenAI, path: str) -> None:
    """Its events while it works, the rest of them after it was left, and its cancel as the last one."""
    responses = resource(client, path)
    if not hasattr(responses, "cancel"):
        pytest.skip(f"openai {openai.__version__} can't cancel a response")
    seen: list[Any] = []
    with responses.create(**CREATES["response"][1], stream=True) as stream:
        for event in stream:
            seen.append(valid(event))
            if event.type == "response.output_text.delta":
                break
    run = seen[0].response
    assert (seen[0].type, run.id, run.background) == ("response.created", server.runs[0].id, True)
    with responses.retrieve(run.id, stream=True, starting_after=seen[-1].sequence_number) as stream:
        for event in stream:
            if len(seen) == 6:
                responses.cancel(run.id)
            seen.append(valid(event))
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert (seen[-1].type, seen[-1].response.status) == ("response.incomplete", "cancelled")
    assert sum(event.type == "response.output_text.delta" for event in seen) == server.runs[0].tokens


@pytest.mark.parametrize("cancelled", [True, False])
def test_the_sdk_follows_a_thread_run(client: Any, server: FakeOpenAI, cancelled: bool) -> None:
    """Thread and run in one stream, through the SDK's own event handler, to the end or to a cancel."""
    threads = resource(client, "beta.threads")
    if not hasattr(threads, "create_and_run_stream"):
        pytest.skip(f"openai {openai.__version__} has no stream of a thread run")
    if not cancelled:
        server.reply = Reply(text="yes, of course")
    names: list[str] = []
    with threads.create_and_run_stream(assistant_id="asst_1") as stream:
        for event in stream:
            valid(event)
            names.append(event.event)
            if cancelled and names.count("thread.message.delta") == 3 and event.event == "thread.message.delta":
                threads.runs.cancel(server.runs[0].id, thread_id=server.runs[0].ids[0])
    assert names[:4] == ["thread.created", "thread.run.created", "thread.run.queued", "thread.run.in_progress"]
    if cancelled:
        assert [name for name in names if "cancel" in name] == ["thread.run.cancelling", "thread.run.cancelled"]
        assert names[-1] == "thread.run.cancelled"
    else:
        assert names[-1] == "thread.run.completed"
        assert stream.get_final_messages()[0].content[0].text.value == "yes, of course"


def test_the_sdk_makes_a_thread(client: Any) -> None:
    """And a run on it is refused while another one is active."""
    threads = resource(client, "beta.threads")
    made = valid(threads.create())
    valid(threads.runs.create(made.id, assistant_id="asst_1"))
    with pytest.raises(openai.BadRequestError, match="already has an active run"):
        threads.runs.create(made.id, assistant_id="asst_1")


def test_the_azure_client_has_runs_too(server: FakeOpenAI) -> None:
    """An Azure client's paths are understood, whichever of its prefixes they have."""
    with openai.AzureOpenAI(azure_endpoint=server.origin, api_key="none", api_version="1") as client:
        path, arguments, _ = WALKS["fine_tuning_job"]
        jobs = resource(client, path)
        made = jobs.create(**arguments)
        assert jobs.cancel(made.id).status == "cancelled"
        if hasattr(client, "batches"):
            client.batches.cancel(client.batches.create(**CREATES["batch"][1]).id)
            server.wait_for_runs(lambda runs: runs[-1].truth == "cancelled")
        if hasattr(client, "responses") and hasattr(client.responses, "cancel"):
            background = client.responses.create(**CREATES["response"][1])
            assert client.responses.cancel(background.id).status == "cancelled"
