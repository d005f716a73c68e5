"""Requests that the SDK builds and does not send, and moulds to cast more of them from."""

from __future__ import annotations

import copy
import threading
from typing import Any, Callable, NamedTuple

import anyio

from deadstop.calls.pool import recast
from deadstop.clients.adopted import ATTRIBUTE
from deadstop.kinds.base import Request

__all__ = ["FRESH", "KEYS", "Captured", "Mould", "builder", "is_personal", "lend", "sort_of"]

FRESH = 2.0
"""How long (seconds) a request that the SDK has built may serve as a mould for others: tokens expire."""


class _Plain:
    """What the twin carries instead of runs: its requests are nobody's run, and its backoff is not ours."""

    def request(self, client: Any, send: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return send(*args, **kwargs)

    def pause(self, seconds: float) -> float:
        return seconds


_OVERRIDES = ("request", "_calculate_retry_timeout", "copy", "with_options", "close")


KEYS = ("api_key", "admin_api_key", "organization", "project", "_custom_headers", "_custom_query")
"""What of a client may be replaced while it is in use."""


class Captured(BaseException):
    """A request that the SDK has built, taken from its hands. It must not take it for a failure to be retried."""

    def __init__(self, request: Any, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.request = request
        self.kwargs = kwargs


def _capturing(cls: Any) -> type:
    """An HTTP client that sends nothing, and gives up the request instead."""

    class Capture(cls):  # type: ignore[misc]
        def send(self, request: Any, **kwargs: Any) -> Any:
            raise Captured(request, kwargs)

        def __del__(self) -> None:
            """There is nothing to close."""

    return Capture


def _giving(cls: Any) -> type:
    """X.509 workload identity (openai 3.54) that gives a request up, which the SDK else sends past its HTTP client."""

    class Giving(cls):  # type: ignore[misc]
        def send_api_request(
            self, request: Any, *, expected_origin: Any, expected_authorization: Any, **kwargs: Any
        ) -> Any:
            raise Captured(request, {"auth": None, **kwargs})

    return Giving


_TOKEN = ("_cached_token", "_cached_token_expires_at_monotonic", "_cached_token_refresh_at_monotonic")


def _own_identity(twin: Any) -> None:
    auth = twin.__dict__.get("_workload_identity_auth")
    if not hasattr(auth, "send_api_request"):
        return
    # Not the client's: nobody is to wait for the connections on which that one renews its token.
    twin._workload_identity_auth = own = copy.copy(auth)
    own.theirs = auth
    own._lock = threading.Lock()
    own._condition, own._refreshing = threading.Condition(own._lock), False
    if hasattr(own, "_async_lock"):
        own._async_lock = anyio.Lock()
    recast(own, _giving)


def lend(twin: Any, http_client: Any) -> None:
    """Have `twin`, a builder, fetch the tokens that its client has not got with `http_client`."""
    own = twin.__dict__.get("_workload_identity_auth")
    if not hasattr(own, "send_api_request"):
        return
    own._http_client, theirs = http_client, own.theirs
    with theirs._lock:
        if (theirs._cached_token_expires_at_monotonic or 0) > (own._cached_token_expires_at_monotonic or 0):
            for name in _TOKEN:
                setattr(own, name, getattr(theirs, name))


def builder(client: Any) -> Any:
    """The client once more, to build requests: without retries and resources (they would keep the client alive)."""
    twin = copy.copy(client)
    for name, value in list(twin.__dict__.items()):
        if name in _OVERRIDES or getattr(value, "_client", None) is client:
            del twin.__dict__[name]
    twin.__dict__[ATTRIBUTE] = _Plain()
    twin._has_custom_http_client = True  # openai 1.0 closes the others in its destructor
    twin.max_retries = 0
    twin._client = copy.copy(client._client)
    recast(twin._client, _capturing)
    _own_identity(twin)
    return twin


class Mould(NamedTuple):
    """A request that the SDK has built lately, to cast others from."""

    request: Any
    kwargs: dict[str, Any]
    path: bytes
    made_at: float


def is_personal(client: Any) -> bool:
    """Whether the client's class has a hand in each single request (to sign it, say)."""
    provider = getattr(client, "_provider_runtime", None)
    if getattr(provider, "prepare_request", None) is not None:  # Bedrock's signs
        return True
    own = (getattr(type(client), "_prepare_request", None), getattr(type(client._client), "build_request", None))
    return any(each is not None and each.__module__.count(".") != 1 for each in own)  # openai._client, httpx._client


def sort_of(request: Request) -> Any:
    return request.method, tuple(request.query.items()), tuple(request.headers.items())
