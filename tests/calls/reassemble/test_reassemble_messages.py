"""How particular servers stream a message, field by field, and the message each shape stands for."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from reassemble_streams import DONE, body, call, ended, message


def test_content_is_null_beside_tool_calls_though_the_stream_opened_with_an_empty_one() -> None:
    """vLLM and SGLang open with "", and answer null when not streamed; so does OpenAI for a refusal."""
    assert message({"role": "assistant", "content": ""}, {"tool_calls": [call("f", "{}", "1")]})["content"] is None
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


@pytest.mark.parametrize("field", ["role", "type", "provider", "model", "name", "phase", "item_id", "kind_type"])
def test_names_and_kinds_do_not_grow(field: str) -> None:
    """A field whose name says that it is a constant is set once, however often it is said."""
    made = message({field: "", "content": "a"}, {field: "x", "content": "b"}, {field: "x", "content": "c"}, {})
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
    assert body({"choices": [{"index": 0, "delta": {"n": 2**70 + 1}}]})["choices"][0]["message"]["n"] == 2**70 + 1


def test_numbers_replace_and_objects_merge() -> None:
    """The last number or boolean counts; objects merge field by field."""
    made = message({"n": 1, "on": False, "o": {"a": 1, "t": "x"}}, {"n": 2, "on": True, "o": {"b": 2, "t": "y"}})
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


def detail(kind: str, text: str, **more: Any) -> dict[str, Any]:
    return {"type": f"reasoning.{kind}", {"encrypted": "data"}.get(kind, kind): text, "index": 0, **more}


@pytest.mark.parametrize(
    ("pieces", "blocks"),
    [
        (
            [detail("summary", "a"), detail("summary", "b"), detail("encrypted", "E"), detail("summary", "c")],
            [detail("summary", "ab"), detail("encrypted", "E"), detail("summary", "c")],
        ),
        ([detail("encrypted", "E", id="1"), detail("encrypted", "F", id="2")], None),
        (
            [detail("text", "a"), detail("text", "", signature="s"), detail("text", "b"), detail("text", "c")],
            [detail("text", "a", signature="s"), detail("text", "bc")],
        ),
        (
            [detail("text", "a", signature="s"), detail("text", "b", signature="s")],
            [detail("text", "ab", signature="s")],
        ),
    ],
    ids=["another type between", "another id", "after the signature", "one signature"],
)
def test_blocks_that_are_all_numbered_alike_are_told_apart(pieces: Any, blocks: Any) -> None:
    """OpenRouter was seen to number each of them 0: put into one, their data and signatures are of no use."""
    made = message(*({"reasoning_details": [dict(each)]} for each in pieces))
    assert made["reasoning_details"] == (blocks or pieces)


def test_images_that_are_all_numbered_alike_are_told_apart() -> None:
    """None is lost for the one before it."""
    images = [{"type": "image_url", "image_url": {"url": f"data:{n}"}, "index": 0} for n in range(2)]
    made = message(*({"images": [json.loads(json.dumps(each))]} for each in images))
    assert made["images"] == images


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


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_pieces_that_are_all_of_the_text_so_far_are_said_once(field: str) -> None:
    """DashScope's coding plan streams so, and may say the last one again."""
    texts = ["", "The", "The qu", "The quick", "", "The quick fox", "The quick fox"]
    assert message(*({field: each} for each in texts))[field] == "The quick fox"


@pytest.mark.parametrize(
    "pieces", [["a", "ab"], ["=", "==", "===", "===="], ["ha", "ha", "ha"], ["a", "ab", "abc", "abcd", "e"]]
)
def test_pieces_that_happen_to_begin_alike_are_added_up(pieces: list[str]) -> None:
    """A few, a rule or a repetition prove nothing, and one that goes on otherwise proves the contrary."""
    assert message(*({"content": each} for each in pieces))["content"] == "".join(pieces)
