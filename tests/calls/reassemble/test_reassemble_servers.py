"""How particular servers stream a completion and its choices, and the answer each shape stands for."""

from __future__ import annotations

from typing import Any

import pytest
from reassemble_streams import body, call


def test_openais_stream_becomes_its_completion() -> None:
    """The usual stream, with usage in a chunk of its own and obfuscation, becomes the usual completion."""
    head = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 9,
        "model": "gpt",
        "service_tier": "default",
    }
    head["system_fingerprint"] = None

    def chunk(delta: Any, finish: Any = None) -> Any:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**head, "choices": [choice], "usage": None, "obfuscation": "Xy"}

    found = body(
        chunk({"role": "assistant", "content": "", "refusal": None}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        chunk({}, "stop"),
        {**head, "choices": [], "usage": {"total_tokens": 3}, "obfuscation": "z"},
    )
    assert found == {
        **head,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"total_tokens": 3},
    }


def test_choices_come_in_the_order_of_their_index() -> None:
    """Choices are sorted, whichever the server began with; each is told from the others by its index."""
    found = body(
        {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
        choices=2,
    )
    assert [(c["index"], c["message"]["content"]) for c in found["choices"]] == [(0, "a"), (1, "b")]


def test_choices_without_an_index_go_by_their_place() -> None:
    """A server that numbers nothing is read in the order it writes."""
    found = body({"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]}, {"choices": [{}]})
    assert [c["message"]["content"] for c in found["choices"]] == ["a", "b"]


def test_a_usage_in_every_chunk_is_cumulative() -> None:
    """vLLM's and SGLang's continuous usage counts up: the last one is the whole."""
    found = body(
        *({"choices": [{"delta": {}}], "usage": {"total_tokens": n}} for n in (1, 2, 3)),
        {"choices": [], "usage": None},
    )
    assert found["usage"] == {"total_tokens": 3}


def test_no_usage_is_made_up() -> None:
    """A server that reports no usage leaves none; one that says null leaves null."""
    assert "usage" not in body({"choices": [{"delta": {}}]})
    assert body({"choices": [{"delta": {}}], "usage": None})["usage"] is None


def test_a_usage_inside_the_choice_is_lifted() -> None:
    """Moonshot streams its usage inside the choice, and answers with it on top."""
    choice: dict[str, Any] = {"delta": {}, "finish_reason": None, "usage": None}
    found = body(
        {"choices": [choice]},
        {"choices": [{**choice, "finish_reason": "stop", "usage": {"total_tokens": 5}}]},
    )
    assert found["usage"] == {"total_tokens": 5}
    assert "usage" not in found["choices"][0]


def test_constants_on_top_keep_their_first_value() -> None:
    """Ollama stamps each chunk with its own time, others with an id: one answer has one of each."""
    found = body(
        {"id": "a", "created": 1, "model": "m", "provider": "p", "choices": []},
        {"id": "b", "created": 2, "model": "n", "provider": "p", "choices": []},
    )
    assert (found["id"], found["created"], found["model"], found["provider"]) == ("a", 1, "m", "p")


def test_reports_on_top_keep_their_last_value() -> None:
    """llama.cpp's timings and Perplexity's citations grow from chunk to chunk; x_groq comes in parts."""
    found = body(
        {"choices": [], "timings": {"n": 1}, "citations": ["a"], "x_groq": {"id": "r"}, "left": 2},
        {"choices": [], "timings": {"n": 2}, "citations": ["a", "b"], "x_groq": {"usage": {}}, "left": 1},
        {"choices": [], "timings": None, "citations": None},
    )
    assert found["timings"] == {"n": 2}
    assert found["citations"] == ["a", "b"]
    assert found["x_groq"] == {"id": "r", "usage": {}}
    assert found["left"] == 1


def test_azures_first_chunk_names_nothing() -> None:
    """Azure sends the prompt's filter results with empty id, model and time: the later ones count."""
    results = [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}]
    found = body(
        {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": results},
        {"choices": [{"index": 0, "delta": {"content": "x"}}], "created": 7, "id": "c", "model": "gpt"},
        {"choices": [], "created": 0, "id": "", "model": "", "object": ""},
    )
    assert (found["id"], found["created"], found["model"]) == ("c", 7, "gpt")
    assert found["prompt_filter_results"] == results


def test_azures_filter_results_are_as_bad_as_their_worst() -> None:
    """Each result is about one buffer of the text; what was filtered or severe once is so in the whole."""
    found = body(
        {"choices": [{"index": 0, "delta": {"content": "x"}, "content_filter_results": {}}]},
        {"choices": [{"index": 0, "content_filter_results": {"hate": {"filtered": True, "severity": "medium"}}}]},
        {
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "content_filter_offsets": {"check_offset": 4},
                    "content_filter_results": {
                        "hate": {"filtered": False, "severity": "safe"},
                        "violence": {"filtered": False, "severity": "low"},
                    },
                }
            ]
        },
    )
    assert found["choices"][0]["content_filter_results"] == {
        "hate": {"filtered": True, "severity": "medium"},
        "violence": {"filtered": False, "severity": "low"},
    }
    assert "content_filter_offsets" not in found["choices"][0]


def test_openais_moderation_chunk_is_kept() -> None:
    """Moderated completions carry their moderation in a chunk without choices."""
    moderation = {"input": {"type": "moderation_results", "results": []}}
    assert body({"choices": [], "moderation": moderation})["moderation"] == moderation


def test_fields_of_a_choice_take_the_last_value_and_lists_grow() -> None:
    """vLLM's stop_reason and token ids, OpenRouter's native finish reason."""
    found = body(
        {"choices": [{"index": 0, "delta": {}, "stop_reason": None, "token_ids": [1], "native_finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "stop_reason": None, "token_ids": [2, 3]}]},
        {"choices": [{"index": 0, "delta": {}, "stop_reason": "</s>", "native_finish_reason": "end_turn"}]},
        {"choices": [{"index": 0, "delta": {}, "stop_reason": "", "native_finish_reason": None}]},
    )
    choice = found["choices"][0]
    assert (choice["stop_reason"], choice["token_ids"]) == ("</s>", [1, 2, 3])
    assert choice["native_finish_reason"] == "end_turn"


def test_logprobs_are_strung_together() -> None:
    """The lists of all chunks are one list; null where no chunk had any."""
    found = body(
        {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": "a"}], "refusal": None}}]},
        {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": "b"}], "refusal": None}}]},
        {"choices": [{"index": 0, "delta": {}, "logprobs": None}]},
    )
    assert found["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}


def test_an_empty_finish_reason_is_none() -> None:
    """Some servers say "" until they are finished."""
    found = body(*({"choices": [{"index": 0, "delta": {}, "finish_reason": f}]} for f in ("", "stop", None)))
    assert found["choices"][0]["finish_reason"] == "stop"


def test_a_whole_message_in_place_of_deltas_is_taken() -> None:
    """A gateway that does not really stream sends one chunk with the message."""
    whole = {"role": "assistant", "content": "x", "tool_calls": [call("f", "{}", "c1")]}
    choice = {"index": 0, "message": whole, "finish_reason": "stop"}
    assert body({"id": "c", "choices": [choice]})["choices"] == [choice]


@pytest.mark.parametrize("finish", [{}, {"delta": {}}, {"delta": None}])
def test_a_whole_message_after_its_deltas_is_said_once(finish: Any) -> None:
    """Gateways close with the whole message, or send all of it so far each time (HybridAI): it is no piece."""
    calls = [call("f", "{}", "c1")]
    whole = {"role": "assistant", "content": "Hello", "tool_calls": calls, "reasoning": "so"}
    deltas: list[Any] = [
        {"delta": {"content": "Hel", "tool_calls": [{"index": 0, **calls[0]}]}},
        {"message": {"content": "Hell"}},
        {"delta": {"content": "o"}},
        {"delta": {"reasoning": "so"}},
        {"message": whole, "finish_reason": "stop", **finish},
    ]
    (choice,) = body(*({"choices": [{"index": 0, **each}]} for each in deltas))["choices"]
    assert choice == {"index": 0, "message": whole, "finish_reason": "stop"}


@pytest.mark.parametrize("whole", ["Hello", "Hel", "", None])
def test_a_message_after_its_deltas_that_has_it_otherwise_is_no_piece(whole: Any) -> None:
    """A gateway strips the white space from the message that it closes with: the text is not said twice."""
    function = {"name": "f", "arguments": "{}"}
    last = {"role": "assistant", "content": whole, "function_call": dict(function)}
    deltas: list[Any] = [
        *({"delta": {"content": each}} for each in (" Hel", "lo", "\n")),
        {"delta": {"function_call": dict(function)}},
        {"delta": {}, "message": last, "finish_reason": "stop"},
    ]
    (choice,) = body(*({"choices": [{"index": 0, **each}]} for each in deltas))["choices"]
    assert choice["message"] == {"role": "assistant", "content": " Hello\n", "function_call": function}


def test_messages_in_place_of_deltas_are_added_up() -> None:
    """One that does not begin with what came before is a piece."""
    pieces = [{"choices": [{"index": 0, "message": {"content": each}}]} for each in ("Hel", "lo", "")]
    assert body(*pieces)["choices"][0]["message"]["content"] == "Hello"
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    assert body(opening, *pieces)["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        (["tool_calls", "stop"], "tool_calls"),
        (["length", "stop"], "length"),
        (["stop", "tool_calls"], "tool_calls"),
        (["stop", "stop"], "stop"),
        (["", "stop", None], "stop"),
    ],
)
def test_a_stop_takes_no_other_reason_back(reasons: list[Any], said: str) -> None:
    """Dynamo, SGLang and gateways end each stream with a "stop", and say "tool_calls" alone when not streamed."""
    chunks = [{"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]} for reason in reasons]
    assert body(*chunks)["choices"][0]["finish_reason"] == said
