"""A streamed response back to the response object."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadstop.calls.reassemble import Assembled, Assembler, Truncated, plan

HEAD = b'{"id":"resp_1","object":"response","big":123456789012345678901234567890,"pi":3.14000000000000000001'


def assembler() -> Assembler:
    made = plan("POST", "/v1/responses", "application/json", b'{"model":"m"}')
    assert made is not None
    return made.assembler()


def event(kind: str, fields: bytes = b"", named: bool = True) -> bytes:
    name = f"event: {kind}\n".encode() if named else b""
    return name + b'data: {"type":"' + kind.encode() + b'","sequence_number":1' + fields + b"}\n\n"


def ended(*events: bytes) -> Assembled:
    assembling = assembler()
    for piece in events:
        assembling.feed(piece)
    return assembling.finish()


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
@pytest.mark.parametrize("named", [True, False])
def test_the_response_of_the_terminal_event_is_the_body_to_the_byte(kind: str, named: bool) -> None:
    """Unknown fields, big integers and long decimals come through as they were written."""
    response = HEAD + b', "output" : [ {"type":"message","text":"\\u00e9 \xc3\xa9 \\ud83d"} ] ,"x":{"a":1,"a":2}}'
    stream = (
        event("response.created", b',"response":{"status":"in_progress","error":null}', named)
        + event("response.output_text.delta", b',"delta":"\\"response.completed\\" \\"error\\""', named)
        + event(kind, b',"response":' + response, named)
    )
    assembling = assembler()
    done = [assembling.feed(stream[i : i + 1]) for i in range(len(stream))]
    assert done.index(True) == len(stream) - 1
    assert assembling.finish() == Assembled(200, response)


def test_no_done_mark_is_needed_and_what_follows_is_ignored() -> None:
    """The terminal event completes the answer, with or without a [DONE] after it."""
    assembling = assembler()
    assert assembling.feed(event("response.completed", b',"response":{"id":"r"}') + b"data: [DONE]\n\n")
    assert assembling.feed(event("error", b',"message":"late"'))
    assert assembling.finish().body == b'{"id":"r"}'


def test_a_terminal_event_that_the_stream_ends_on_counts() -> None:
    """The last event needs no blank line after it when the stream ends there."""
    assert ended(event("response.completed", b',"response":{"id":"r"}').rstrip()).body == b'{"id":"r"}'


def test_a_stream_without_its_terminal_event_is_truncated() -> None:
    """A response is complete when the server says so, not when the connection ends."""
    with pytest.raises(Truncated, match="after 2 events, before the response was complete"):
        ended(event("response.created", b',"response":{}'), event("response.output_item.done", b',"item":{}'))
    with pytest.raises(Truncated):
        ended()
    with pytest.raises(Truncated):
        ended(b"data: [DONE]\n\n")


def test_a_terminal_event_cut_in_half_is_truncated() -> None:
    """Half an event is no answer."""
    with pytest.raises(Truncated, match="not JSON"):
        ended(event("response.completed", b',"response":{"id":"r"}')[:-9])


def test_a_terminal_event_without_its_response_is_truncated() -> None:
    """A server that completes with nothing gave no answer."""
    with pytest.raises(Truncated):
        ended(event("response.completed"))


@pytest.mark.parametrize("output", [b',"output":[]', b',"output":null', b""])
def test_streamed_items_fill_an_empty_output(output: bytes) -> None:
    """The ChatGPT backend and some gateways send the items, and an empty output at the end."""
    items = [b'{"id":"msg","n":12345678901234567890.5}', b'{"id":"rs"}']
    body = ended(
        event("response.output_item.done", b',"output_index":1,"item":' + items[0]),
        event("response.output_item.done", b',"output_index":0,"item":' + items[1]),
        event("response.completed", b',"response":' + HEAD + output + b',"usage":{"total_tokens":3}}'),
    ).body
    assert b'"output":[' + items[1] + b"," + items[0] + b"]" in body
    assert json.loads(body)["usage"] == {"total_tokens": 3}
    assert body.count(b'"output"') == 1


def test_an_output_that_is_there_wins_over_the_streamed_items() -> None:
    """The server's own final word is not touched."""
    response = b'{"output":[{"id":"final"}]}'
    body = ended(
        event("response.output_item.done", b',"output_index":0,"item":{"id":"early"}'),
        event("response.completed", b',"response":' + response),
    ).body
    assert body == response


