"""Any chat completion, streamed in any way, comes back as what it would have been unstreamed."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from typing import Any

import openai
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from deadstop.calls.reassemble import Truncated, plan

# The models of openai 1.0 know neither custom tools nor all finish reasons; its client does not validate.
MODELS_KNOW_EVERY_FIELD = int(openai.__version__.split(".")[0]) >= 2

text = st.text(max_size=20)
some = st.text(min_size=1, max_size=20)
number = st.integers(0, 10**20) | st.floats(-1e6, 1e6)
token = st.fixed_dictionaries(
    {
        "token": text,
        "bytes": st.none() | st.lists(st.integers(0, 255), max_size=3),
        "logprob": st.floats(-100, 0),
        "top_logprobs": st.lists(
            st.fixed_dictionaries({"token": text, "bytes": st.none(), "logprob": st.floats(-100, 0)}),
            max_size=2,
        ),
    }
)
function_call = st.fixed_dictionaries(
    {
        "id": some,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": some, "arguments": text}),
    },
    optional={"extra_content": st.fixed_dictionaries({"google": st.fixed_dictionaries({"thought_signature": some})})},
)
custom_call = st.fixed_dictionaries(
    {"id": some, "type": st.just("custom"), "custom": st.fixed_dictionaries({"name": some, "input": text})}
)
annotation = st.fixed_dictionaries(
    {
        "type": st.just("url_citation"),
        "url_citation": st.fixed_dictionaries(
            {"start_index": st.integers(0, 9), "end_index": st.integers(0, 9), "title": text, "url": text}
        ),
    }
)
detail = st.fixed_dictionaries(
    {"type": st.just("reasoning.text"), "format": st.just("v1"), "text": text}, optional={"signature": some}
)


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.sampled_from(["text", "tools", "function", "refusal", "audio"]))
    message: dict[str, Any] = {"role": "assistant", "content": draw(text) if shape == "text" else None}
    message["refusal"] = draw(some) if shape == "refusal" else None
    if shape == "tools":
        message["tool_calls"] = draw(st.lists(function_call | custom_call, min_size=1, max_size=3))
    if shape == "function":
        message["function_call"] = {"name": draw(some), "arguments": draw(text)}
    if shape == "audio":
        data = base64.b64encode(draw(st.binary(max_size=20))).decode()
        message["audio"] = {"id": draw(some), "data": data, "transcript": draw(text), "expires_at": 17}
    optional: dict[str, Any] = {
        "reasoning_content": text,
        "commentary": text,
        "annotations": st.lists(annotation, max_size=3),
        "reasoning_details": st.lists(detail, max_size=2).map(lambda ds: [{**d, "index": i} for i, d in enumerate(ds)]),
        "scores": st.lists(number, max_size=3),
        "score": number,
        "flagged": st.booleans(),
        "nothing": st.none(),
        "provider": some,
        "meta": st.fixed_dictionaries({"depth": number, "log": text, "kind_name": some, "on": st.booleans()}),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(optional)), max_size=4))
    message.update({name: draw(optional[name]) for name in sorted(chosen)})
    return message


@st.composite
def completions(draw: st.DrawFn) -> dict[str, Any]:
    choices = []
    for index in range(draw(st.integers(1, 3))):
        choice: dict[str, Any] = {"index": index, "message": draw(messages())}
        choice["logprobs"] = None
        if draw(st.booleans()):
            tokens = st.none() | st.lists(token, min_size=1, max_size=3)
            choice["logprobs"] = {"content": draw(tokens), "refusal": draw(tokens)}
        if draw(st.booleans()):
            choice["stop_reason"] = draw(some | number)
        if draw(st.booleans()):
            choice["token_ids"] = draw(st.lists(st.integers(0, 9), max_size=4))
        choice["finish_reason"] = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
        choices.append(choice)
    body: dict[str, Any] = {
        "id": draw(some),
        "object": "chat.completion",
        "created": 1700000000,
        "model": draw(some),
    }
    body["system_fingerprint"] = draw(st.none() | some)
    body["choices"] = choices
    if draw(st.booleans()):
        body["usage"] = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": draw(number)}
    if draw(st.booleans()):
        body["x_extra"] = draw(some | number | st.booleans() | st.lists(number) | st.dictionaries(text, number))
    return body


class Renderer:
    """Streams a completion: every text in pieces, every choice in turns, every byte anywhere."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    def pieces(self, value: str) -> list[str]:
        cuts = sorted(self.dice.randrange(len(value) + 1) for _ in range(self.dice.randrange(3)))
        return [value[a:b] for a, b in zip([0, *cuts], [*cuts, len(value)])]

    def audio_pieces(self, value: str) -> list[str]:
        if self.dice.random() < 0.5:
            return self.pieces(value)
        raw = base64.b64decode(value)
        cut = self.dice.randrange(len(raw) + 1)
        return [base64.b64encode(part).decode() for part in (raw[:cut], raw[cut:])]

    def lists(self, value: list[Any]) -> list[list[Any]]:
        cut = self.dice.randrange(len(value) + 1)
        return [value[:cut], value[cut:]]

    def field(self, name: str, value: Any) -> Iterator[dict[str, Any]]:
        """Yield the deltas of one field of a message."""
        if name == "tool_calls":
            for index, call in enumerate(value):
                part = call["type"]
                field = "arguments" if part == "function" else "input"
                first, *rest = self.pieces(call[part][field])
                yield {name: [{**call, "index": index, part: {**call[part], field: first}}]}
                for piece in rest:
                    yield {name: [{"index": index, part: {field: piece}}]}
        elif name == "audio":
            yield {name: {"id": value["id"], "transcript": ""}}
            for piece in self.pieces(value["transcript"]):
                yield {name: {"transcript": piece}}
            for piece in self.audio_pieces(value["data"]):
                yield {name: {"data": piece}}
            yield {name: {"expires_at": value["expires_at"]}}
        elif name == "function_call":
            yield {name: {"name": value["name"], "arguments": ""}}
            for piece in self.pieces(value["arguments"]):
                yield {name: {"arguments": piece}}
        elif name == "reasoning_details":
            yield {name: []}
            for entry in value:
                fixed = {key: entry[key] for key in ("type", "format", "index")}
                for piece in self.pieces(entry["text"]):
                    yield {name: [{**fixed, "text": piece}]}
                if "signature" in entry:
                    yield {name: [{**fixed, "signature": entry["signature"]}]}
        elif name == "meta":
            for piece in self.pieces(value["log"]):
                yield {name: {**value, "log": piece}}
            yield {name: {"log": ""}}
        elif name == "provider":
            yield {name: value}
            yield {name: value}
        elif isinstance(value, str):
            for piece in self.pieces(value):
                yield {name: piece}
        elif isinstance(value, list):
            for part in self.lists(value):
                yield {name: part}
        else:
            yield {name: value}

    def choice(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the chunks' choices for one choice, in order."""
        message = choice["message"]
        tracks = [list(self.field(name, value)) for name, value in message.items() if name != "role"]
        opening = {"role": "assistant", "content": "" if self.dice.random() < 0.5 else None, "refusal": None}
        if message["content"] is None and not any(
            message.get(key) for key in ("tool_calls", "function_call", "refusal", "audio")
        ):
            opening["content"] = None
        deltas = [opening]
        while any(tracks):
            deltas.append(self.dice.choice([track for track in tracks if track]).pop(0))
        deltas.append({})
        plain = {"index": choice["index"], "logprobs": None, "finish_reason": None}
        made = [{**plain, "delta": delta} for delta in deltas]
        if choice["logprobs"] is not None:
            made[0]["logprobs"] = {"content": None, "refusal": None}
            for name in ("content", "refusal"):
                for part in self.lists(choice["logprobs"][name] or []):
                    if part:
                        made.insert(
                            -1,
                            {
                                **plain,
                                "delta": {},
                                "logprobs": {"content": None, "refusal": None, name: part},
                            },
                        )
        if "token_ids" in choice:
            for part in self.lists(choice["token_ids"]):
                made.insert(-1, {**plain, "delta": {}, "token_ids": part})
        if "stop_reason" in choice:
            made[0]["stop_reason"] = None
            made[-1]["stop_reason"] = choice["stop_reason"]
        made[-1]["finish_reason"] = choice["finish_reason"]
        return made

    def stream(self, body: dict[str, Any]) -> bytes:
        head = {**body, "object": "chat.completion.chunk"}
        usage = head.pop("usage", None)
        tracks = [self.choice(choice) for choice in head.pop("choices")]
        chunks = []
        while any(tracks):
            chosen = self.dice.choice([track for track in tracks if track]).pop(0)
            chunks.append({**head, "choices": [chosen], "obfuscation": "x" * self.dice.randrange(9)})
        if usage is not None:
            for chunk in chunks:
                chunk["usage"] = None
            chunks.append({**head, "choices": [], "usage": usage})
        end = self.dice.choice(["\n", "\r\n", "\r"])
        out = []
        for chunk in chunks:
            spread = self.dice.random() < 0.2
            data = json.dumps(chunk, ensure_ascii=self.dice.random() < 0.5, indent=1 if spread else None)
            out += [f"data: {line}" for line in data.split("\n")] + [""]
            if self.dice.random() < 0.2:
                out += [": keepalive", ""]
        if self.dice.random() < 0.7:
            out += ["data: [DONE]", ""]
        return "".join(line + end for line in out).encode("utf-8")

    def cut(self, stream: bytes) -> list[bytes]:
        cuts = sorted(self.dice.randrange(len(stream) + 1) for _ in range(self.dice.randrange(30)))
        return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)])]


