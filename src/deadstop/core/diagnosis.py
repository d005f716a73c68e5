"""Why a cancel stayed unconfirmed: evidence in, exactly one primary class out, with its cause and fix.

``RULES`` are tried in order, and the first that fits names the class.
``EXPLANATIONS`` holds what is said about each class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Callable

from deadstop.core.cancellation import Target
from deadstop.core.explanations import CAUSES, EXPLANATIONS, WORD_ALONE, Explanation
from deadstop.core.model import Attempt, Diagnosis, DiagnosisClass, Phase, RunStatus

__all__ = [
    "CAUSES",
    "CLOSED",
    "EXPLANATIONS",
    "RULES",
    "Diagnosis",
    "DiagnosisClass",
    "Explanation",
    "Facts",
    "cut_short",
    "diagnose",
]


BRIEF = 0.05
"""How long (seconds) an attempt takes at the least that is worth anything when it is cut short."""

CLOSED = "the client was closed"
"""The error of an attempt that was under way just then."""

EARLY = 0.001
"""How much (seconds) before the deadline what lasts until the deadline may end."""


@dataclass(frozen=True)
class Facts:
    """What is known when a cancel's time is up.

    ``attempts`` are the cancel's own requests; for an in-flight call, the call's request. ``reads`` are its status
    reads. ``phase`` is where the call, or the last cancel request, was stuck. ``caller_inside``: the call has not
    come back yet. ``interruptible``: its transport can be interrupted. ``connection_lost``: a connection broke or
    fell silent half-way; where the id is not known, that of the create. ``create_answer`` is the HTTP status of a
    create that was answered, and told no id. ``statuses`` are those of status reads that failed. ``accepted``: the
    server took the cancel on. ``status`` is the run's last known status, ``status_word`` the provider's word for it,
    ``seen_since`` whether that was asked for after the cancel had been. ``finished_before`` is the terminal status
    the run had before the intent, if it had one. ``held_back``: the cancel waited in vain for a place within the
    policy's limits, or for another process's request to be over. ``id_known``: there was something to address a
    cancel to. ``wanted``: the evidence that was asked for, where the server's word, that it is cancelled, is all
    there is. ``pool_wait`` and ``elapsed`` are seconds, ``deadline`` is one of the clock that the attempts go by.
    """

    target: Target = Target.IN_FLIGHT
    attempts: tuple[Attempt, ...] = ()
    reads: tuple[Attempt, ...] = ()
    phase: Phase = Phase.UNKNOWN
    interruptible: bool = True
    caller_inside: bool = False
    connection_lost: bool = False
    create_answer: int | None = None
    statuses: tuple[int, ...] = ()
    accepted: bool = False
    status: RunStatus = RunStatus.UNKNOWN
    status_word: str | None = None
    seen_since: bool = True
    finished_before: str | None = None
    wrong_target: bool = False
    held_back: bool = False
    id_known: bool = True
    wanted: str | None = None
    pool_wait: float | None = None
    elapsed: float | None = None
    deadline: float | None = None

    @property
    def answer(self) -> int | None:
        """The last HTTP status the server gave to a cancel; or to a status read, if it answered no cancel.

        An in-flight call's cancel has none.
        """
        if self.target is Target.IN_FLIGHT:
            return None
        if self.cancel_answer is not None:
            return self.cancel_answer
        return self.statuses[-1] if self.statuses else None

    @property
    def cancel_answer(self) -> int | None:
        """The same, of the cancel requests alone."""
        seen = [each.status for each in self.attempts if each.status is not None]
        return seen[-1] if seen and self.target is not Target.IN_FLIGHT else None


def diagnose(facts: Facts) -> Diagnosis:
    """The diagnosis that fits ``facts``. Total: whatever the facts, exactly one class."""
    klass, because = next((klass, why) for klass, rule in RULES if (why := rule(facts)))
    found = EXPLANATIONS[klass]
    number, cause = found.number, CAUSES[found.number].cause
    evidence = (because, *_seen(facts))
    summary, fix = found.summary, found.fix
    if klass is DiagnosisClass.SERVER_IGNORED and facts.wanted is not None:
        summary, fix = because, WORD_ALONE  # whether the run went on is not known
    return Diagnosis(klass, summary, evidence, f"Cause {number}: {cause}", fix)


# Rules: the sentence that makes the case for a class, or nothing.


def _wrong_target(f: Facts) -> str | None:
    if f.wrong_target:
        return "The cancel named something that is not this run, so it was not sent."
    if f.finished_before is None and f.answer in (400, 401, 403, 404, 405, 410, 422) and not f.accepted:
        if f.cancel_answer is None:
            return f"The server answered no cancel, and refused the status read with {f.answer}."
        return f"The server refused the cancel with {f.answer}, and the run was not read as over."
    if f.status is RunStatus.GONE:
        return "The server says it knows no such run."
    return None


def _sent_too_late(f: Facts) -> str | None:
    if f.finished_before is not None:
        return f"The run was {f.finished_before} before the cancel was asked for."
    if f.status is RunStatus.FINISHED:
        return f"The run had finished (status {f.status_word or 'finished'}) when it was read back."
    return None


def _closed(f: Facts) -> str | None:
    if f.answer is None and not f.accepted and f.attempts and f.attempts[-1].error == CLOSED:
        return "The client was closed before the server had answered: the cancel was given no more time."
    return None


def _stuck(*phases: Phase, saying: str, failing: str | None = None) -> Callable[[Facts], str | None]:
    """The operation never got beyond this phase (and nobody ever answered).

    ``failing`` is said where an error ended it, and not that its time was up.
    """

    def rule(f: Facts) -> str | None:
        stuck = f.phase in phases and f.answer is None and (_remote(f) or f.caller_inside)
        last = _telling(f) if stuck else None
        if last is not None and failing is not None and _broke(last):
            return f"{failing} ({last.error})."
        return saying if stuck else None

    return rule


def _caller_blocked(f: Facts) -> str | None:
    if _remote(f) or not f.caller_inside:
        return None
    if not f.interruptible:
        return "The call rides on a transport that can't be interrupted, and its caller is still inside."
    return f"The call was interrupted ({f.phase.replace('_', ' ')}), and its caller has not come back."


def _rate_limited(f: Facts) -> str | None:
    return "The server's last answer was 429." if f.answer == 429 else None


def _overloaded(f: Facts) -> str | None:
    overloaded = f.answer is not None and (f.answer == 408 or f.answer >= 500)
    return f"The server's last answer was {f.answer}." if overloaded else None


def _cancelling(f: Facts) -> str | None:
    if f.status is RunStatus.CANCELLING:
        return f"The server took the cancel on, and the run was still {f.status_word or 'cancelling'}."
    return None


def _ignored(f: Facts) -> str | None:
    if f.wanted is not None:
        return f"The server says {f.status_word!r}, and its word is all there is; {f.wanted!r} evidence was asked for."
    if _taken(f) and f.seen_since:
        return f"The server answered the cancel, and the run was still {f.status_word or f.status}."
    return None


def _taken(f: Facts) -> bool:
    """Whether the server has answered the cancel of a remote run, and not turned it away."""
    answer = f.cancel_answer
    return _remote(f) and (f.accepted or (answer is not None and (200 <= answer < 300 or answer == 409)))


def _unread(f: Facts) -> str | None:
    if _taken(f) and not f.seen_since:
        last = f.reads[-1] if f.reads else None
        how = "there was no time to" if last is None else f"the last try: {_came(last)}"
        return f"The server answered the cancel, and how the run stands could not be read since ({how})."
    return None


def _not_sent(f: Facts) -> str | None:
    if f.target is Target.UNBORN and not f.id_known and f.create_answer is not None:
        return f"The create was answered {f.create_answer}: a run may exist whose id nobody was told."
    if f.target is Target.UNBORN and not f.id_known and not f.connection_lost:
        return "The run's id was never learned, so there was nothing to send a cancel to."
    if _remote(f) and not f.attempts and f.held_back:
        return (
            "No cancel request left this process: it waited for others' (the policy's limits, or one at a time a run)."
        )
    if _remote(f) and f.answer is None and f.phase is Phase.CREATED and not f.accepted:
        return "No cancel request left this process."
    if _remote(f) and not f.attempts and not f.connection_lost and not f.accepted:
        return "No cancel request left this process."
    return None


def _ate_the_time(name: str, label: str) -> Callable[[Facts], str | None]:
    """One step of the last attempt took more than half of it."""

    def rule(f: Facts) -> str | None:
        last = _telling(f) if f.answer is None else None
        if last is not None and _broke(last):
            return None
        took = getattr(last, name) if last is not None else None
        whole = _length(last, f)
        if took is not None and whole is not None and took > 0 and took >= whole / 2:
            return f"{label} took {took:.2f} s of the last attempt's {whole:.2f} s."
        return None

    return rule


def _pool_wait(f: Facts) -> str | None:
    last = _telling(f)
    whole = f.elapsed if f.elapsed is not None else _length(last, f)
    if f.answer is None and f.pool_wait is not None and whole is not None and 0 < whole / 2 <= f.pool_wait:
        return f"Waiting for a connection from the pool took {f.pool_wait:.2f} s of {whole:.2f} s."
    return None


def _network_loss(f: Facts) -> str | None:
    if f.connection_lost and not f.id_known:
        return "The answer to the create was lost: a run may exist whose id nobody was told."
    if f.connection_lost:
        return "The connection broke, or fell silent half-way."
    last = _telling(f) if f.answer is None else None
    if last is not None and _remote(f) and _broke(last):
        return f"The connection broke before an answer came ({last.error})."
    if last is not None and _remote(f) and last.connect is None:
        return "The request went out on an open connection, and nothing ever came back."
    return None


def _slow(f: Facts) -> str | None:
    last = _telling(f) if f.answer is None else None
    if last is not None and _remote(f) and last.connect is not None:
        return "The server took the connection, and did not answer the request in time."
    return None


def _unknown(f: Facts) -> str:
    return "Nothing that was seen explains it."


RULES: tuple[tuple[DiagnosisClass, Callable[[Facts], str | None]], ...] = (
    (DiagnosisClass.SENT_TOO_LATE, _sent_too_late),
    (DiagnosisClass.WRONG_TARGET, _wrong_target),
    (DiagnosisClass.NOT_SENT, _not_sent),
    (DiagnosisClass.UNKNOWN, _closed),  # what it got to by then is nobody's fault
    (
        DiagnosisClass.DNS,
        _stuck(
            Phase.RESOLVING,
            saying="The server's name was never resolved.",
            failing="Resolving the server's name failed",
        ),
    ),
    (
        DiagnosisClass.CONNECT,
        _stuck(Phase.CONNECTING, saying="The connection was never established.", failing="Connecting failed"),
    ),
    (
        DiagnosisClass.TLS,
        _stuck(
            Phase.HANDSHAKING,
            saying="The TLS handshake was never completed.",
            failing="The TLS handshake failed",
        ),
    ),
    (
        DiagnosisClass.POOL_WAIT,
        _stuck(Phase.WAITING_FOR_POOL, saying="It waited for a connection from the pool to the end."),
    ),
    (DiagnosisClass.CALLER_BLOCKED, _caller_blocked),
    (DiagnosisClass.RATE_LIMITED, _rate_limited),
    (DiagnosisClass.SERVER_OVERLOADED, _overloaded),
    (DiagnosisClass.SERVER_SLOW, _cancelling),
    (DiagnosisClass.SERVER_IGNORED, _ignored),
    (DiagnosisClass.SERVER_SLOW, _unread),
    (DiagnosisClass.DNS, _ate_the_time("dns", "Resolving the server's name")),
    (DiagnosisClass.CONNECT, _ate_the_time("connect", "Connecting")),
    (DiagnosisClass.TLS, _ate_the_time("tls", "The TLS handshake")),
    (DiagnosisClass.POOL_WAIT, _pool_wait),
    (DiagnosisClass.NETWORK_LOSS, _network_loss),
    (DiagnosisClass.SERVER_SLOW, _slow),
    (DiagnosisClass.UNKNOWN, _unknown),
)


def cut_short(attempt: Attempt, among: Iterable[Attempt], deadline: float | None) -> bool:
    """Whether the deadline ended an attempt before it could tell anything.

    Another one had more than twice its time, or it had next to none, and is not the only one.
    """
    if deadline is None or attempt.ended is None or not attempt.started <= deadline <= attempt.ended + EARLY:
        return False
    had = attempt.ended - attempt.started
    others = [each.ended - each.started for each in among if each.ended is not None and each is not attempt]
    return any(took > 2 * had for took in others) or (had < BRIEF and bool(others))


def _remote(f: Facts) -> bool:
    return f.target is not Target.IN_FLIGHT


def _telling(f: Facts) -> Attempt | None:
    """The last attempt that came to something."""
    return next((each for each in reversed(f.attempts) if not cut_short(each, f.attempts, f.deadline)), None)


def _broke(attempt: Attempt) -> bool:
    """Whether it ended with an error of the transport's, and not because its time was up."""
    name = (attempt.error or "").partition(":")[0]
    return attempt.status is None and name.isidentifier() and "Timeout" not in name


def _came(attempt: Attempt) -> str:
    return f"answered {attempt.status}" if attempt.status is not None else attempt.error or "no answer"


def _length(attempt: Attempt | None, f: Facts) -> float | None:
    if attempt is None or attempt.ended is None:
        return f.elapsed
    return attempt.ended - attempt.started


def _seen(f: Facts) -> Iterator[str]:
    if f.statuses:
        yield f"Statuses seen: {', '.join(str(each) for each in f.statuses)}."
    for each in f.attempts:
        told: list[str] = []
        for name in ("dns", "connect", "tls", "first_byte"):
            took = getattr(each, name)
            if took is not None:
                told.append(f"{name.replace('_', ' ')} {took:.3f} s")
        if each.retry_after is not None:
            told.append(f"retry after {each.retry_after:g} s")
        if each.request_id:
            told.append(f"request {each.request_id}")
        yield f"Attempt {each.number}: {_came(each)}{' (' + ', '.join(told) + ')' if told else ''}."
    if f.phase is not Phase.UNKNOWN:
        yield f"Phase: {f.phase.replace('_', ' ')}."
    if f.status is not RunStatus.UNKNOWN:
        yield f"Last status read{'' if f.seen_since else ', before the cancel'}: {f.status_word or f.status}."
