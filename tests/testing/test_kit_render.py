"""A Reply says the same whole and streamed, in every API."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deadstop.testing import Audio, Extra, Reply, ToolCall, render_chat, render_messages, render_responses
from deadstop.testing.reply import Event

text = st.text(max_size=40)
extras = st.dictionaries(st.sampled_from(["x_one", "x_two"]), st.integers() | text, max_size=2)
replies = st.builds(
    Reply,
    text=st.none() | text,
    tokens=st.none() | st.lists(text, max_size=6).map(tuple),
    tool_calls=st.lists(
        st.builds(
            ToolCall,
            name=text.filter(bool),
            arguments=st.dictionaries(text, text, max_size=2).map(json.dumps),
            id=st.none() | text.filter(bool),
        ),
        max_size=3,
    ).map(tuple),
    refusal=st.none() | text.filter(bool),
    logprobs=st.booleans(),
    audio=st.none() | st.builds(Audio, data=st.binary(max_size=40).map(lambda data: base64.b64encode(data).decode())),
    reasoning_content=st.none() | text.filter(bool),
    extra=st.builds(Extra, message=extras, choice=extras, top=extras),
    finish_reason=st.none() | st.just("content_filter"),
    usage=st.booleans(),
    system_fingerprint=st.none() | st.just("fp_1"),
    service_tier=st.none() | st.just("default"),
)
limits = st.none() | st.integers(0, 12)


def folded(events: list[Event]) -> dict[str, Any]:
    """One chat completion out of its chunks, by the plainest rules."""
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        whole.update({key: value for key, value in event.data.items() if key != "choices"})
        for choice in event.data["choices"]:
            fresh = {"message": {}, "logprobs": None}
            kept = choices.setdefault(choice["index"], fresh)
            for key, value in choice.pop("delta").items():
                add(kept["message"], key, value)
            for kind, listed in (choice.pop("logprobs") or {}).items():
                kept["logprobs"] = kept["logprobs"] or {"content": None, "refusal": None}
                if listed:
                    kept["logprobs"][kind] = (kept["logprobs"][kind] or []) + listed
            kept.update(choice)
    return {**whole, "object": "chat.completion", "choices": [choices[number] for number in sorted(choices)]}


def add(message: dict[str, Any], key: str, value: Any) -> None:
    """Merges one field of a delta into the message."""
    known = message.get(key)
    if key == "tool_calls":
        calls = message.setdefault(key, [])
        for fragment in value:
            if fragment["index"] == len(calls):
                calls.append({name: part for name, part in fragment.items() if name != "index"})
            else:
                calls[fragment["index"]]["function"]["arguments"] += fragment["function"]["arguments"]
    elif key == "audio":
        audio = message.setdefault(key, {"data": "", "transcript": ""})
        for name, part in value.items():
            audio[name] = audio[name] + part if name in ("data", "transcript") else part
    elif isinstance(known, str) and isinstance(value, str):
        message[key] = known + value
    elif value is not None or known is None:
        message[key] = value


@given(reply=replies, limit=limits, n=st.integers(1, 3))
def test_chat_chunks_fold_into_the_completion(reply: Reply, limit: int | None, n: int) -> None:
    """The chunks of a chat completion, put together, are the completion, field for field."""
    body = {"model": "m", "n": n, "max_tokens": limit, "stream_options": {"include_usage": True}}
    events = list(render_chat.chunks(reply, body))
    assert sum(event.tokens for event in events) == render_chat.token_count(reply, body)
    assert folded(events) == render_chat.completion(reply, body)


@given(reply=replies, limit=limits)
def test_response_events_fold_into_the_response(reply: Reply, limit: int | None) -> None:
    """The last event of a response's stream is the response, and its deltas say what its items say."""
    body = {"model": "m", "max_output_tokens": limit}
    events = list(render_responses.events(reply, body))
    whole = render_responses.response(reply, body)
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    assert all(event.name == event.data["type"] for event in events)
    assert events[-1].data["response"] == whole
    assert sum(event.tokens for event in events) == render_responses.token_count(reply, body)
    said: dict[tuple[int, int], str] = {}
    for event in (event.data for event in events if event.tokens):
        where = (event["output_index"], event.get("content_index", 0))
        said[where] = said.get(where, "") + event["delta"]
    assert said == {
        (at, inner): part.get("text", part.get("refusal", part.get("arguments")))
        for at, item in enumerate(whole["output"])
        for inner, part in enumerate(item.get("content", [item]))
    }


@given(reply=replies, limit=limits)
def test_message_events_fold_into_the_message(reply: Reply, limit: int | None) -> None:
    """The events of an Anthropic message, put together, are the message."""
    body = {"model": "m", "max_tokens": limit}
    whole = render_messages.message(reply, body)
    said: list[str] = []
    for event in render_messages.events(reply, body):
        delta = event.data.get("delta", {})
        if event.name == "content_block_start":
            said.append("")
        elif event.name == "content_block_delta":
            said[-1] += delta.get("text", delta.get("partial_json"))
        elif event.name == "message_delta":
            assert delta["stop_reason"] == whole["stop_reason"]
    for spoken, block in zip(said, whole["content"]):
        if block["type"] == "text":
            assert spoken == block["text"]
        elif whole["stop_reason"] != "max_tokens":
            assert json.loads(spoken) == block["input"]
    assert len(said) == len(whole["content"])


def test_choices_take_turns_and_differ() -> None:
    """The choices of one answer come interleaved and are told apart by their text."""
    body = {"n": 2}
    texts = [choice["message"]["content"] for choice in render_chat.completion(Reply("a b"), body)["choices"]]
    assert texts == ["a b", "#1 a b"]
    order = [event.data["choices"][0]["index"] for event in render_chat.chunks(Reply("a b"), body) if event.tokens]
    assert order == [0, 1, 0, 1, 1]


def test_a_limit_cuts_the_answer_and_says_so() -> None:
    """An answer longer than `max_tokens` ends there, with finish_reason `length`."""
    whole = render_chat.completion(Reply(tokens=("a", "b", "c")), {"max_completion_tokens": 2})
    assert whole["choices"][0]["message"]["content"] == "ab"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 2
