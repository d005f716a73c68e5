"""The name of a called function: said once, again and again, or in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reassemble_streams import DONE, assembler, call, data

TOOL: Any = {"tools": [{"type": "function", "function": {"name": "get_weather"}}]}
PIECES = [("get_", ""), ("wea", ""), ("ther", '{"a"'), (None, ":1}")]
REPEATED = [("get_weather", ""), ("get_weather", ""), ("get_weather", '{"a"'), ("get_weather", ":1}")]
SO_FAR = [("get_", ""), ("get_weather", ""), ("get_weather", '{"a":1}')]
WHOLE = [("get_weather", '{"a"'), ("", ":1}")]


def made(fragments: list[list[Any]], **request: Any) -> Any:
    assembling = assembler(**request)
    for fragment in fragments:
        assembling.feed(data({"choices": [{"index": 0, "delta": {"tool_calls": fragment}}]}))
    assembling.feed(DONE)
    return json.loads(assembling.finish().body)["choices"][0]["message"]["tool_calls"]


@pytest.mark.parametrize("request_", [TOOL, {}], ids=["offered", "not offered"])
@pytest.mark.parametrize("said", [PIECES, REPEATED, SO_FAR, WHOLE], ids=["pieces", "repeated", "so far", "once"])
def test_a_name_is_whole_however_it_is_said(said: Any, request_: Any) -> None:
    """Gemini behind gateways says it in pieces, MiniMax on NIM with each fragment: the SDK is right for one only."""
    parts = [[{"index": 0, **call(name, text, "c1" if i == 0 else None)}] for i, (name, text) in enumerate(said)]
    assert made(parts, **request_) == [call("get_weather", '{"a":1}', "c1")]


@pytest.mark.parametrize("request_", [TOOL, {}], ids=["offered", "not offered"])
@pytest.mark.parametrize("said", [PIECES, REPEATED, SO_FAR, WHOLE], ids=["pieces", "repeated", "so far", "once"])
def test_a_legacy_call_s_name_is_whole_too(said: Any, request_: Any) -> None:
    """The call before tools is told in the same ways."""
    offered = {"functions": [{"name": "get_weather"}]} if request_ else {}
    assembling = assembler(**offered)
    for name, text in said:
        delta = {"function_call": {"name": name, "arguments": text}}
        assembling.feed(data({"choices": [{"index": 0, "delta": delta}]}))
    assembling.feed(DONE)
    message = json.loads(assembling.finish().body)["choices"][0]["message"]
    assert message["function_call"] == {"name": "get_weather", "arguments": '{"a":1}'}


@pytest.mark.parametrize(
    ("tools", "names", "name"),
    [
        (["get", "get_all_x"], ["get", "_all", "_x"], "get_all_x"),  # a tool on the way to another
        (["get", "get_all"], ["get", "get"], "get"),
        (["aa"], ["a", "a"], "aa"),  # two pieces that are alike
        (["f", "g"], ["f", "g"], "f"),  # the index says that it is one call
        (["search"], ["open_", "page"], "open_page"),  # a tool of the server's own
        (["search"], ["open_page", "open_page"], "open_page"),
    ],
)
def test_the_tools_of_the_request_tell_a_piece_from_a_repetition(tools: Any, names: Any, name: str) -> None:
    """What the fragments alone leave open, the offered names settle."""
    offered = {"tools": [{"type": "function", "function": {"name": each}} for each in tools]}
    parts = [[{"index": 0, **call(each, "", "c1")}] for each in names]
    assert made(parts, **offered) == [call(name, "", "c1")]


def test_the_rest_of_a_name_opens_no_call() -> None:
    """Without an index, and under another id each, a piece is told from a second call by the tools."""
    plain = [[call("get_", "")], [call("weather", "")], [{"function": {"arguments": "{}"}}]]
    assert made(plain, **TOOL) == [call("get_weather", "{}")]
    with_ids = [[{"index": 0, **call(each, "", f"c{each}")}] for each in ("get_", "weather")]
    assert made(with_ids, **TOOL) == [call("get_weather", "", "cget_")]
    both = {"tools": [{"type": "function", "function": {"name": each}} for each in ("get", "get_all")]}
    assert made([[call("get", "")], [call("get_all", "")]], **both) == [call("get", ""), call("get_all", "")]


def test_offers_that_make_no_sense_offer_nothing() -> None:
    """What the tools of the request look like is the server's business."""
    for tools in ("x", [None, 3, {"function": "f"}, {"function": {"name": 3}}, {"type": "web_search"}]):
        assert made([[call("f", "", "c1")]], tools=tools, functions=tools) == [call("f", "", "c1")]


def test_a_custom_tool_s_name_is_whole_too() -> None:
    """Custom tools have a name as functions have."""
    offered = {"tools": [{"type": "custom", "custom": {"name": "run_sql"}}]}
    first = {"index": 0, "id": "c1", "type": "custom", "custom": {"name": "run_", "input": ""}}
    parts = [[first], [{"index": 0, "custom": {"name": "sql", "input": "SELECT"}}]]
    assert made(parts, **offered)[0]["custom"] == {"name": "run_sql", "input": "SELECT"}
