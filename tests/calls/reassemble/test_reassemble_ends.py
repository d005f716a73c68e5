"""How the stream of a completion ends: complete, in an error, or too early."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reassemble_streams import DONE, assembler, body, call, data, ended

from deadstop.calls.reassemble import Truncated


@pytest.mark.parametrize(
    ("event", "status", "error"),
    [
        (data({"error": {"message": "m", "code": 400}}), 400, {"message": "m", "code": 400}),
        (data({"error": {"message": "m", "code": "503"}}), 503, {"message": "m", "code": "503"}),
        (
            data({"error": {"message": "m", "status": 429, "code": "x"}}),
            429,
            {"message": "m", "status": 429, "code": "x"},
        ),
        (data({"error": {"message": "m"}, "status_code": 502}), 502, {"message": "m"}),
        (
            data({"error": {"message": "m", "code": "server_error"}}),
            500,
            {"message": "m", "code": "server_error"},
        ),
        (data({"error": {"code": "context_length_exceeded"}}), 400, {"code": "context_length_exceeded"}),
        (data({"error": {"type": "invalid_request_error"}}), 400, {"type": "invalid_request_error"}),
        (data({"error": {"type": "BadRequestError"}}), 400, {"type": "BadRequestError"}),
        (
            data({"error": {"type": "server_error", "code": "rate_limit_exceeded"}}),
            429,
            {"type": "server_error", "code": "rate_limit_exceeded"},
        ),
        (data({"error": {"type": "overloaded_error"}}), 503, {"type": "overloaded_error"}),
        (data({"error": {"message": "m", "code": 200}}), 500, {"message": "m", "code": 200}),
        (data({"error": {"message": "m", "code": True}}), 500, {"message": "m", "code": True}),
        (data({"error": "m", "error_type": "overloaded"}), 500, {"message": "m"}),
        (data({"object": "error", "message": "m", "code": 400}), 400, {"message": "m", "code": 400}),
        (b'event: error\ndata: {"message":"m","code":404}\n\n', 404, {"message": "m", "code": 404}),
        (b"event: error\ndata: out of memory\n\n", 500, {"message": "out of memory"}),
        (b'error: {"code":400,"message":"m"}\n\n', 400, {"code": 400, "message": "m"}),
        (
            data({"id": "g", "choices": [{"delta": {}, "finish_reason": "error"}], "error": {"code": 502}}),
            502,
            {"code": 502},
        ),
        (
            data({"choices": None, "error_type": "BadRequestError", "error_message": "too long", "usage": None}),
            400,
            {"type": "BadRequestError", "message": "too long"},
        ),
        (data({"choices": [], "error_message": "m", "error_code": 503}), 503, {"message": "m", "code": 503}),
        (data({"choices": None, "error_message": "m", "status": 400}), 400, {"message": "m"}),
        (data({"code": 10013, "message": "m", "sid": "s"}), 500, {"code": 10013, "message": "m"}),
    ],
)
def test_an_error_in_mid_stream_is_the_answer(event: bytes, status: int, error: Any) -> None:
    """Wrapped, flat, named or bare: the caller gets the error, with its own status, that of its kind, or 500."""
    assembling = assembler()
    assert not assembling.feed(data({"choices": [{"index": 0, "delta": {"content": "x"}}]}))
    assert assembling.feed(event)
    answer = assembling.finish()
    assert answer.status == status
    assert json.loads(answer.body) == {"error": error}


def test_a_null_error_is_none() -> None:
    """A server that names the error in every chunk has none until it says which."""
    quiet = ({"choices": [], "error_type": "", "error_message": None}, {"code": 0, "message": "Success", "sid": "s"})
    assert body(*quiet, {"choices": [{"delta": {"content": "x"}}]})["choices"][0]["message"]["content"] == "x"
    assert body({"error": None, "choices": [{"delta": {"content": "x"}}]})["choices"][0]["message"]["content"] == "x"


def test_the_done_mark_completes_the_answer() -> None:
    """Feed says when nothing more is needed, and ignores what comes after."""
    assembling = assembler()
    assert not assembling.feed(data({"id": "c", "choices": [{"delta": {"content": "x"}}]}))
    assert not assembling.feed(b"data: [DO")
    assert assembling.feed(b"NE]\n\n")
    assert assembling.feed(data({"choices": [{"delta": {"content": "late"}}]}))
    assert json.loads(assembling.finish().body)["choices"][0]["message"]["content"] == "x"


def test_a_stream_may_end_without_the_done_mark_once_every_choice_is_finished() -> None:
    """Some servers just close; a finish reason for each choice asked for is then the proof."""
    events = [data({"choices": [{"index": i, "delta": {"content": "x"}, "finish_reason": "stop"}]}) for i in (0, 1)]
    assert len(json.loads(ended(*events, choices=2).body)["choices"]) == 2
    with pytest.raises(Truncated, match=r"1 of 2 choices finished"):
        ended(events[0], choices=2)


def test_a_last_chunk_without_its_blank_line_counts() -> None:
    """The end of the stream ends the last event."""
    last = data({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]})
    assert ended(last.rstrip()).status == 200
    assert ended(last, b"data: [DONE]").status == 200


def test_events_that_end_with_a_single_newline_are_told_apart() -> None:
    """Clients that read line by line do not mind, so some servers do not either."""
    events = [data({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in ("Hel", "lo")]
    stream = b"".join(event.replace(b"\n\n", b"\n") for event in (*events, DONE))
    assert json.loads(ended(stream).body)["choices"][0]["message"]["content"] == "Hello"
    with pytest.raises(Truncated):
        ended(stream[: len(stream) - len(DONE) - 5])


def test_an_event_may_have_its_json_on_several_lines() -> None:
    """As the standard has it, also where a line begins as an event of its own would."""
    stream = b'data: {"choices": [{"index": 0, "delta":\ndata: {"content": "Hello"}}]}\n\n'
    assert json.loads(ended(stream, DONE).body)["choices"][0]["message"]["content"] == "Hello"


def test_a_stream_that_ends_early_is_truncated() -> None:
    """Without the mark and without a finish reason, what came is not the answer."""
    with pytest.raises(Truncated, match="after 1 events"):
        ended(data({"choices": [{"index": 0, "delta": {"content": "x"}}]}))
    with pytest.raises(Truncated):
        ended()
    with pytest.raises(Truncated):
        ended(b": keepalive\n\n")


def test_a_mark_without_an_answer_is_truncated() -> None:
    """[DONE] alone answers nothing."""
    with pytest.raises(Truncated, match="without sending any part"):
        ended(DONE)


def test_an_event_that_is_not_json_breaks_the_answer() -> None:
    """A chunk cut in half is never skipped: the answer would lack a piece."""
    assembling = assembler()
    assert assembling.feed(b'data: {"choices":[{"del\n\n')
    with pytest.raises(Truncated, match="Event 1 of the stream is not JSON"):
        assembling.finish()


def test_events_that_are_no_chunks_are_passed_over() -> None:
    """Pings, nulls and gateways' own events are no part of the completion."""
    found = body({"id": "c", "choices": []}, None, 3, [], {"type": "ping"}, {"id": "x", "keepalive": True})
    assert found == {"id": "c", "object": "chat.completion", "choices": []}


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": "x"},
        {"choices": [None, 3, {"index": "0", "delta": []}]},
        {"choices": [{"index": True, "delta": {"tool_calls": [None, "x", {"function": 3}], "content": 3}}]},
        {"choices": [{"delta": {"audio": {"data": 3}, "function_call": "x", "content": {"a": "b"}}}]},
        {"choices": [{"delta": {"content": ["x", {"type": ["y"], "index": 0}]}, "logprobs": "x"}]},
        {"choices": [{"delta": {"tool_calls": [{"id": ["x"], "function": {"name": [], "arguments": {}}}]}}]},
        {
            "choices": [{"delta": {}, "content_filter_results": [{}], "usage": 3}],
            "usage": "x",
            "created": "now",
        },
    ],
)
def test_nonsense_never_raises_while_feeding(chunk: Any) -> None:
    """Whatever the server sends, feeding it twice and finishing raises nothing but Truncated."""
    good = {
        "id": "c",
        "choices": [{"index": 0, "delta": {"content": "x", "tool_calls": [call("f", "{}", "c1")]}}],
    }
    ended(data(chunk), data(good), data(chunk), DONE)
    ended(data(good), data(chunk), data(good), DONE)


