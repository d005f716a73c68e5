"""Every error is one of the SDK's family, prints as a sentence, and survives a trip between processes."""

from __future__ import annotations

import copy
import pickle
import sys
import traceback
from typing import Callable

import openai
import pytest

from deadstop import errors
from deadstop.core.model import CancelReceipt, Cause, Diagnosis, DiagnosisClass, Outcome
from deadstop.errors import (
    MESSAGE,
    CancelRefusedError,
    DeadstopError,
    LedgerError,
    LedgerSchemaError,
    LedgerUnavailable,
    LedgerUrlError,
    RunAlreadyOpenError,
    RunCancellationTimeoutError,
    RunCancelledError,
    UnknownRunError,
    UnsupportedClientError,
    UsageError,
)

RECEIPT = CancelReceipt(
    "chat-42",
    Outcome.UNCONFIRMED,
    diagnosis=Diagnosis(DiagnosisClass.DNS, "It did not resolve.", fix="Check the resolver."),
)

ERRORS: list[DeadstopError] = [
    DeadstopError("It went wrong."),
    RunCancelledError(run="chat-42", reason="stop", actor="alice", receipt=RECEIPT, cause=Cause.USER),
    RunCancelledError(run="chat-42"),
    RunCancellationTimeoutError(receipt=RECEIPT),
    RunCancellationTimeoutError(),
    UsageError("Give a name."),
    UnknownRunError("There is no run 'x'.", run="x"),
    RunAlreadyOpenError("The run 'x' is open already.", run="x"),
    UnsupportedClientError("A str is no client.", client="str"),
    CancelRefusedError("Mallory may not cancel run 'x'.", run="x", actor="mallory"),
    LedgerError("It failed.", url="memory:"),
    LedgerUnavailable("It is down.", url="postgresql://host/x"),
    LedgerSchemaError("It is foreign.", url="sqlite:///x.db"),
    LedgerUrlError("It is no address."),
]


def test_the_tree_is_complete() -> None:
    """Every error has a case here, and derives from the SDK's base but not from APIError."""
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    defined = {each for each in classes if issubclass(each, DeadstopError)}
    assert {type(error) for error in ERRORS} == defined
    for error in ERRORS:
        assert isinstance(error, openai.OpenAIError)
        assert not isinstance(error, openai.APIError)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickle(error: DeadstopError, protocol: int) -> None:
    """Type, message, notes and facts arrive whole, whatever the protocol."""
    arrived = pickle.loads(pickle.dumps(error, protocol))
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.args, vars(arrived)) == (str(error), error.args, vars(error))


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_an_error_can_be_copied(error: DeadstopError, copied: Callable[[DeadstopError], DeadstopError]) -> None:
    """A copy has the facts and shares no note list with the original."""
    twin = copied(error)
    assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
    if hasattr(twin, "__notes__"):
        assert twin.__notes__ is not vars(error)["__notes__"]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_prints_as_a_full_sentence(error: DeadstopError) -> None:
    """str() starts with a capital and ends with a full stop."""
    assert str(error)[0].isupper()
    assert str(error).endswith(".")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({}, "Run 'chat-42' was cancelled."),
        (
            {"reason": "user pressed stop", "actor": "alice"},
            "Run 'chat-42' was cancelled: user pressed stop (by alice).",
        ),
        ({"reason": "Done.\n"}, "Run 'chat-42' was cancelled: Done."),
        ({"actor": "alice"}, "Run 'chat-42' was cancelled (by alice)."),
        ({"cause": Cause.DEADLINE}, "Run 'chat-42' was cancelled: its deadline passed."),
        ({"cause": Cause.USER}, "Run 'chat-42' was cancelled."),
        ({"cause": Cause.SIGNAL, "reason": "SIGTERM"}, "Run 'chat-42' was cancelled: SIGTERM."),
    ],
)
def test_a_cancelled_run_says_why(facts: dict[str, str], sentence: str) -> None:
    """The reason, or else the cause, and the actor are in the sentence."""
    error = RunCancelledError(run="chat-42", **facts)  # type: ignore[arg-type]
    assert str(error) == sentence


def test_a_timeout_prints_the_page_s_message() -> None:
    """The message is exactly the known one; a TimeoutError handler catches it, and so does the SDK's."""
    error = RunCancellationTimeoutError()
    assert str(error) == "Run cancellation timed out after waiting for the operation to abort." == MESSAGE
    assert isinstance(error, TimeoutError)
    assert (error.receipt, error.run, error.diagnosis) == (None, None, None)
    assert str(RunCancellationTimeoutError("It took too long.")) == "It took too long."


def test_a_timeout_carries_its_evidence() -> None:
    """The receipt, its diagnosis and the run's name are attributes."""
    error = RunCancellationTimeoutError(receipt=RECEIPT)
    assert error.receipt is RECEIPT
    assert error.run == "chat-42"
    assert error.diagnosis is RECEIPT.diagnosis


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions carry notes from Python 3.11 on")
def test_a_timeout_s_traceback_ends_with_the_diagnosis() -> None:
    """The note names the run, the class and the fix; the message stays as it is."""
    error = RunCancellationTimeoutError(receipt=RECEIPT)
    printed = "".join(traceback.format_exception_only(type(error), error))
    assert printed == (
        f"deadstop.errors.RunCancellationTimeoutError: {MESSAGE}\n"
        "Run 'chat-42': dns - It did not resolve.\n"
        "Fix: Check the resolver.\n"
    )


def test_bad_input_is_caught_as_python_s_own_errors() -> None:
    """ValueError for all of it, LookupError for an unknown run, TypeError for a wrong client."""
    assert issubclass(UsageError, ValueError)
    assert issubclass(UnknownRunError, LookupError)
    assert issubclass(UnsupportedClientError, TypeError)
