"""Policies are bounded, and come from where the nearest hand put them."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadstop.core.model import Level
from deadstop.core.policy import Backoff, CancelPolicy
from deadstop.core.policy import policy_from as any_policy_from
from deadstop.errors import UsageError

KINDS = {
    "response": {},
    "batch": {"timeout": 660.0, "attempt_timeout": 10.0, "grace": 60.0, "poll": 5.0},
}
policy_from = functools.partial(any_policy_from, kinds=KINDS)

backoffs = st.builds(
    lambda initial, more, multiplier, jitter: Backoff(initial, initial + more, multiplier, jitter),
    *(st.floats(0.001, 10), st.floats(0, 100), st.floats(1, 10), st.floats(0, 1)),
)
draws = st.floats(0, 1, exclude_max=True)
attempts = st.integers(1, 10_000)


@given(backoffs, attempts, draws)
def test_a_wait_is_within_its_bounds(backoff: Backoff, attempt: int, draw: float) -> None:
    """The wait is never longer than the maximum, nor shorter than the jitter allows, at any attempt."""
    wait = backoff.delay(attempt, draw)
    assert backoff.initial * (1 - backoff.jitter) <= wait + 1e-9
    assert wait <= backoff.maximum


@given(backoffs, st.integers(1, 100), draws)
def test_waits_grow(backoff: Backoff, attempt: int, draw: float) -> None:
    """With the same draw a later attempt never waits for less."""
    assert backoff.delay(attempt, draw) <= backoff.delay(attempt + 1, draw)


@given(backoffs, attempts, draws, st.floats(0, 1_000))
def test_retry_after_is_obeyed(backoff: Backoff, attempt: int, draw: float, retry_after: float) -> None:
    """The wait is never shorter than the server asked for."""
    assert backoff.delay(attempt, draw, retry_after) == max(retry_after, backoff.delay(attempt, draw))


def test_a_retry_after_that_is_no_number_is_ignored() -> None:
    """A server's nonsense (NaN, a negative) leaves the wait as it was."""
    assert Backoff().delay(1, 0.0, math.nan) == Backoff().delay(1, 0.0, -5.0) == 0.25


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"timeout": -1}, "timeout is -1: it can't be negative."),
        ({"timeout": 0}, "to return without waiting, use wait='sent'."),
        ({"timeout": math.nan}, "give a finite number"),
        ({"timeout": math.inf}, "every cancel is bounded"),
        ({"timeout": "5"}, "give a number"),
        ({"timeout": True}, "give a number"),
        ({"timeout": 10**400}, "give a number"),
        ({"attempt_timeout": 0}, "give more than 0 seconds"),
        ({"poll": 0}, "give more than 0 seconds"),
        ({"grace": -0.1}, "negative"),
        ({"drain": None}, "give a number"),
        ({"wait": "done"}, "give one of 'sent', 'accepted' and 'confirmed'."),
        ({"on_timeout": "ignore"}, "give one of 'raise', 'return', 'detach' and 'reset'."),
        ({"on_timeout": []}, "give one of 'raise', 'return', 'detach' and 'reset'."),
        ({"backoff": 2}, "give a Backoff"),
        ({"patience": 2}, "the settings are timeout, attempt_timeout, backoff,"),
    ],
)
def test_a_bad_setting_is_refused_with_what_to_do(settings: dict[str, Any], says: str) -> None:
    """What would break a promise is refused at once, in a sentence that says what to give instead."""
    with pytest.raises(UsageError) as refused:
        CancelPolicy().replace(**settings)
    assert says in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "settings", [{"initial": 0}, {"multiplier": 0.5}, {"jitter": 2}, {"initial": 9}, {"maximum": 0}]
)
def test_a_bad_backoff_is_refused(settings: dict[str, float]) -> None:
    """A backoff that shrinks, never waits or never ends is refused."""
    with pytest.raises(UsageError, match=r"^backoff\.\w+ .*\.$"):
        Backoff(**settings)


def test_zero_grace_and_zero_drain_mean_at_once_and_not_at_all() -> None:
    """These two may be zero."""
    assert CancelPolicy(grace=0, drain=0).grace == 0.0


def test_words_and_whole_numbers_are_welcome() -> None:
    """What is kept is a Level and a float."""
    policy = CancelPolicy(timeout=5, wait="sent")  # type: ignore[arg-type]
    assert policy.wait is Level.SENT
    assert type(policy.timeout) is float
    assert policy == CancelPolicy(timeout=5.0, wait=Level.SENT)
    assert policy.replace(poll=1).poll == 1.0


