"""Streamed inside, errors are those of the plain call: the user's own, the server's, and those that we cause."""

from __future__ import annotations

import json
import socket
from typing import Any

import openai
import pytest
from raw_kit import CHAT, EVENTS, WHOLE, Server, answer, chunk, client_of, streamed

ERROR = {"error": {"message": "quota is used up", "code": 429, "status": "RESOURCE_EXHAUSTED"}}
PRETTY = json.dumps([ERROR], indent=2).encode()


def refuse(status: str, error: Any, *, what: str = "stream") -> Any:
    """A server that answers plain calls, and those that bring a field with this error."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        asked = json.loads(body)
        if what in asked:
            connection.sendall(answer(error(asked) if callable(error) else error, status))
        elif "stream" in asked:
            connection.sendall(streamed() + b"".join(chunk(each) for each in EVENTS) + b"0\r\n\r\n")
        else:
            connection.sendall(answer(WHOLE))

    return talk


def failure_of(client: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**CHAT)
    return caught.value


def told(error: openai.APIStatusError) -> Any:
    """What the server said. (The first SDKs keep it in the response alone.)"""
    data = error.response.json()
    return data.get("error", data) if isinstance(data, dict) else data


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ERROR).encode() + b"\n\n",
        json.dumps(ERROR).encode() + b"\n" + EVENTS[-1],
        json.dumps([ERROR]).encode() + b"\n\n" + EVENTS[-1],
        PRETTY + b"\r\n\r\n" + EVENTS[-1],
        PRETTY,
        b"data: " + json.dumps([ERROR]).encode() + b"\n\n" + EVENTS[-1],
    ],
    ids=["object", "before the mark", "list", "on many lines", "at the end", "list in an event"],
)
@pytest.mark.parametrize("begun", [True, False])
def test_an_error_that_is_no_event_is_the_error(serve: Any, text: bytes, begun: bool) -> None:
    """Gateways write it among the events without `data:`, Google as a list: half an answer never passes for whole."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        connection.sendall(streamed() + (chunk(EVENTS[0]) if begun else b"") + chunk(text) + b"0\r\n\r\n")

    client = client_of(serve(talk))
    with client.runs.open():
        error = failure_of(client)
    assert isinstance(error, openai.RateLimitError)
    assert told(error) == ERROR["error"]


def test_an_answer_that_only_claims_to_be_a_stream_is_the_answer(serve: Any) -> None:
    """A server that ignores `stream` but for the content type."""
    text = json.dumps(WHOLE, indent=1).encode()
    talk: Any = lambda server, connection, head, body: connection.sendall(streamed() + chunk(text) + b"0\r\n\r\n")  # noqa: E731
    client = client_of(serve(talk))
    with client.runs.open():
        assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"


@pytest.mark.parametrize("error", [ERROR, [ERROR]], ids=["object", "list"])
@pytest.mark.parametrize("status", ["429 Too Many Requests", "400 Bad Request", "403 Forbidden"])
def test_an_error_status_passes_untouched(serve: Any, error: Any, status: str) -> None:
    """Its body is what the plain call's is, in whatever form, after a single request."""
    server = serve(lambda server, connection, head, body: connection.sendall(answer(error, status)))
    client = client_of(server)
    outside = failure_of(client)
    with client.runs.open():
        inside = failure_of(client)
    assert (type(inside), told(inside), str(inside)) == (type(outside), told(outside), str(outside))
    assert len(server.bodies) == 2


def test_an_error_status_with_an_event_for_a_body_is_read(serve: Any) -> None:
    """The status says what it is; the message is in the event, and the SDK would not look for it there."""
    text = b"event: error\ndata: " + json.dumps({"error": {"message": "slow down"}}).encode() + b"\n\n"
    head = b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(
        text
    )
    client = client_of(serve(lambda server, connection, *asked: connection.sendall(head + text)))
    with client.runs.open():
        error = failure_of(client)
    assert isinstance(error, openai.RateLimitError)
    assert told(error) == {"message": "slow down"}


def test_an_error_in_a_200_says_nothing_of_streams(serve: Any) -> None:
    """It is passed on as it is, and the next call is streamed inside again."""
    server = serve(lambda server, connection, head, body: connection.sendall(answer(ERROR)))
    client = client_of(server)
    outside = client.chat.completions.create(**CHAT)
    with client.runs.open():
        assert client.chat.completions.create(**CHAT) == outside
        client.chat.completions.create(**CHAT)
    assert [bool(json.loads(body).get("stream")) for body in server.bodies] == [False, True, True]


