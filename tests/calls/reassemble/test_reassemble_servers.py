"""How particular servers stream chat completions, each shape with the answer it stands for."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadstop.calls.reassemble import Assembled, Assembler, Truncated, plan

DONE = b"data: [DONE]\n\n"


def assembler(choices: int = 1) -> Assembler:
    made = plan("POST", "/v1/chat/completions", "application/json", b'{"n":%d}' % choices)
    assert made is not None
    return made.assembler()


def data(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def ended(*events: bytes, choices: int = 1) -> Assembled:
    assembling = assembler(choices)
    for event in events:
        assembling.feed(event)
    return assembling.finish()


def body(*chunks: Any, choices: int = 1) -> dict[str, Any]:
    answer = ended(*map(data, chunks), DONE, choices=choices)
    assert answer.status == 200
    found = json.loads(answer.body)
    assert isinstance(found, dict)
    return found


def message(*deltas: Any) -> dict[str, Any]:
    found = body(*({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas))
    made = found["choices"][0]["message"]
    assert isinstance(made, dict)
    return made


def calls(*deltas: list[dict[str, Any]]) -> list[Any]:
    made = message(*({"tool_calls": delta} for delta in deltas))["tool_calls"]
    assert isinstance(made, list)
    return made


def call(name: str, arguments: str, call_id: Any = None) -> dict[str, Any]:
    function = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return function if call_id is None else {"id": call_id, **function}


# The whole


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
    choice = {"delta": {}, "finish_reason": None, "usage": None}
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
    results = [
        {"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
    ]
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
        {
            "choices": [
                {"index": 0, "content_filter_results": {"hate": {"filtered": True, "severity": "medium"}}}
            ]
        },
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
        {
            "choices": [
                {"index": 0, "delta": {}, "stop_reason": None, "token_ids": [1], "native_finish_reason": None}
            ]
        },
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


# The message


def test_content_is_null_beside_tool_calls_though_the_stream_opened_with_an_empty_one() -> None:
    """vLLM and SGLang open with "", and answer null when not streamed; so does OpenAI for a refusal."""
    assert (
        message({"role": "assistant", "content": ""}, {"tool_calls": [call("f", "{}", "1")]})["content"]
        is None
    )
    assert message({"content": ""}, {"refusal": "no"})["content"] is None
    assert message({"content": ""}, {"function_call": {"name": "f"}})["content"] is None


def test_empty_content_on_its_own_stays_empty_and_null_stays_null() -> None:
    """An answer without a word is "", and one that had no content at all is null."""
    assert message({"content": ""}, {"tool_calls": []})["content"] == ""
    assert message({"content": None}, {"reasoning_content": "r"})["content"] is None
    assert message({"role": "assistant"}) == {"role": "assistant", "content": None}


def test_a_message_always_has_a_role_and_a_content() -> None:
    """Servers that never say the role mean the assistant."""
    assert message({"content": "x"}) == {"role": "assistant", "content": "x"}
    assert message({"role": None, "content": "x"})["role"] == "assistant"


def test_null_never_replaces_a_value() -> None:
    """SGLang and LiteLLM name every field in every delta, most of them null."""
    made = message(
        {"role": "assistant", "content": "a", "reasoning_content": None, "tool_calls": None, "audio": None},
        {"role": None, "content": None, "reasoning_content": "r", "tool_calls": None, "audio": None},
    )
    assert made == {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "r",
        "tool_calls": None,
        "audio": None,
    }


@pytest.mark.parametrize("field", ["content", "refusal", "reasoning_content", "reasoning", "anything"])
def test_texts_are_strung_together(field: str) -> None:
    """Known or not, a text that comes in pieces is one text."""
    made = message({"role": "assistant"}, {field: "ha"}, {field: "ha"}, {field: "!"})
    assert made[field] == "haha!"


@pytest.mark.parametrize(
    "field", ["role", "type", "provider", "model", "name", "phase", "item_id", "kind_type"]
)
def test_names_and_kinds_do_not_grow(field: str) -> None:
    """A field whose name says that it is a constant is set once, however often it is said."""
    made = message(
        {field: "", "content": "a"}, {field: "x", "content": "b"}, {field: "x", "content": "c"}, {}
    )
    assert made[field] == "x"


def test_an_unknown_text_that_every_delta_repeats_is_a_constant() -> None:
    """A server's own label in each delta is not strung together; one that known fields repeat is."""
    made = message(*({"region": "eu", "content": "a"} for _ in range(3)), {})
    assert (made["region"], made["content"]) == ("eu", "aaa")


