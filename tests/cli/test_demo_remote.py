"""The demo's verdicts on remote runs: where a receipt and the server's truth part, it says so."""

from __future__ import annotations

from typing import Any

import pytest

from deadstop.cli.demo.remote import REMOTE_CASES, PlayedRemote, RemoteCase, judge_remote
from deadstop.core.model import CancelReceipt, Evidence, Outcome
from deadstop.testing import RunRecord, faults


def record(**facts: Any) -> RunRecord:
    """A run that was cancelled properly, but for what is given."""
    known: dict[str, Any] = {
        "kind": "response",
        "ids": ("resp_1",),
        "created_at": 1.0,
        "status": "cancelled",
        "truth": "cancelled",
        "ended_at": 2.0,
        "tokens": 5,
        "tokens_after_cancel": 0,
        "cancels": 1,
        "most_cancels": 1,
        "reads": 0,
        "first_cancel_at": 2.0,
        "acknowledged_at": 2.0,
        "tokens_after_request": 0,
        "history": ((1.0, "in_progress"), (2.0, "cancelled")),
        "request": 1,
    }
    return RunRecord(**{**known, **facts})


def played(case: RemoteCase = REMOTE_CASES[0], receipt: Any = None, **truth: Any) -> PlayedRemote:
    """One case in which all is well, but for what is given."""
    child = receipt or CancelReceipt("response:resp_1", Outcome.CANCELLED, evidence=Evidence.STATUS, kind="response")
    whole = CancelReceipt("demo", child.outcome, children=(child,))
    return PlayedRemote(case, receipt=whole, truth=record(**truth))


def test_what_agrees_is_not_complained_of() -> None:
    """A receipt that says what is true is right."""
    assert list(judge_remote(played())) == []


@pytest.mark.parametrize(
    ("one", "complaint"),
    [
        (played(truth="active"), "the run is active"),
        (played(truth="completed"), "the run is completed"),
        (played(most_cancels=2), "2 cancel requests"),
        (played(receipt=CancelReceipt("r", Outcome.UNCONFIRMED), truth="active"), "would be right"),
        (played(receipt=CancelReceipt("r", Outcome.UNCONFIRMED), truth="active"), "no diagnosis"),
        (played(RemoteCase("batch", faults.ComesBackToLife(0.1))), "not on the receipt"),
        (played(RemoteCase("batch", faults.CreateReplyLost())), "no orphan suspect"),
        (played(RemoteCase("batch", early=True)), "instead of RunCancelledError"),
        (PlayedRemote(REMOTE_CASES[0]), "there is no receipt"),
    ],
)
def test_what_disagrees_is_said(one: PlayedRemote, complaint: str) -> None:
    """Each way to be wrong has its sentence."""
    assert any(complaint in each for each in judge_remote(one))