@pytest.mark.parametrize("what", ["chat", "response"])
def test_a_server_that_answers_without_a_stream_is_asked_for_none_again(serve: Any, what: str) -> None:
    """It ignores `stream`, and one answer tells."""
    response = {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": []}
    whole = WHOLE if what == "chat" else response
    server = serve(lambda server, connection, head, body: connection.sendall(answer(whole)))
    client = client_of(server)
    if what == "response" and not hasattr(client, "responses"):
        pytest.skip("this SDK has no responses")
    with client.runs.open():
        for _ in range(3):
            made = client.chat.completions.create(**CHAT) if what == "chat" else client.responses.create(input="x")
            assert made.id == whole["id"]
    assert ["stream" in json.loads(body) for body in server.bodies] == [True, False, False]


def in_body(*place: str, kind: str = "extra_forbidden", message: str = "Extra inputs are not permitted") -> Any:
    return {"detail": [{"type": kind, "loc": ["body", *place], "msg": message, "input": {"include_usage": True}}]}


REFUSALS = [
    ("stream_options", "422 Unprocessable Entity", in_body("stream_options")),
    ("stream_options", "422 Unprocessable Entity", in_body("stream_options", "include_usage")),
    ("stream", "422 Unprocessable Entity", in_body("stream")),
    ("stream", "422 U", {"detail": [{"loc": ["body", "stream"], "msg": "extra fields not permitted"}]}),
    ("stream_options", "400 Bad Request", {"error": {"message": 'json: unknown field "stream_options"'}}),
    ("stream_options", "400 Bad Request", {"error": {"message": "Validation error at #/streamOptions: no such field"}}),
    ("stream_options", "400 Bad Request", {"error": {"message": "include_usage: property is unsupported"}}),
    (
        "stream_options",
        "400 Bad Request",
        {"message": "[{'type': 'extra_forbidden', 'loc': ('body', 'stream_options'), 'input': {'include_usage': 1}}]"},
    ),
    ("stream_options", "400 Bad Request", {"detail": "Extra parameters ['stream_options'] are not allowed"}),
    (
        "stream",
        "400 Bad Request",
        {
            "error": {
                "message": "Your organization must be verified to stream this model.",
                "param": "stream",
                "code": "unsupported_value",
            }
        },
    ),
    (
        "stream",
        "403 Forbidden",
        {"Message": "User: a is not authorized to perform: bedrock:InvokeModelWithResponseStream on resource: r"},
    ),
    ("stream", "403 Forbidden", [{"error": {"message": "Streaming is not enabled for this key.", "code": 403}}]),
]


@pytest.mark.parametrize(("what", "status", "error"), REFUSALS)
def test_a_refusal_of_what_we_added_never_reaches_the_user(serve: Any, what: str, status: str, error: Any) -> None:
    """The call goes through without it, and the next one does at once: also where only the stream is forbidden."""
    server = serve(refuse(status, error, what=what))
    client = client_of(server)
    with client.runs.open():
        assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"
        tries = len(server.bodies)
        assert client.chat.completions.create(**CHAT).choices[0].message.content == "Hello"
    assert len(server.bodies) == tries + 1
    assert ("stream" in json.loads(server.bodies[-1])) is (what == "stream_options")


def test_a_403_that_names_the_action_is_asked_plainly_at_once(serve: Any) -> None:
    """Leaving out the options would not help."""
    error = {"Message": "not authorized to perform: bedrock:InvokeModelWithResponseStream"}
    server = serve(refuse("403 Forbidden", error))
    client = client_of(server)
    with client.runs.open():
        client.chat.completions.create(**CHAT)
    assert [json.loads(body).get("stream") for body in server.bodies] == [True, None]


@pytest.mark.parametrize(
    "error",
    [
        in_body("messages", "0", "role", kind="enum", message="Input should be 'system' or 'user'"),
        in_body("top_k"),
        {"error": {"message": "Unrecognized request argument supplied: top_k", "param": "top_k"}},
    ],
)
def test_a_422_about_the_users_own_fields_passes_untouched(serve: Any, error: Any) -> None:
    """One request, and the error as it came."""
    error = json.loads(json.dumps(error).replace("include_usage", "x"))
    server = serve(lambda server, connection, head, body: connection.sendall(answer(error, "422 Unprocessable Entity")))
    client = client_of(server)
    outside = failure_of(client)
    with client.runs.open():
        inside = failure_of(client)
    assert (type(inside), told(inside), str(inside)) == (type(outside), told(outside), str(outside))
    assert len(server.bodies) == 2


def test_a_422_that_echoes_what_we_added_is_the_plain_calls_own(serve: Any) -> None:
    """FastAPI shows the whole body as the input of a field that is missing: the user sees theirs, not ours."""

    def talk(server: Server, connection: socket.socket, head: bytes, body: bytes) -> None:
        asked = json.loads(body)
        detail = [{"type": "missing", "loc": ["body", "tenant"], "msg": "Field required", "input": asked}]
        connection.sendall(answer({"detail": detail}, "422 Unprocessable Entity"))

    server = serve(talk)
    client = client_of(server)
    outside = failure_of(client)
    with client.runs.open():
        for _ in range(2):
            assert told(failure_of(client)) == told(outside)
    assert [json.loads(body).get("stream") for body in server.bodies] == [None, True, None, True, None]
