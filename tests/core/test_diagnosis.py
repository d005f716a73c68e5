"""Whatever is known, there is one diagnosis, and for each class there is evidence that leads to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadstop.core.diagnosis import CAUSES, CLOSED, EXPLANATIONS, RULES, DiagnosisClass, Facts, diagnose
from deadstop.core.machine import Target
from deadstop.core.model import Attempt, Phase, RunStatus

seconds = st.none() | st.floats(allow_nan=True, allow_infinity=True)
codes = st.none() | st.integers(-1, 999)
attempts = st.builds(
    Attempt,
    number=st.integers(0, 5),
    started=st.floats(0, 100),
    ended=seconds,
    dns=seconds,
    connect=seconds,
    tls=seconds,
    first_byte=seconds,
    status=codes,
    request_id=st.none() | st.text(max_size=5),
    retry_after=seconds,
    error=st.none() | st.text(max_size=5),
)
facts = st.builds(
    Facts,
    target=st.sampled_from(Target),
    attempts=st.lists(attempts, max_size=3).map(tuple),
    phase=st.sampled_from(Phase),
    interruptible=st.booleans(),
    caller_inside=st.booleans(),
    connection_lost=st.booleans(),
    statuses=st.lists(st.integers(0, 999), max_size=3).map(tuple),
    accepted=st.booleans(),
    status=st.sampled_from(RunStatus),
    status_word=st.none() | st.text(max_size=5),
    finished_before=st.none() | st.sampled_from(["completed", "failed"]),
    wrong_target=st.booleans(),
    id_known=st.booleans(),
    pool_wait=seconds,
    elapsed=seconds,
)


def remote(*sent: Attempt, **known: object) -> Facts:
    return Facts(target=Target.REMOTE, attempts=sent, **known)  # type: ignore[arg-type]


def stuck(phase: Phase, **known: object) -> Facts:
    return Facts(phase=phase, caller_inside=True, **known)  # type: ignore[arg-type]


SILENT = Attempt(1, 0.0, 3.0, connect=0.01, error="ReadTimeout")
SHUT = Attempt(2, 0.0, 0.3, connect=0.01, error=CLOSED)
REUSED = Attempt(1, 0.0, 3.0, error="ReadTimeout")
HURRIED = Attempt(2, 3.0, 3.01, dns=0.001, connect=0.008, error="ReadTimeout")

BROKEN = Attempt(1, 2.9, 2.902, connect=0.001, error="ReadError: Connection reset by peer")


def answered(status: int) -> Attempt:
    return Attempt(1, 0.0, 0.1, connect=0.01, first_byte=0.05, status=status)


CASES = [
    ("not_sent", Facts(target=Target.UNBORN, id_known=False)),
    ("not_sent", remote()),
    ("dns", stuck(Phase.RESOLVING)),
    ("dns", remote(REUSED, phase=Phase.RESOLVING)),
    ("dns", remote(Attempt(1, 0.0, 3.0, dns=2.9, connect=0.05, error="ReadTimeout"))),
    ("connect", stuck(Phase.CONNECTING)),
    ("connect", remote(Attempt(1, 0.0, 3.0, dns=0.1, connect=2.8))),
    ("tls", stuck(Phase.HANDSHAKING)),
    ("tls", remote(Attempt(1, 0.0, 3.0, connect=0.1, tls=2.8))),
    ("pool_wait", stuck(Phase.WAITING_FOR_POOL)),
    ("pool_wait", remote(SILENT, pool_wait=2.0, elapsed=3.0)),
    ("network_loss", remote(REUSED)),
    ("network_loss", remote(SILENT, connection_lost=True)),
    ("network_loss", remote(REUSED, HURRIED, deadline=3.01)),
    ("network_loss", remote(REUSED, HURRIED, deadline=3.0105)),
    ("connect", remote(REUSED, HURRIED, deadline=9.0)),
    ("server_slow", remote(REUSED, replace(HURRIED, ended=4.6), deadline=4.5)),
    ("connect", remote(HURRIED, deadline=3.01)),
    ("network_loss", remote(BROKEN, HURRIED, deadline=3.01)),
    ("network_loss", remote(BROKEN)),
    ("server_slow", remote(answered(200), SILENT, accepted=True, status=RunStatus.ACTIVE, seen_since=False)),
    ("not_sent", Facts(target=Target.UNBORN, id_known=False, create_answer=503)),
    ("wrong_target", remote(SILENT, statuses=(404,))),
    ("rate_limited", remote(answered(429))),
    ("server_overloaded", remote(answered(503))),
    ("server_overloaded", remote(answered(503), SILENT)),
    ("server_slow", remote(SILENT)),
    ("server_slow", remote(answered(200), accepted=True, status=RunStatus.CANCELLING)),
    ("server_ignored", remote(answered(200), accepted=True, status=RunStatus.ACTIVE)),
    ("server_ignored", remote(answered(409), status=RunStatus.ACTIVE)),
    ("sent_too_late", remote(answered(400), finished_before="completed")),
    ("sent_too_late", remote(answered(400), status=RunStatus.FINISHED, status_word="completed")),
    ("wrong_target", remote(wrong_target=True)),
    ("wrong_target", remote(answered(404))),
    ("wrong_target", remote(answered(401))),
    ("caller_blocked", stuck(Phase.BETWEEN_EVENTS)),
    ("caller_blocked", stuck(Phase.UNKNOWN, interruptible=False)),
    ("caller_blocked", stuck(Phase.READING, interruptible=False, attempts=(answered(200),))),
    ("unknown", Facts()),
    ("unknown", remote(SHUT, phase=Phase.WAITING_FOR_HEADERS)),
    ("unknown", remote(SHUT, phase=Phase.CONNECTING)),
    ("server_overloaded", remote(answered(503), SHUT)),
    ("server_slow", remote(SHUT, accepted=True, status=RunStatus.CANCELLING)),
]


@given(facts)
def test_i17_every_evidence_has_exactly_one_diagnosis(known: Facts) -> None:
    """I17: the diagnosis is total, and always has a class, evidence, a cause of the page and a fix."""
    found = diagnose(known)
    assert found.klass in DiagnosisClass
    assert found.evidence
    assert all(sentence.endswith(".") for sentence in found.evidence)
    assert found.cause == f"Cause {EXPLANATIONS[found.klass].number}: {CAUSES[EXPLANATIONS[found.klass].number].cause}"
    assert (found.summary, found.fix) == (EXPLANATIONS[found.klass].summary, EXPLANATIONS[found.klass].fix)


@pytest.mark.parametrize(("klass", "known"), CASES)
def test_the_evidence_leads_to_its_class(klass: str, known: Facts) -> None:
    """I17: what produces a class is diagnosed as that class."""
    found = diagnose(known)
    assert found.klass == klass, found


FAILED = "ConnectError: [Errno -2] Name or service not known"


@pytest.mark.parametrize(
    ("phase", "failed", "stuck"),
    [
        (Phase.RESOLVING, "Resolving the server's name failed", "The server's name was never resolved."),
        (Phase.CONNECTING, "Connecting failed", "The connection was never established."),
        (Phase.HANDSHAKING, "The TLS handshake failed", "The TLS handshake was never completed."),
    ],
)
def test_what_failed_is_not_said_to_have_gone_on(phase: Phase, failed: str, stuck: str) -> None:
    """An error is told with what it ended; of what was cut off by the time, or by somebody, only how far it got."""
    last = Attempt(2, 1.0, 1.1, error=FAILED)
    assert diagnose(remote(SILENT, last, phase=phase)).evidence[0] == f"{failed} ({FAILED})."
    for other in ("its time was up", "ConnectTimeout: timed out", None):
        known = remote(SILENT, replace(last, error=other), phase=phase)
        assert diagnose(known).evidence[0] == stuck
    overtaken = Attempt(1, 0.0, 3.0, error="its time was up")
    known = remote(overtaken, replace(last, started=3.0, ended=3.1), phase=phase, deadline=3.1)
    assert diagnose(known).evidence[0] == stuck


def test_every_class_can_be_reached() -> None:
    """I17: there is a case here for each class, so none is dead."""
    assert {klass for klass, _ in CASES} == set(DiagnosisClass) == {klass for klass, _ in RULES}


def test_every_class_and_cause_is_explained() -> None:
    """Each class has a summary, a fix and one of the page's three causes, in full sentences."""
    assert set(EXPLANATIONS) == set(DiagnosisClass)
    assert {each.number for each in EXPLANATIONS.values()} == set(CAUSES) == {1, 2, 3}
    for each in EXPLANATIONS.values():
        assert each.summary.endswith(".")
        assert each.fix.endswith(".")


def test_the_evidence_tells_the_attempts() -> None:
    """Each attempt's timing, answer and request id is in the evidence."""
    sent = Attempt(2, 0.0, 1.0, dns=0.002, connect=0.1, status=503, request_id="req_1", retry_after=30.0)
    told = diagnose(remote(sent, statuses=(429,), phase=Phase.WAITING_FOR_HEADERS)).evidence
    assert told == (
        "The server's last answer was 503.",
        "Statuses seen: 429.",
        "Attempt 2: answered 503 (dns 0.002 s, connect 0.100 s, retry after 30 s, request req_1).",
        "Phase: waiting for headers.",
    )
