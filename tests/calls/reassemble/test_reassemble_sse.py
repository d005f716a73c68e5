"""Bytes to events: however they are cut, whatever ends their lines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadstop.calls.reassemble.sse import BARE, EventStream


def events(*chunks: bytes) -> list[tuple[bytes, bytes]]:
    stream = EventStream()
    found = [event for chunk in chunks for event in stream.feed(chunk)]
    return found + stream.end()


STREAM = (
    b"\xef\xbb\xbfdata: one\n\n: keepalive\n\nevent: ping\ndata:two\n\nid: 7\nretry: 10\nevent: e\ndata: a\n"
    b"data:\ndata:  b\n\n:\n\ndata\n\nevent: lost\n\ndata: \xc3\xa9\n\ndata: last"
)
EXPECTED = [(b"", b"one"), (b"ping", b"two"), (b"e", b"a\n\n b"), (b"", b"\xc3\xa9"), (b"", b"last")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_each_line_ending_gives_the_same_events(end: bytes) -> None:
    """LF, CRLF and CR are the same to the parser; BOM, comments and empty events are passed over."""
    assert events(STREAM.replace(b"\n", end)) == EXPECTED


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_in_single_bytes_gives_the_same_events(end: bytes) -> None:
    """A cut is allowed anywhere: in a BOM, a CRLF, a character, a field name."""
    stream = STREAM.replace(b"\n", end)
    assert events(*(stream[i : i + 1] for i in range(len(stream)))) == EXPECTED


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_the_cuts_do_not_matter(data: st.DataObject) -> None:
    """Any cutting of any mix of line endings gives what the whole gives."""
    lines = STREAM.split(b"\n")
    ends = data.draw(st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=len(lines), max_size=len(lines)))
    stream = b"".join(line + end for line, end in zip(lines, ends))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)])]
    assert events(*pieces) == EXPECTED


def test_a_carriage_return_ends_its_line_at_once() -> None:
    """An event ended by CR CR is there before the byte that follows it."""
    stream = EventStream()
    assert stream.feed(b"data: x\r\r") == [(b"", b"x")]
    assert stream.feed(b"\ndata: y\r\n\r\n") == [(b"", b"y")]


def test_the_name_of_an_event_does_not_outlive_it() -> None:
    """The event after a named one has no name."""
    assert events(b"event: error\ndata: x\n\ndata: y\n\n") == [(b"error", b"x"), (b"", b"y")]


def test_the_error_field_of_older_llama_servers_is_an_error_event() -> None:
    """A line `error: {...}`, which no standard knows, is not lost."""
    assert events(b'error: {"code":400}\n\n') == [(b"error", b'{"code":400}')]


def test_nothing_gives_nothing() -> None:
    """An empty stream, and empty chunks, hold no event."""
    assert events() == events(b"", b"") == events(b"\n\r\n\n") == []


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_json_that_is_no_event_is_handed_out_as_such(cut: int) -> None:
    """On one line or several, up to the next blank line, field or end; the events around it are whole."""
    stream = b'data: a\n\n{"x": 1}\ndata: b\n\n[{\n  "y":\n  2\n}]\n\ndata: c\n{"z"\n\n{"last": 1}'
    assert events(*(stream[i : i + cut] for i in range(0, len(stream), cut))) == [
        (b"", b"a"),
        (BARE, b'{"x": 1}'),
        (b"", b"b"),
        (BARE, b'[{\n  "y":\n  2\n}]'),
        (BARE, b'{"z"'),
        (b"", b"c"),
        (BARE, b'{"last": 1}'),
    ]
