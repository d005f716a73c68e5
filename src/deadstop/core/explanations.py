"""What each diagnosis means, which of the three causes it is, and what to do about it.

``deadstop explain`` prints this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deadstop.core.model import DiagnosisClass


@dataclass(frozen=True)
class Remedy:
    """One of the causes of a RunCancellationTimeoutError, and its general fix."""

    cause: str
    fix: str


@dataclass(frozen=True)
class Explanation:
    """A diagnosis class in words: what happened, the ``number`` of its cause in CAUSES, and its own fix."""

    summary: str
    number: int
    fix: str


CAUSES: Mapping[int, Remedy] = {
    1: Remedy(
        "Network latency or connectivity issues delay the cancellation acknowledgement from the API.",
        "Ensure stable and low-latency network connections; cancellation requests are retried with backoff.",
    ),
    2: Remedy(
        "The server is under heavy load and does not process cancellation requests promptly.",
        "Bound the wait on the client's side, and safely abort or ignore late responses.",
    ),
    3: Remedy(
        "Cancellation requests are sent incorrectly or too late after the run has already completed.",
        "Send cancellation requests immediately when needed, to the right run, and avoid redundant ones.",
    ),
}

EXPLANATIONS: Mapping[DiagnosisClass, Explanation] = {
    DiagnosisClass.NOT_SENT: Explanation(
        "No cancel request was sent, because there was no id to address one to.",
        3,
        "Cancel after the create call has returned an id, or leave the cancel parked: it is sent as soon "
        "as the id is learned.",
    ),
    DiagnosisClass.DNS: Explanation(
        "The server's name could not be resolved in time.",
        1,
        "Check the resolver and the base URL; on a slow resolver, run a local DNS cache.",
    ),
    DiagnosisClass.CONNECT: Explanation(
        "No TCP connection to the server could be made in time.",
        1,
        "Check that the server is up and that no firewall or proxy drops the connection; lower the "
        "client's connect timeout so that it gives up early.",
    ),
    DiagnosisClass.TLS: Explanation(
        "The TLS handshake could not be completed in time.",
        1,
        "Check that the client trusts the server's certificate, for a proxy that inspects TLS, and that the server is "
        "not too busy to complete handshakes.",
    ),
    DiagnosisClass.POOL_WAIT: Explanation(
        "The time went by waiting for a free connection of the HTTP client's pool.",
        1,
        "Raise the pool's limits (max_connections) or lower the concurrency, close streams that are left "
        "early, and replace a pool that leaks with runs.reset().",
    ),
    DiagnosisClass.NETWORK_LOSS: Explanation(
        "The connection was lost, or fell silent, after the request had gone out.",
        1,
        "Check the network path (load balancers and NAT gateways drop idle connections); a longer timeout "
        "leaves room for one more attempt.",
    ),
    DiagnosisClass.RATE_LIMITED: Explanation(
        "The server turned the cancel away because of a rate limit.",
        2,
        "Send fewer requests with this key, stop polling runs that are being cancelled, or raise the "
        "timeout beyond the server's Retry-After.",
    ),
    DiagnosisClass.SERVER_OVERLOADED: Explanation(
        "The server turned the cancel away because it was overloaded or failing.",
        2,
        "Raise the timeout so that more retries fit, or catch the error and move on: nothing more is "
        "delivered from this run either way.",
    ),
    DiagnosisClass.SERVER_SLOW: Explanation(
        "The server has the cancel, and did not say in time that it is done.",
        2,
        "Raise the timeout for this kind of run (a batch may take ten minutes), or wait for 'accepted' only.",
    ),
    DiagnosisClass.SERVER_IGNORED: Explanation(
        "The server answered the cancel, and the run went on.",
        2,
        "The server does not stop this kind of run: close its connection too (stream it inside a run "
        "scope), and report it to whoever runs the server.",
    ),
    DiagnosisClass.SENT_TOO_LATE: Explanation(
        "The run was over before the cancel was sent.",
        3,
        "Cancel earlier, and look at run.cancelled or the run's status before cancelling again; a finished "
        "run needs no cancel.",
    ),
    DiagnosisClass.WRONG_TARGET: Explanation(
        "The cancel was addressed to something that can't be cancelled, or that this key can't see.",
        3,
        "Check the kind and the id of the run, the base URL, the API key and its project; a run made in "
        "the foreground is cancelled by its connection, not by its id.",
    ),
    DiagnosisClass.CALLER_BLOCKED: Explanation(
        "The call was told to stop, and its caller is still inside it.",
        3,
        "Keep blocking work out of callbacks and between two chunks, and use a client whose transport "
        "deadstop can interrupt (the SDK's default one); nothing more is delivered from this run either "
        "way.",
    ),
    DiagnosisClass.UNKNOWN: Explanation(
        "What was seen does not say why.",
        2,
        "Raise the timeout, look at the receipt's attempts and calls, and treat the run as still going "
        "until its status is read.",
    ),
}

WORD_ALONE = (
    'Take the server\'s word for it (`evidence="status"`), or, if you know what it does, say so in a `ServerProfile` '
    "(`runs.server`)."
)
"""What to do where a server says that the run is cancelled, and the policy asked for more than its word."""