def test_an_unknown_text_that_some_deltas_repeat_grows() -> None:
    """Equal pieces are still pieces, unless no delta goes without one."""
    assert message({"role": "assistant"}, {"region": "ha"}, {"region": "ha"})["region"] == "haha"


def test_surrogates_that_were_cut_apart_meet_again() -> None:
    """A character beyond the first plane, sent as two escapes in two deltas, is one character."""
    halves = (rb"\ud83d", rb"\ude00")
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"' + half + b'"}}]}\n\n' for half in halves]
    assert json.loads(ended(*events, DONE).body)["choices"][0]["message"]["content"] == "\U0001f600"


def test_big_integers_are_exact() -> None:
    """No number passes through a float that was none."""
    assert (
        body({"choices": [{"index": 0, "delta": {"n": 2**70 + 1}}]})["choices"][0]["message"]["n"]
        == 2**70 + 1
    )


def test_numbers_replace_and_objects_merge() -> None:
    """The last number or boolean counts; objects merge field by field."""
    made = message(
        {"n": 1, "on": False, "o": {"a": 1, "t": "x"}}, {"n": 2, "on": True, "o": {"b": 2, "t": "y"}}
    )
    assert (made["n"], made["on"], made["o"]) == (2, True, {"a": 1, "t": "xy", "b": 2})


def test_annotations_are_extended() -> None:
    """Each citation is an entry of its own."""
    cited = [{"type": "url_citation", "url_citation": {"url": url}} for url in ("a", "a", "b")]
    assert message({"annotations": cited[:1]}, {"annotations": cited[1:]})["annotations"] == cited


def test_openrouters_reasoning_details_are_merged_by_index_and_type() -> None:
    """Pieces of one block share its index, its signature comes alone, an encrypted block may share it."""
    text = {"type": "reasoning.text", "format": "v1", "index": 0}
    made = message(
        {"reasoning_details": [{**text, "text": "Let"}]},
        {"reasoning_details": [{**text, "text": " me"}]},
        {"reasoning_details": [{"index": 0, "signature": "sig"}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "abc", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "s", "index": 1}]},
    )
    assert made["reasoning_details"] == [
        {**text, "text": "Let me", "signature": "sig"},
        {"type": "reasoning.encrypted", "data": "abc", "index": 0},
        {"type": "reasoning.summary", "summary": "s", "index": 1},
    ]


def test_litellms_thinking_blocks_end_with_their_signature() -> None:
    """Blocks without an index go on until they are signed."""
    pieces: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "a", "signature": None},
        {"type": "thinking", "thinking": "b", "signature": None},
        {"type": "thinking", "thinking": "", "signature": "s"},
        {"type": "thinking", "thinking": "c", "signature": None},
    ]
    assert message(*({"thinking_blocks": [piece]} for piece in pieces))["thinking_blocks"] == [
        {"type": "thinking", "thinking": "ab", "signature": "s"},
        {"type": "thinking", "thinking": "c", "signature": None},
    ]


def test_mistrals_content_is_a_list_and_then_a_text() -> None:
    """Magistral streams thinking blocks and then plain strings; the answer is one list of two blocks."""
    made = message(
        {"role": "assistant", "content": ""},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Let"}]}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": " me"}]}]},
        {"content": "Hel"},
        {"content": "lo"},
    )
    assert made["content"] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Let me"}]},
        {"type": "text", "text": "Hello"},
    ]


def test_a_text_before_the_list_becomes_a_block_of_it() -> None:
    """Nothing of a content that began as a text is lost when it goes on as a list."""
    made = message(
        {"content": "a"}, {"content": [{"type": "thinking", "thinking": "b"}, {"type": "text", "text": "c"}]}
    )
    assert made["content"] == [
        {"type": "text", "text": "a"},
        {"type": "thinking", "thinking": "b"},
        {"type": "text", "text": "c"},
    ]


def test_audio_pieces_make_one_audio() -> None:
    """Data joins as bytes though each piece is padded; the transcript joins as text; the expiry is last."""
    parts = [b"a", b"bcde", b"fgh", b"AAA", b"AAA"]
    made = message(
        {"audio": {"id": "audio_1", "transcript": "He"}},
        *({"audio": {"data": base64.b64encode(part).decode()}} for part in parts),
        {"audio": {"transcript": "y"}},
        {"audio": {"expires_at": 17}},
    )
    whole = base64.b64encode(b"".join(parts)).decode()
    assert made["audio"] == {"id": "audio_1", "transcript": "Hey", "data": whole, "expires_at": 17}


