"""How far a server's word goes: what is known of the work behind a run that it says is cancelled.

Acknowledged is not stopped. Measured on small random models, a few runs each, unless a source is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional
from urllib.parse import urlsplit

from deadstop.core.model import Evidence, ServerWork
from deadstop.errors import UsageError

__all__ = ["PROFILES", "UNKNOWN", "ServerProfile", "profile_for", "recognise"]


@dataclass(frozen=True)
class ServerProfile:
    """What is known of one make of server.

    - ``work``: what is known of the work on a remote run that the server says is cancelled.
    - ``word``: the evidence that its ``cancelled`` amounts to: ``status``, or ``engine`` where it is known that the
      work has stopped by then. ``CancelPolicy(evidence="engine")`` asks for that.
    - ``hosts``: hosts by whose name it is known; ``headers``: names of answer headers that only it sends.
    - ``note``: what was seen, and where.
    """

    name: str
    work: ServerWork = ServerWork.UNKNOWN
    word: Evidence = Evidence.STATUS
    hosts: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "work", ServerWork(self.work))
        object.__setattr__(self, "word", Evidence(self.word))
        if self.word not in (Evidence.STATUS, Evidence.ENGINE):
            raise UsageError(f"The word of server {self.name!r} is {self.word!r}: give 'status' or 'engine'.")


UNKNOWN = ServerProfile("unknown", note="Nothing is known of this server; its status is its word, and no more.")

PROFILES: Mapping[str, ServerProfile] = {
    each.name: each
    for each in (
        ServerProfile(
            "openai",
            hosts=("api.openai.com",),
            headers=("openai-version", "openai-processing-ms"),
            note="Background responses reported cancelled have turned completed later (public threads).",
        ),
        ServerProfile("azure", hosts=("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com")),
        ServerProfile(
            "ogx",
            ServerWork.RUNS_ON,
            note="Said `cancelled` in 14 to 230 ms, 18 of 18; 10 of 18 went on generating to the end; of batches said "
            "to be cancelled all tokens were generated (OGX 1.5).",
        ),
        ServerProfile(
            "llama-stack",
            ServerWork.RUNS_ON,
            note="Refused the cancel of a running background response with 409, 5 of 5 (0.7.3).",
        ),
        ServerProfile(
            "litellm",
            headers=("x-litellm-version", "x-litellm-call-id"),
            note="Passes cancels through; half of the runs went on upstream (proxy 1.106).",
        ),
        ServerProfile(
            "langgraph",
            ServerWork.RUNS_ON,
            note="Said `interrupted` in 10 ms, even when asked to wait; a synchronous node ran on for 9 s (0.16).",
        ),
    )
}


def profile_for(server: Any) -> ServerProfile:
    """The profile that a user means: one of their own, or the name of a known one. Raises UsageError."""
    if isinstance(server, ServerProfile):
        return server
    if isinstance(server, str) and server in PROFILES:
        return PROFILES[server]
    raise UsageError(f"server is {server!r}: give a ServerProfile, or one of {', '.join(map(repr, PROFILES))}.")


def recognise(base_url: str, headers: Optional[Mapping[str, str]] = None) -> ServerProfile:
    """The profile of the server at ``base_url``, by its host or an answer's headers; ``UNKNOWN`` if none fits."""
    host = urlsplit(base_url).hostname or ""
    for each in PROFILES.values():
        if any(host == known or host.endswith("." + known) for known in each.hosts):
            return each
    if headers is not None:
        for each in PROFILES.values():
            if any(name in headers for name in each.headers):
                return each
    return UNKNOWN
