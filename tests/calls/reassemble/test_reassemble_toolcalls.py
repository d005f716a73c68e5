"""How particular servers stream tool calls, and the calls each shape stands for."""

from __future__ import annotations

import json

import pytest
from reassemble_streams import call, calls, message


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
    assert [c["id"] for c in calls([{"index": 1, **call("g", "", "b")}], [{"index": 0, **call("f", "", "a")}])] == [
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
        made["id"] for made in calls(*([{"index": i, **call("f", "{}", c)}] for i, c in ((0, "a"), (1, "b"), (0, "c"))))
    ] == ["a", "b", "c"]


def test_a_call_without_arguments_ends_where_another_id_begins() -> None:
    """Under a shared index, a call that never got arguments is still a call of its own."""
    assert calls([{"index": 0, **call("f", "", "c1")}], [{"index": 0, **call("f", "", "c2")}]) == [
        call("f", "", "c1"),
        call("f", "", "c2"),
    ]


def test_a_name_that_changes_under_an_index_is_noise() -> None:
    """The index says that it is the same call, and its first name stays."""
    assert calls([{"index": 0, **call("f", '{"a')}], [{"index": 0, **call("g", '":1}')}]) == [call("f", '{"a":1}')]


def test_an_id_that_changes_in_the_middle_of_the_arguments_is_noise() -> None:
    """A server that makes up an id for each fragment still sends one call."""
    assert calls(*([{"index": 0, **call("f", piece, f"c{i}")}] for i, piece in enumerate(('{"a', '":1}')))) == [
        call("f", '{"a":1}', "c0")
    ]


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


def test_an_id_that_changes_before_the_arguments_is_noise() -> None:
    """Poolside and others open a call under one id and go on under another; what names nothing opens nothing."""
    pieces = enumerate(('{"a', '":1}', ""))
    rest = [[{"index": 0, "id": f"x{i}", "function": {"arguments": each}}] for i, each in pieces]
    assert calls([{"index": 0, **call("f", "", "c1")}], *rest) == [call("f", '{"a":1}', "c1")]


def pieces(*arguments: str, **more: object) -> list[list[dict[str, object]]]:
    return [[{"index": 0, "function": {"arguments": each}, **more}] for each in arguments]


def test_an_index_that_counts_up_within_a_call_opens_none() -> None:
    """Nebius streams the last piece of the arguments under the next index, Cerebras each piece under another."""
    first = [{"index": 0, **call("f", "", "c1")}]
    counted = [[{"index": n, "function": {"arguments": each}}] for n, each in enumerate(('{"a"', ":1", "}"))]
    second = [{"index": 1, **call("g", "", "c2")}]
    rest = [{"index": 1, "function": {"arguments": "{}"}}]
    assert calls(first, *counted, second, rest) == [call("f", '{"a":1}', "c1"), call("g", "{}", "c2")]


@pytest.mark.parametrize(
    "fragments",
    [
        [*pieces('{"a":', "1}"), [{"index": 0, **call("f", '{"a":1}', "c1")}]],
        [*pieces('{"a":', "1}"), [{"index": 0, **call("f", '{"a": 1}', "c1")}]],
        pieces('{"a":1}', '{"a":1}'),
        pieces('{"a":', '{"a":1', '{"a":1}', '{"a":1}'),
    ],
    ids=["again at the end", "again, with other spaces", "twice", "all so far in each"],
)
def test_arguments_that_are_said_again_are_said_once(fragments: list[list[dict[str, object]]]) -> None:
    """Cerebras and gateways send all of them at the end, Qianfan all so far with each: no tool could read them."""
    (made,) = calls([{"index": 0, **call("f", "", "c1")}], *fragments)
    assert json.loads(made.pop("function")["arguments"]) == {"a": 1}


@pytest.mark.parametrize("arguments", [['{"a":', '{"a":1}', "}"], ["{", "{", '"a"'], ['{"a":1', "1"], ["1", "1"]])
def test_arguments_that_only_look_alike_stay_as_they_came(arguments: list[str]) -> None:
    """An object in an object, a broken one and one that was cut off are the model's own."""
    (made,) = calls([{"index": 0, **call("f", "", "c1")}], *pieces(*arguments))
    assert made["function"]["arguments"] == "".join(arguments)