def test_audio_that_is_no_base64_is_left_as_it_came() -> None:
    """What can't be joined as bytes is joined as text, and lost nowhere."""
    assert message({"audio": {"data": "?="}}, {"audio": {"data": "x"}})["audio"]["data"] == "?=x"


# Tool calls


def test_openais_fragments_make_calls() -> None:
    """The first fragment of an index names the call, the rest bring arguments; the index itself goes."""
    assert calls(
        [{"index": 0, **call("f", "", "c1")}],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [{"index": 1, **call("g", "", "c2")}],
        [{"index": 0, "function": {"arguments": ":1}"}}, {"index": 1, "function": {"arguments": "{}"}}],
    ) == [call("f", '{"a":1}', "c1"), call("g", "{}", "c2")]


def test_calls_are_in_the_order_of_their_index() -> None:
    """The index, not the arrival, orders the calls."""
    assert [
        c["id"] for c in calls([{"index": 1, **call("g", "", "b")}], [{"index": 0, **call("f", "", "a")}])
    ] == [
        "a",
        "b",
    ]


def test_names_and_ids_that_each_fragment_repeats_are_said_once() -> None:
    """SGLang and others repeat the id and the name with each piece of the arguments."""
    assert calls(*([{"index": 0, **call("f", piece, "c1")}] for piece in ("", '{"a', '":1}'))) == [
        call("f", '{"a":1}', "c1")
    ]
    assert calls(*([call("f", piece)] for piece in ('{"a', '":1}'))) == [call("f", '{"a":1}')]


def test_empty_names_and_ids_of_later_fragments_are_ignored() -> None:
    """vLLM sends an empty id, others an empty name or type, with each later fragment."""
    assert calls(
        [{"index": 0, **call("f", "", "c1")}],
        [{"index": 0, "id": "", "type": "", "function": {"name": "", "arguments": "{}"}}],
        [{"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": None}}],
    ) == [call("f", "{}", "c1")]


def test_whole_calls_without_an_index_are_calls_of_their_own() -> None:
    """Ollama and Gemini send each call whole; some leave out the index, some the id too."""
    whole = [call("f", '{"a":1}', "c1"), call("f", '{"a":2}', "c2"), call("g", "{}", "c3")]
    assert calls(*([one] for one in whole)) == whole
    assert calls(whole) == whole
    nameless = [call("f", '{"a":1}'), call("f", '{"a":2}'), call("g", "{}")]
    assert calls(*([one] for one in nameless)) == nameless
    assert calls(nameless) == nameless


def test_fragments_without_an_index_go_on_with_the_last_call() -> None:
    """An id, or a name, opens a call; what has neither goes on with it."""
    assert calls(
        [call("f", "", "c1")],
        [{"function": {"arguments": '{"a"'}}],
        [{"id": "", "type": "", "function": {"arguments": ":1}"}}],
        [call("g", "", "c2")],
        [{"function": {"arguments": "{}"}}],
    ) == [call("f", '{"a":1}', "c1"), call("g", "{}", "c2")]


def test_fragments_without_an_index_find_their_call_by_its_id() -> None:
    """Calls that are streamed side by side are told apart by the id of each fragment."""
    assert calls(
        [call("f", "", "c1")],
        [call("g", "", "c2")],
        [{"id": "c1", "function": {"arguments": "1"}}],
        [{"id": "c2", "function": {"arguments": "2"}}],
    ) == [call("f", "1", "c1"), call("g", "2", "c2")]


def test_another_name_opens_another_call() -> None:
    """Without index and id, a name that is not the last call's begins a call, whole or not."""
    assert calls(
        [call("f", "")],
        [{"function": {"arguments": "{}"}}],
        [call("g", "")],
        [{"function": {"arguments": '{"a":1}'}}],
    ) == [call("f", "{}"), call("g", '{"a":1}')]


def test_a_repeated_name_without_arguments_changes_nothing() -> None:
    """A last fragment that repeats the name after the arguments is no call of its own."""
    last = {"index": 0, "function": {"name": "f", "arguments": ""}}
    assert calls([{"index": 0, **call("f", "{}")}], [last]) == [call("f", "{}")]


def test_several_fragments_without_an_index_go_by_their_place() -> None:
    """A delta with a piece for each call lists them in order."""
    assert calls(
        [call("f", "", "c1"), call("g", "", "c2")],
        [{"function": {"arguments": "1"}}, {"function": {"arguments": "2"}}],
    ) == [call("f", "1", "c1"), call("g", "2", "c2")]


