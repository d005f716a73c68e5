"""What a client of ours carries: its registry and its runs, shared with its copies."""

from __future__ import annotations

import weakref
from typing import Any, Callable, Union

from deadstop.calls import blocking, concurrent
from deadstop.calls.entry import retry_pause, run_blocking, run_concurrent
from deadstop.runs.blocking import Run, Runs
from deadstop.runs.concurrent import AsyncRun, AsyncRuns
from deadstop.runs.registry import Registry

__all__ = ["ATTRIBUTE", "Adopted", "adopt_async", "adopt_sync", "pause", "request_async", "request_sync", "share"]

ATTRIBUTE = "_deadstop"


class Adopted:
    """A client's part in deadstop. The HTTP client is prepared when it is first used, and again if it is replaced."""

    __slots__ = ("_hook", "_http", "registry", "runs")

    def __init__(self, registry: Registry, runs: Union[Runs, AsyncRuns], hook: Callable[[Any], None]) -> None:
        self.registry = registry
        self.runs = runs
        self._hook = hook
        self._http: Any = None

    def ready(self, client: Any) -> Registry:
        """Prepare the client's HTTP client if that is still to do."""
        http_client = client._client
        if self._http is None or self._http() is not http_client:
            self._hook(http_client)
            self._http = weakref.ref(http_client)
        return self.registry

    def for_copy(self) -> Adopted:
        """The part of a copy of the client: the same runs; maybe another HTTP client."""
        return Adopted(self.registry, self.runs, self._hook)


def adopt_sync(client: Any) -> Adopted:
    """Give a sync client runs, if it has none yet."""
    adopted: Any = client.__dict__.get(ATTRIBUTE)
    if adopted is None:
        ref = weakref.ref(client)
        runs = Runs(Registry(Run), lambda: blocking.reset_client(_alive(ref)._client))
        # setdefault: two threads may use a new client for the first time at once.
        adopted = client.__dict__.setdefault(ATTRIBUTE, Adopted(runs._registry, runs, blocking.hook_client))
    return adopted  # type: ignore[no-any-return]


def adopt_async(client: Any) -> Adopted:
    """Give an async client runs, if it has none yet."""
    adopted: Any = client.__dict__.get(ATTRIBUTE)
    if adopted is None:
        ref = weakref.ref(client)
        runs = AsyncRuns(
            Registry(AsyncRun, in_task=True), lambda: concurrent.reset_client(_alive(ref)._client)
        )
        adopted = client.__dict__.setdefault(ATTRIBUTE, Adopted(runs._registry, runs, concurrent.hook_client))
    return adopted  # type: ignore[no-any-return]


def _alive(ref: Callable[[], Any]) -> Any:
    client = ref()
    if client is None:
        raise ReferenceError("The client whose runs these are is gone.")
    return client


def share(adopted: Adopted, copy: Any) -> Any:
    """Let a copy of a client have the client's runs."""
    copy.__dict__[ATTRIBUTE] = adopted.for_copy()
    return copy


def request_sync(adopted: Adopted, client: Any, send: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`client.request(...)` as a call of a run."""
    registry = adopted.ready(client)
    options = args[1] if len(args) > 1 else kwargs["options"]
    call = registry.begin(options.method, str(options.url), streamed=bool(kwargs.get("stream")))
    return run_blocking(call, lambda: send(*args, **kwargs))


async def request_async(adopted: Adopted, client: Any, send: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`await client.request(...)` as a call of a run."""
    registry = adopted.ready(client)
    options = args[1] if len(args) > 1 else kwargs["options"]
    call = registry.begin(options.method, str(options.url), streamed=bool(kwargs.get("stream")))
    return await run_concurrent(call, lambda: send(*args, **kwargs))


def pause(seconds: float) -> float:
    """The SDK's wait before a retry, made interruptible."""
    return retry_pause(seconds)