@given(completions(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_any_completion_comes_back_equal(body: dict[str, Any], dice: random.Random) -> None:
    """The reassembled JSON is the unstreamed JSON, and the SDK reads the same object from both."""
    made = plan("POST", "/v1/chat/completions", "application/json", b'{"n":%d}' % len(body["choices"]))
    assert made is not None
    renderer = Renderer(dice)
    assembling = made.assembler()
    for piece in renderer.cut(renderer.stream(body)):
        assembling.feed(piece)
    answer = assembling.finish()
    found = json.loads(answer.body)
    assert (answer.status, found) == (200, body)
    assert ChatCompletion.construct(**found) == ChatCompletion.construct(**body)
    if MODELS_KNOW_EVERY_FIELD:
        assert ChatCompletion.model_validate(found) == ChatCompletion.model_validate(body)


@given(completions(), st.randoms(use_true_random=False), st.floats(0, 0.999))
@settings(max_examples=40, deadline=None)
def test_no_completion_is_complete_before_its_end(body: dict[str, Any], dice: random.Random, part: float) -> None:
    """A stream cut off anywhere is never mistaken for an answer that lacks something."""
    body.pop("usage", None)
    stream = Renderer(dice).stream(body)
    made = plan("POST", "/v1/chat/completions", "application/json", b'{"n":%d}' % len(body["choices"]))
    assert made is not None
    assembling = made.assembler()
    assembling.feed(stream[: int(len(stream) * part)])
    try:
        answer = assembling.finish()
    except Truncated:
        return
    assert json.loads(answer.body) == body