NAMES = [
    "arguments",
    "choices",
    "content",
    "custom",
    "delta",
    "error",
    "function",
    "id",
    "index",
    "logprobs",
    "message",
    "name",
    "signature",
    "text",
    "tool_calls",
    "type",
    "usage",
    "x",
]
leaf = st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | st.text(max_size=3)
chaos = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
delta = st.dictionaries(st.sampled_from(NAMES), chaos, max_size=4)
chunk = st.fixed_dictionaries({"choices": chaos | st.lists(st.fixed_dictionaries({"delta": delta}), max_size=2)})


@given(st.lists(chunk | chaos, max_size=4))
@settings(max_examples=80, deadline=None)
def test_chaos_never_raises(chunks: list[Any]) -> None:
    """Any JSON at all, under the names that matter, gives an answer or Truncated."""
    with suppress(Truncated):
        json.loads(ended(*map(data, chunks), DONE).body)


def test_bottomless_nesting_is_truncated() -> None:
    """What is nested deeper than Python goes is refused, not a crash in the transport."""
    for depth in (400, 20_000, 200_000):
        event = b'data: {"choices":[{"delta":{"x":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}}]}\n\n"
        try:
            assert ended(event, DONE).status == 200
        except Truncated:
            assert depth > 400


def test_a_named_event_that_is_no_json_is_passed_over() -> None:
    """`event: ping` with the time of day (DeepInfra, several gateways) is no part of the completion."""
    whole = data({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]})
    assert ended(b"event: ping\ndata: 2026-01-01 00:00:00\n\n", whole, DONE).status == 200