@pytest.mark.parametrize("kind", ["call", *KINDS])
def test_the_defaults_of_every_kind_are_a_policy(kind: str) -> None:
    """No kind's defaults are refused, and an attempt never outlasts the whole."""
    policy = policy_from({}, kind=kind)
    assert policy.attempt_timeout <= policy.timeout
    assert policy.grace < policy.timeout


def test_code_wins_over_environment_over_file_over_defaults() -> None:
    """Each source is overridden by the nearer one; within a source, by the kind's own setting."""
    file = {"timeout": 1, "kinds": {"batch": {"timeout": 2}}}
    env = {"DEADSTOP_TIMEOUT": "3"}
    own = {**env, "DEADSTOP_BATCH_TIMEOUT": "4"}
    assert policy_from({}, kind="batch").timeout == KINDS["batch"]["timeout"]
    assert policy_from({}, {"timeout": 1}, kind="batch").timeout == 1
    assert policy_from({}, file, kind="batch").timeout == 2
    assert policy_from({}, file, kind="response").timeout == 1
    assert policy_from(env, file, kind="batch").timeout == 3
    assert policy_from(own, file, kind="batch").timeout == 4
    assert policy_from(own, file, kind="response").timeout == 3
    assert policy_from(own, file, kind="batch", timeout=5).timeout == 5
    assert policy_from(own, file, kind="batch", timeout=None).timeout == 4


def test_every_setting_can_come_from_the_environment() -> None:
    """Each field has its variable, the backoff's too; an empty one counts as absent."""
    policy = policy_from(
        {
            "DEADSTOP_TIMEOUT": "20",
            "DEADSTOP_ATTEMPT_TIMEOUT": " 4 ",
            "DEADSTOP_GRACE": "0",
            "DEADSTOP_POLL": "0.5",
            "DEADSTOP_WAIT": "accepted",
            "DEADSTOP_ON_TIMEOUT": "return",
            "DEADSTOP_DRAIN": "",
            "DEADSTOP_BACKOFF_INITIAL": "1",
            "DEADSTOP_RESPONSE_BACKOFF_JITTER": "0",
            "DEADSTOP_LEDGER": "somebody else's",
        },
        kind="response",
    )
    assert policy == CancelPolicy(20, 4, Backoff(initial=1, jitter=0), 0, 0.5, Level.ACCEPTED, "return")


@pytest.mark.parametrize(
    ("env", "file", "says"),
    [
        ({"DEADSTOP_TIMEOUT": "soon"}, {}, "DEADSTOP_TIMEOUT is 'soon'"),
        ({"DEADSTOP_BATCH_POLL": "-1"}, {}, "DEADSTOP_BATCH_POLL is '-1'"),
        ({"DEADSTOP_BACKOFF_JITTER": "7"}, {}, "DEADSTOP_BACKOFF_JITTER is '7'"),
        ({"DEADSTOP_WAIT": "done"}, {}, "DEADSTOP_WAIT is 'done'"),
        ({}, {"kinds": {"batch": {"grace": "nan"}}}, "kinds.batch.grace is 'nan'"),
        ({}, {"timeuot": 3}, "There is no setting 'timeuot'"),
        ({}, {"backoff": {"base": 3}}, "There is no setting 'base'"),
        ({}, {"backoff": 3}, "[backoff] is 3"),
        ({}, {"kinds": {"batches": {}}}, "There is no kind 'batches'"),
        ({}, {"kinds": {"batch": 5}}, "[kinds.batch] is 5"),
    ],
    ids=str,
)
def test_a_bad_source_is_named(env: dict[str, str], file: dict[str, Any], says: str) -> None:
    """The error says which variable or which line of the file is wrong."""
    with pytest.raises(UsageError) as refused:
        policy_from(env, file, kind="batch")
    assert says in str(refused.value)


def test_an_unknown_kind_or_argument_is_refused() -> None:
    """A misspelt name never falls back to a default in silence."""
    with pytest.raises(UsageError, match="There is no kind 'batches'"):
        policy_from({}, kind="batches")
    with pytest.raises(UsageError, match="There is no setting 'patience'"):
        policy_from({}, patience=3)


def test_somebody_elses_table_in_the_file_is_left_alone() -> None:
    """One file may configure more than the policy."""
    assert policy_from({}, {"ledger": {"path": "runs.db"}}) == CancelPolicy()
