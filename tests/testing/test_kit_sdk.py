"""The official SDKs take what the server says for the real thing."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest

from deadstop.testing import Audio, Extra, FakeOpenAI, Reply, ToolCall, render_chat, render_responses

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic", minversion="2")

REPLIES = [
    Reply(text="Hello you", logprobs=True, service_tier="default"),
    Reply(text="a", tool_calls=(ToolCall("f", '{"a": 1}'), ToolCall("g"))),
    Reply(refusal="I will not do that."),
    Reply(audio=Audio("AAAA" * 9, "hi there")),
    Reply(text="b", reasoning_content="Hm, so.", extra=Extra({"x": 1}, {"stop_reason": None}, {"y": [2]})),
]
BODIES: list[dict[str, Any]] = [{}, {"max_tokens": 1}, {"n": 2, "stream_options": {"include_usage": True}}]


def client_of(server: FakeOpenAI) -> Any:
    """The SDK's client."""
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


@functools.cache  # building one costs a quarter of a second, and there is one for each event
def adapter(name: str, module: str) -> Any:
    """The SDK's own model for what is on the wire; skips where this SDK has none."""
    kinds = pytest.importorskip(f"openai.types.{module}")
    return pydantic.TypeAdapter(getattr(kinds, name))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("reply", REPLIES)
def test_chat_answers_are_valid(reply: Reply, body: dict[str, Any]) -> None:
    """Completions and chunks validate against the SDK's models."""
    if int(openai.__version__.split(".")[0]) < 2:
        pytest.skip("the models of this SDK are older than what is rendered")
    adapter("ChatCompletion", "chat").validate_python(render_chat.completion(reply, body))
    for event in render_chat.chunks(reply, body):
        adapter("ChatCompletionChunk", "chat").validate_python(event.data)


@pytest.mark.parametrize("body", [{}, {"max_output_tokens": 1}])
@pytest.mark.parametrize("reply", REPLIES)
def test_response_answers_are_valid(reply: Reply, body: dict[str, Any]) -> None:
    """Responses and their events validate against the SDK's models."""
    adapter("Response", "responses").validate_python(render_responses.response(reply, body))
    for event in render_responses.events(reply, body):
        adapter("ResponseStreamEvent", "responses").validate_python(event.data)


def test_the_sdk_reads_chat_completions() -> None:
    """Whole and streamed, the SDK gives the same text; usage and the request id are there."""
    with FakeOpenAI(rate=0, tokens=4) as server, client_of(server) as client:
        ask: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        whole = client.chat.completions.create(**ask)
        stream = client.chat.completions.create(**ask, stream=True)
        with contextlib.closing(stream.response):
            parts = [chunk.choices[0].delta.content or "" for chunk in stream]
        raw = client.chat.completions.with_raw_response.create(**ask)
    assert whole.choices[0].message.content == "".join(parts) == "t0 t1 t2 t3 "
    assert whole.usage.completion_tokens == 4
    assert raw.headers["x-request-id"] == "req_fake3"


def test_the_sdk_reads_the_other_endpoints() -> None:
    """Responses, embeddings, models and legacy completions come as the SDK's objects."""
    with FakeOpenAI(rate=0, tokens=2) as server, client_of(server) as client:
        if hasattr(client, "responses"):
            assert client.responses.create(model="m", input="hi").output_text == "t0 t1 "
            with client.responses.create(model="m", input="hi", stream=True) as stream:
                assert [event.type for event in stream][-1] == "response.completed"
        assert client.embeddings.create(model="m", input=["a", "bb"]).data[1].embedding == [2.0, 1.0, 0.5]
        assert [model.id for model in client.models.list()] == ["fake-model"]
        assert client.completions.create(model="m", prompt="a").choices[0].text == "t0 t1 "
        with pytest.raises(openai.NotFoundError):
            client.files.list()


def test_the_azure_client_is_served() -> None:
    """An Azure client's paths are understood."""
    with FakeOpenAI(rate=0, tokens=1) as server:
        with openai.AzureOpenAI(azure_endpoint=server.origin, api_key="none", api_version="1") as client:
            answer = client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "t0 "
        assert server.requests[0].path == "/openai/deployments/gpt/chat/completions"


def test_the_anthropic_client_is_served() -> None:
    """Messages, whole and streamed, come as the Anthropic SDK's objects."""
    anthropic = pytest.importorskip("anthropic")
    ask: dict[str, Any] = {"model": "c", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    with FakeOpenAI(rate=0, reply=Reply(text="yes", tool_calls=(ToolCall("f", '{"a": 1}'),))) as server:
        with anthropic.Anthropic(base_url=server.origin, api_key="none", max_retries=0) as client:
            whole = client.messages.create(**ask)
            with client.messages.stream(**ask) as stream:
                streamed = stream.get_final_message()
    assert [block.type for block in whole.content] == ["text", "tool_use"]
    assert whole.content[1].input == streamed.content[1].input == {"a": 1}
    assert whole.content[0].text == streamed.content[0].text == "yes"
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    pydantic.TypeAdapter(anthropic.types.Message).validate_python(whole.model_dump())