MESSAGE: Any = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": []}
FUNCTION: Any = {"id": "fc_1", "type": "function_call", "name": "f", "call_id": "c", "status": "completed"}


def said(kind: str, **fields: Any) -> bytes:
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    return event(f"response.{kind}", b"," + json.dumps({**where, **fields}).encode()[1:-1])


def part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


DELTAS = [said("output_text.delta", delta="Hel"), said("output_text.delta", delta="lo")]


@pytest.mark.parametrize("output", [[], [MESSAGE], [{**MESSAGE, "content": [part("")]}]], ids=["none", "bare", "empty"])
@pytest.mark.parametrize(
    "events",
    [
        DELTAS,
        [said("output_text.done", text="Hello")],
        [*DELTAS, said("content_part.done", part=part("")), said("output_item.done", item=MESSAGE)],
        [said("output_item.added", item={**MESSAGE, "status": "in_progress"}), *DELTAS],
        [DELTAS[0], said("output_text.done", text="Hel"), DELTAS[1]],
    ],
    ids=["deltas", "done", "bare item", "item added", "done too early"],
)
@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_a_text_that_only_the_deltas_have_is_not_lost(events: list[bytes], output: Any, kind: str) -> None:
    """Gateways over a chat (agentgateway, LiteLLM) end with an output without a word."""
    last = event(kind, b',"response":{"n":1.50,"output":' + json.dumps(output).encode() + b"}")
    body = ended(*events, last).body
    assert json.loads(body)["output"] == [{**MESSAGE, "content": [part("Hello")]}]
    assert b'"n":1.50' in body


def test_each_item_gets_what_was_told_of_it() -> None:
    """Two calls and a refusal, told apart by their ids and places; what an item has is not touched."""
    calls = [{**FUNCTION, "id": "fc_1", "arguments": ""}, {**FUNCTION, "id": "fc_2", "arguments": "{}"}]
    events = [
        said("output_item.added", output_index=0, item={**calls[0], "status": "in_progress"}),
        said("function_call_arguments.delta", item_id="fc_1", delta='{"x"'),
        said("function_call_arguments.delta", item_id="fc_2", output_index=1, delta="ignored"),
        said("function_call_arguments.delta", item_id="fc_1", delta=":1}"),
        said("refusal.done", item_id="msg_1", output_index=2, refusal="No."),
    ]
    last = event("response.completed", b',"response":{"output":' + json.dumps(calls).encode() + b"}")
    output = json.loads(ended(*events, last).body)["output"]
    assert output[:2] == [{**calls[0], "arguments": '{"x":1}'}, calls[1]]
    assert output[2]["content"] == [{"type": "refusal", "refusal": "No."}]


@pytest.mark.parametrize("bare", [True, False], ids=["bare item", "no item"])
def test_a_call_that_is_whole_does_not_take_the_text_before_it_away(bare: bool) -> None:
    """A gateway may lose a message's words, and have the arguments of the call that comes after it."""
    call = {**FUNCTION, "arguments": "{}"}
    events = [
        *DELTAS,
        *([said("output_item.done", item=MESSAGE)] if bare else []),
        said("function_call_arguments.delta", item_id="fc_1", output_index=1, delta="{}"),
        said("output_item.done", item_id="fc_1", output_index=1, item=call),
        event("response.completed", b',"response":{"output":[]}'),
    ]
    assert json.loads(ended(*events).body)["output"] == [{**MESSAGE, "content": [part("Hello")]}, call]