def test_calls_that_share_an_index_are_told_apart_by_their_id() -> None:
    """lmdeploy and some Gemini endpoints number each of several calls 0."""
    assert calls(
        [{"index": 0, **call("f", "", "c1")}],
        [{"index": 0, "id": "", "function": {"arguments": '{"a":1}'}}],
        [{"index": 0, **call("f", "", "c2")}],
        [{"index": 0, "id": "", "function": {"arguments": '{"a":2}'}}],
    ) == [call("f", '{"a":1}', "c1"), call("f", '{"a":2}', "c2")]
    assert [
        made["id"]
        for made in calls(*([{"index": i, **call("f", "{}", c)}] for i, c in ((0, "a"), (1, "b"), (0, "c"))))
    ] == ["a", "b", "c"]


def test_an_id_that_changes_in_the_middle_of_the_arguments_is_noise() -> None:
    """A server that makes up an id for each fragment still sends one call."""
    assert calls(
        *([{"index": 0, **call("f", piece, f"c{i}")}] for i, piece in enumerate(('{"a', '":1}')))
    ) == [call("f", '{"a":1}', "c0")]


def test_what_a_call_always_has_is_filled_in() -> None:
    """The type, and empty arguments, are there though the server never streamed them."""
    assert calls([{"index": 0, "id": "c1", "function": {"name": "f"}}]) == [call("f", "", "c1")]
    assert calls([{"index": 0, "id": "c1", "custom": {"name": "f"}}]) == [
        {"id": "c1", "custom": {"name": "f", "input": ""}, "type": "custom"}
    ]


def test_custom_tool_calls_collect_their_input() -> None:
    """The input of a custom tool is a text like arguments are."""
    first = {"index": 0, "id": "c1", "type": "custom", "custom": {"name": "f", "input": "SEL"}}
    assert calls([first], [{"index": 0, "custom": {"input": "ECT"}}]) == [
        {"id": "c1", "type": "custom", "custom": {"name": "f", "input": "SELECT"}}
    ]


def test_a_legacy_function_call_collects_its_arguments() -> None:
    """The call before tools: one name, arguments in pieces."""
    made = message({"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": "{}"}})
    assert made["function_call"] == {"name": "f", "arguments": "{}"}


def test_unknown_fields_of_a_call_are_kept() -> None:
    """Gemini's thought signature must come back with the call, or its next turn is refused."""
    extra = {"extra_content": {"google": {"thought_signature": "sig"}}}
    assert calls([{"index": 0, **call("f", "{}", "c1"), **extra}]) == [{**call("f", "{}", "c1"), **extra}]


# Errors and ends


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
    ],
)
def test_an_error_in_mid_stream_is_the_answer(event: bytes, status: int, error: Any) -> None:
    """Wrapped, flat, named or bare: the caller gets the error, with its own status or 500."""
    assembling = assembler()
    assert not assembling.feed(data({"choices": [{"index": 0, "delta": {"content": "x"}}]}))
    assert assembling.feed(event)
    answer = assembling.finish()
    assert answer.status == status
    assert json.loads(answer.body) == {"error": error}


def test_a_null_error_is_none() -> None:
    """A server that names the error in every chunk has none until it says which."""
    assert (
        body({"error": None, "choices": [{"delta": {"content": "x"}}]})["choices"][0]["message"]["content"]
        == "x"
    )


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
    events = [
        data({"choices": [{"index": i, "delta": {"content": "x"}, "finish_reason": "stop"}]}) for i in (0, 1)
    ]
    assert len(json.loads(ended(*events, choices=2).body)["choices"]) == 2
    with pytest.raises(Truncated, match=r"1 of 2 choices finished"):
        ended(events[0], choices=2)


def test_a_last_chunk_without_its_blank_line_counts() -> None:
    """The end of the stream ends the last event."""
    last = data({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]})
    assert ended(last.rstrip()).status == 200
    assert ended(last, b"data: [DONE]").status == 200


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


NAMES = ("arguments", "choices", "content", "custom", "delta", "error", "function", "id", "index", "logprobs")
NAMES += ("message", "name", "signature", "text", "tool_calls", "type", "usage", "x")
leaf = st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | st.text(max_size=3)
chaos = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
delta = st.dictionaries(st.sampled_from(NAMES), chaos, max_size=4)
chunk = st.fixed_dictionaries(
    {"choices": chaos | st.lists(st.fixed_dictionaries({"delta": delta}), max_size=2)}
)


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
