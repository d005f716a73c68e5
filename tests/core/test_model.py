"""The facts print, compare, pickle and turn into JSON."""

from __future__ import annotations

import copy
import json
import math
import pickle
from enum import Enum

import pytest

from deadstop.core import model
from deadstop.core.model import (
    Attempt,
    CallFacts,
    CancelReceipt,
    Cause,
    Delivered,
    Diagnosis,
    DiagnosisClass,
    Evidence,
    Interrupted,
    Level,
    Outcome,
    Phase,
    Word,
)

WORDS = [each for each in vars(model).values() if isinstance(each, type) and issubclass(each, Word)]

RECEIPT = CancelReceipt(
    "chat-42",
    Outcome.UNCONFIRMED,
    reason="user pressed stop",
    actor="alice",
    cause=Cause.USER,
    attempts=(Attempt(1, 5.0, 8.0, dns=0.01, status=503, retry_after=math.inf),),
    elapsed=0.0123,
    delivered=Delivered(3, 20),
    usage={"total_tokens": 7},
    diagnosis=Diagnosis(DiagnosisClass.DNS, "It did not resolve.", ("One.",), "Cause 1", "Fix it."),
    calls=(CallFacts("c1", "POST", "/chat/completions", Phase.READING, Interrupted.SOCKET),),
    children=(CancelReceipt("tool", Outcome.CANCELLED, evidence=Evidence.TRANSPORT),),
    later=(("too slow", None),),
)


@pytest.mark.parametrize("kind", [each for each in WORDS if each is not Word])
def test_a_word_is_its_value_everywhere(kind: type[Word]) -> None:
    """str(), format() and JSON give the plain value on every Python, and copies are the member itself."""
    for word in kind:
        assert str(word) == f"{word}" == f"{word:s}" == word.value == word
        assert f"{word:>20}" == f"{word.value:>20}"
        assert json.dumps(word) == f'"{word.value}"'
        assert pickle.loads(pickle.dumps(word)) is copy.deepcopy(word) is kind(word.value) is word
        assert word.value == word.name.lower()
        assert hash(word) == hash(word.value)


def test_levels_are_ordered_by_strength() -> None:
    """sent < accepted < confirmed."""
    assert sorted(Level, key=lambda level: level.rank) == [Level.SENT, Level.ACCEPTED, Level.CONFIRMED]


def test_a_receipt_prints_as_one_line() -> None:
    """The line says what came of it, how long it took, what it rests on, and why."""
    assert str(RECEIPT) == (
        "Run 'chat-42': unconfirmed, in 12.3 ms, evidence none, 1 call, 1 attempt, 1 child, "
        "3 chunks delivered, diagnosis dns, reason 'user pressed stop', by alice"
    )
    assert "\n" not in str(CancelReceipt("a", Outcome.CANCELLED, reason="two\nlines"))


def test_a_receipt_is_json_ready() -> None:
    """to_dict() holds plain data alone, nested facts included, and no number that JSON can't write."""
    data = RECEIPT.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["outcome"] == "unconfirmed"
    assert data["attempts"][0]["retry_after"] is None
    assert data["calls"][0]["phase"] == "reading"
    assert data["children"][0]["run"] == "tool"
    assert data["later"] == [["too slow", None]]
    assert not any(isinstance(value, Enum) for value in data.values())


def test_a_receipt_survives_pickle_copy_and_a_set() -> None:
    """It equals its copies, and can be hashed, usage or not."""
    assert pickle.loads(pickle.dumps(RECEIPT)) == copy.deepcopy(RECEIPT) == RECEIPT
    assert len({RECEIPT, copy.deepcopy(RECEIPT)}) == 1


@pytest.mark.parametrize("outcome", Outcome)
def test_ok_means_known_to_be_over(outcome: Outcome) -> None:
    """Only a run that was cancelled or had finished is ok."""
    assert CancelReceipt("a", outcome).ok == (outcome in ("cancelled", "finished_first"))