@pytest.mark.parametrize("response", [b'{"output":[],"status":"completed"}', b'{"output":[{"type":"message"}]}', b"{}"])
def test_an_output_without_a_word_stays_so_where_none_was_told(response: bytes) -> None:
    """And what looks like a piece but is none does no harm."""
    odd = [
        said("output_text.delta", delta=7),
        said("output_item.added", item=3),
        b'data: ["response.refusal.done"]\n\n',
    ]
    body = ended(*odd, event("response.completed", b',"response":' + response)).body
    assert body == response


@pytest.mark.parametrize(
    ("data", "status", "error"),
    [
        (
            b'{"type":"error","code":"server_error","message":"m","param":null,"sequence_number":3}',
            500,
            {"code": "server_error", "message": "m", "param": None},
        ),
        (b'{"type":"error","error":{"code":429,"message":"m"}}', 429, {"code": 429, "message": "m"}),
        (b'{"error":{"code":"503","message":"m"}}', 503, {"code": "503", "message": "m"}),
        (b'{"type":"response.error","error":{"message":"m"}}', 500, {"message": "m"}),
        (b'{"type":"error","status":404,"message":"m"}', 404, {"status": 404, "message": "m"}),
        (b'[{"error":{"code":429,"message":"m"}}]', 429, {"code": 429, "message": "m"}),
    ],
)
@pytest.mark.parametrize("name", [b"", b"event: error\n"])
def test_an_error_event_becomes_the_error_answer(name: bytes, data: bytes, status: int, error: Any) -> None:
    """An error in mid-stream is what the caller gets, with its own status where it has one."""
    assembling = assembler()
    assert assembling.feed(name + b"data: " + data + b"\n\n")
    answer = assembling.finish()
    assert answer.status == status
    assert json.loads(answer.body) == {"error": error}


def test_an_error_that_the_response_survives_is_not_the_answer() -> None:
    """An event about one tool of the response may name an error; the response goes on."""
    assembling = assembler()
    assert not assembling.feed(event("response.tool_call.failed", b',"error":{"message":"m"}'))
    assert assembling.feed(event("response.completed", b',"response":{"id":"r"}'))


def test_a_failed_response_is_not_an_error_answer() -> None:
    """`response.failed` is a response that says `failed`, with status 200."""
    response = b'{"status":"failed","error":{"code":"server_error","message":"m"}}'
    assert ended(event("response.failed", b',"response":' + response)) == Assembled(200, response)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values), st.text(), st.booleans(), st.data())
@settings(max_examples=50, deadline=None)
def test_any_response_comes_back_equal(body: Any, delta: str, escape: bool, data: st.DataObject) -> None:
    """Whatever the response holds, however it is cut, what comes out parses to what was sent."""
    said = json.dumps({"type": "response.output_text.delta", "delta": delta}, ensure_ascii=escape)
    last = json.dumps({"type": "response.completed", "response": body}, ensure_ascii=escape)
    stream = f"data: {said}\n\ndata: {last}\n\n".encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)])]
    assert json.loads(ended(*pieces).body) == body


def test_an_error_without_an_event_is_the_answer() -> None:
    """Gateways write it on a line of its own; what else stands there is passed over."""
    error = b'{"error":{"code":429,"message":"m"}}\n\n'
    assert ended(event("response.created"), b'{"note":"x"}\n\n', error).status == 429
    with pytest.raises(Truncated):
        ended(event("response.created"), b'{"note":"x"}\n\n')


@pytest.mark.parametrize("status", [b'"completed","error":null', b'"failed","error":{"code":"server_error"}'])
def test_a_response_that_only_claims_to_be_a_stream_is_the_body(status: bytes) -> None:
    """A server that ignores `stream` but for the content type; a failed response is a response."""
    response = HEAD + b',"status":' + status + b"}"
    assert ended(response) == Assembled(200, response)


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
def test_an_event_may_have_its_type_in_its_name_alone(kind: str) -> None:
    """As any other stream of events has it."""
    done = f"event: {kind}\n".encode() + b'data: {"response":{"id":"r","output":[]}}\n\n'
    item = b'event: response.output_item.done\ndata: {"output_index":0,"item":{"id":"msg"}}\n\n'
    assert json.loads(ended(item, done).body) == {"id": "r", "output": [{"id": "msg"}]}
