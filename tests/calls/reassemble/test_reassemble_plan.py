"""Which requests are streamed inside, and that nothing else in them changes."""

from __future__ import annotations

import json
from typing import Any, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadstop.calls.reassemble import Plan, plan

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
JSON = "application/json"


def planned(body: Any, path: str = CHAT, **options: Any) -> Optional[Plan]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return plan("POST", path, JSON, raw, **options)


def sent(body: Any, path: str = CHAT, **options: Any) -> str:
    made = planned(body, path, **options)
    assert made is not None
    return made.body.decode("utf-8")


@pytest.mark.parametrize(
    ("path", "kind", "model"),
    [
        (CHAT, "chat", "m"),
        ("/chat/completions", "chat", "m"),
        ("/proxy/openai/v1/chat/completions?x=/responses", "chat", "m"),
        ("/openai/deployments/d/chat/completions?api-version=2024-10-21", "chat", "m"),
        (RESPONSES, "response", "m"),
        ("/openai/v1/responses?beta=true", "response", "m"),
    ],
)
def test_chat_completions_and_responses_are_planned(path: str, kind: str, model: str) -> None:
    """A POST to either collection, below any base path, is streamed inside."""
    made = planned({"model": "m"}, path)
    assert made is not None
    assert (made.kind, made.model) == (kind, model)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/responses/input_tokens",
        "/v1/responses/compact",
        "/v1/chat/completions/chatcmpl-1",
        "/v1/myresponses",
    ],
)
def test_other_paths_are_left_alone(path: str) -> None:
    """Only the two collections themselves are streamed inside, nothing below or beside them."""
    assert planned({"model": "m"}, path) is None


def test_only_posts_of_json_are_planned() -> None:
    """Another method, another media type or another charset is left alone; parameters of JSON are not."""
    assert plan("GET", CHAT, JSON, b"{}") is None
    assert plan("POST", CHAT, "multipart/form-data; boundary=x", b"{}") is None
    assert plan("POST", CHAT, "", b"{}") is None
    assert plan("POST", CHAT, "application/json; charset=utf-16", b"{}") is None
    assert plan("post", CHAT, "Application/JSON; charset=UTF-8", b"{}") is not None


@pytest.mark.parametrize("stream", [True, 0, 1, "false", "true", []])
def test_a_request_that_says_anything_else_of_streaming_is_left_alone(stream: Any) -> None:
    """Only an absent, null or false `stream` is a request that is not streamed."""
    assert planned({"stream": stream}) is None
    assert planned({"stream": stream}, RESPONSES) is None


@pytest.mark.parametrize("stream", [None, False])
def test_a_request_that_turns_streaming_off_is_planned(stream: Any) -> None:
    """Null and false are replaced, not doubled."""
    assert sent({"stream": stream, "model": "m"}, RESPONSES) == '{"model": "m","stream":true}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"a":1,}',
        b'{"a" 1}',
        b"{a:1}",
        b'{"a":1} x',
        b'{"a":\xff}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":1,"a":1}',
        b'{"stream":false,"stream":true}',
        b'{"a":NaN}',
        b'{"a":[{"b":-Infinity}]}',
        b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        '{"a":1}'.encode("utf-16"),
    ],
)
def test_a_body_that_could_be_read_in_two_ways_is_left_alone(body: bytes) -> None:
    """What is no strict JSON object, or has a key twice, is sent as it is: the server judges it."""
    assert planned(body) is None
    assert planned(body, RESPONSES) is None


def test_the_usage_is_asked_for_in_chat_alone_and_only_where_the_server_takes_it() -> None:
    """Chat carries `stream_options` unless told not to; a response never does."""
    assert json.loads(sent({}))["stream_options"] == {"include_usage": True}
    assert json.loads(sent({"stream_options": None}))["stream_options"] == {"include_usage": True}
    assert json.loads(sent({"stream_options": None}, stream_options=False)) == {"stream": True}
    assert json.loads(sent({}, RESPONSES)) == {"stream": True}


def test_stream_options_without_a_stream_are_the_servers_to_refuse() -> None:
    """A request that is wrong when not streamed is not made right by streaming it inside."""
    assert planned({"stream_options": {"include_usage": True}}) is None
    assert planned({"stream_options": {"include_obfuscation": False}}, RESPONSES) is None


@pytest.mark.parametrize("background", [True, "yes", 1])
def test_background_responses_are_left_alone(background: Any) -> None:
    """A background response is a remote run with a cancel of its own."""
    assert planned({"background": background}, RESPONSES) is None


def test_foreground_responses_are_planned() -> None:
    """Null and false mean the foreground; chat knows no background."""
    assert planned({"background": False}, RESPONSES) is not None
    assert planned({"background": None}, RESPONSES) is not None
    assert planned({"background": True}) is not None


@pytest.mark.parametrize("audio", [{"format": "wav"}, {"format": "mp3", "voice": "alloy"}, {}, "pcm16"])
def test_audio_that_can_not_be_streamed_is_left_alone(audio: Any) -> None:
    """OpenAI streams audio as pcm16 only."""
    assert planned({"modalities": ["text", "audio"], "audio": audio}) is None


def test_pcm16_audio_and_none_are_planned() -> None:
    """Audio in the one format that streams, and no audio, are streamed inside."""
    assert planned({"audio": {"format": "pcm16", "voice": "alloy"}}) is not None
    assert planned({"audio": None}) is not None


def test_every_other_byte_of_the_body_stays() -> None:
    """Order, spelling, big integers, long decimals, escapes, and keys twice further down are kept."""
    body = (
        '{ "z" : 1e400, "stream":false,"seed":123456789012345678901234567890 ,\n'
        '"temperature":0.100000000000000001,"messages":[{"content":"\\u00e9é\\ud800","content":1}], "a":{}}'
    )
    assert sent(body.encode()) == (
        '{"z" : 1e400,"seed":123456789012345678901234567890,'
        '"temperature":0.100000000000000001,"messages":[{"content":"\\u00e9é\\ud800","content":1}],"a":{},'
        '"stream":true,"stream_options":{"include_usage":true}}'
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OWN = ("stream", "stream_options", "background", "audio")


@given(
    st.dictionaries(st.text().filter(lambda key: key not in OWN), json_values, max_size=5),
    st.booleans(),
    st.sampled_from([None, 1]),
)
@settings(max_examples=50, deadline=None)
def test_any_body_keeps_its_meaning_and_its_order(body: dict[str, Any], escape: bool, indent: Any) -> None:
    """Without the members that ask for the stream, the body sent is the body given."""
    raw = json.dumps(body, ensure_ascii=escape, indent=indent).encode("utf-8")
    made = json.loads(sent(raw))
    assert made.pop("stream") is True
    assert made.pop("stream_options") == {"include_usage": True}
    assert list(made.items()) == list(body.items())


def test_the_model_comes_from_the_body_or_from_azures_path() -> None:
    """The plan names the model; a deployment in the path stands in for one."""
    assert getattr(planned({"model": "gpt"}), "model", None) == "gpt"
    azure = "/openai/deployments/my-gpt/chat/completions"
    assert getattr(planned({}, azure), "model", None) == "my-gpt"
    assert getattr(planned({"model": 3}), "model", None) == ""


def test_each_assembler_is_a_fresh_one() -> None:
    """A second attempt of the request starts from nothing."""
    made = planned({})
    assert made is not None
    assert made.assembler() is not made.assembler()
