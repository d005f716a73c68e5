"""Kinds are pure data: addresses, words, and what passes by."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadstop import Kind, UsageError, register_kind
from deadstop.core.model import RunStatus
from deadstop.core.policy import policy_from
from deadstop.kinds import register
from deadstop.kinds.base import Ref
from deadstop.testing.run_kinds import KINDS as SERVED

KINDS = register.kinds()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_address_survives_printing(kind: Kind) -> None:
    """What an address prints as is read as the same address."""
    ref = kind.ref(*(prefix + "1a" for prefix in kind.prefixes))
    assert register.parse(str(ref)) == ref
    assert register.parse(kind.example) is not None


@pytest.mark.parametrize(
    "text",
    [
        "response:",
        "response:resp_",
        "response:resp_1/x",
        "response:../resp_1",
        "response:resp_1?x=1",
        "response:resp_1#x",
        "response:resp_%2e",
        "response:resp_1 ",
        "response:run_1",
        "thread_run:run_1",
        "thread_run:run_1/thread_1",
        "thread_run:thread_1/",
        "batch:resp_1",
        "upload:..",
        "response:" + "x" * 600,
    ],
)
def test_an_address_that_can_not_be_right_is_refused(text: str) -> None:
    """I9: empty, foreign, unfinished and path-like ids are refused before anything is sent, with a reason."""
    with pytest.raises(UsageError, match=r"Nothing was sent|Give it as"):
        register.parse(text)


@given(st.text(max_size=30))
def test_no_address_leaves_its_place_in_the_path(text: str) -> None:
    """Whatever is given for an id, the request goes to a path of that kind, or nowhere."""
    try:
        ref = register.parse("response:" + text)
    except UsageError:
        return
    assert ref is not None
    path = KINDS["response"].to_cancel(ref).path
    assert path.split("/") == ["", "responses", text, "cancel"]


@pytest.mark.parametrize("text", ["chat-42", "a:b", "", "Response:resp_1"])
def test_a_name_is_no_address(text: str) -> None:
    """A name that does not begin with a kind is a name."""
    assert register.parse(text) is None


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_word_means_one_thing(kind: Kind) -> None:
    """Each word has a meaning, one that nobody knows is not taken for an end, and the defaults make a policy."""
    assert {kind.read(word) for word in kind.cancelled} == {RunStatus.CANCELLED}
    assert {kind.read(word) for word in kind.finished} == {RunStatus.FINISHED}
    assert kind.read("unheard_of") is RunStatus.UNKNOWN
    assert kind.read(None) is RunStatus.UNKNOWN
    policy = policy_from({}, kind=kind.name, kinds=register.defaults())
    assert policy.grace < policy.timeout


@pytest.mark.parametrize("served", SERVED, ids=lambda served: served.name)
def test_the_test_kit_speaks_of_the_same_kinds(served: Any) -> None:
    """What the test server says is what the kinds expect, though neither knows the other."""
    kind = KINDS[served.name]
    assert kind.read(served.active) is RunStatus.ACTIVE
    assert kind.read(served.cancelled) is RunStatus.CANCELLED
    assert kind.read(served.completed) is RunStatus.FINISHED
    assert kind.readable is served.readable
    assert kind.prefixes == served.prefixes


@pytest.mark.parametrize(
    ("method", "url", "body", "expected"),
    [
        ("post", "/responses", {"background": True}, ("response", True, ())),
        ("post", "/responses", {"background": False}, None),
        ("post", "/responses", None, None),
        ("post", "/responses?beta=true", {"background": True}, ("beta_response", True, ())),
        ("get", "/responses/resp_1", None, ("response", False, ("resp_1",))),
        ("post", "/threads/thread_1/runs", {}, ("thread_run", True, ("thread_1",))),
        ("post", "/threads/runs", {}, ("thread_run", True, ())),
        ("post", "/threads/thread_1/runs/run_1/cancel", {}, ("thread_run", False, ("thread_1", "run_1"))),
        ("get", "/threads/thread_1/runs", None, None),
        ("post", "/chat/completions", {}, None),
        ("get", "", None, None),
    ],
)
def test_what_passes_is_recognised(method: str, url: str, body: Any, expected: Any) -> None:
    """A request is known by its method, its path and its body."""
    found = register.passing(method, url, lambda: body)
    assert (None if found is None else (found.kind.name, found.creates, found.within)) == expected


def test_an_object_tells_its_address() -> None:
    """The JSON of a run, or an event that carries it, tells its ids and its status; a foreground one is refused."""
    run = {"object": "thread.run", "id": "run_1", "thread_id": "thread_1", "status": "queued"}
    assert register.of_object(run) == (Ref("thread_run", ("thread_1", "run_1")), "queued")
    event = {"type": "response.created", "response": {"object": "response", "id": "resp_1", "status": "queued"}}
    assert KINDS["response"].find(event) == (Ref("response", ("resp_1",)), "queued")
    assert register.of_object({"object": "chat.completion", "id": "chatcmpl-1"}) is None
    with pytest.raises(UsageError, match="foreground"):
        register.of_object({"object": "response", "id": "resp_1", "background": False})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "No"}, "lower case"),
        ({"path": "/batches"}, "path"),
        ({"fields": ("a", "b")}, "fields"),
        ({"prefixes": ("a", "b")}, "prefixes"),
        ({"finished": frozenset({"canceled"})}, "two groups"),
        ({"cancelled": frozenset()}, "no status that means cancelled"),
    ],
)
def test_a_kind_that_contradicts_itself_is_refused(changes: dict[str, Any], why: str) -> None:
    """A kind that could not keep its promise can't be made."""
    good: dict[str, Any] = {
        "name": "mine",
        "path": "/batches/{id}",
        "active": frozenset({"on"}),
        "cancelled": frozenset({"canceled"}),
        "finished": frozenset({"done"}),
    }
    with pytest.raises(UsageError, match=why):
        Kind(**{**good, **changes})


def test_a_name_can_not_be_taken_twice() -> None:
    """The same kind may be registered again; another one of that name may not."""
    batch = KINDS["batch"]
    assert register_kind(batch) is batch
    with pytest.raises(UsageError, match="already"):
        register_kind(Kind(**{**batch.__dict__, "finished": frozenset({"completed"})}))
