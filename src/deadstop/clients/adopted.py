"""What a client of ours carries: its registry and its runs, shared with its copies.

The machinery is imported when a client is first used, so that importing deadstop costs next to nothing.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Callable, Union

if TYPE_CHECKING:
    from deadstop.runs.blocking import Runs
    from deadstop.runs.concurrent import AsyncRuns
    from deadstop.runs.registry import Registry

__all__ = ["ATTRIBUTE", "Adopted", "adopt_async", "adopt_sync", "share"]

ATTRIBUTE = "_deadstop"


class Adopted:
    """A client's part in deadstop. The HTTP client is prepared when it is first used, and again if it is replaced.

    `run(call, send, args, kwargs)` runs one call of the SDK; `pause(seconds)` is its wait before a retry.
    """

    __slots__ = ("_hook", "_http", "_known", "pause", "registry", "run", "runs")

    def __init__(
        self,
        registry: Registry,
        runs: Union[Runs, AsyncRuns],
        *,
        hook: Callable[[Any], bool],
        run: Callable[..., Any],
        pause: Callable[[float], float],
    ) -> None:
        self.registry = registry
        self.runs = runs
        self.run = run
        self.pause = pause
        self._hook = hook
        self._http: Any = None
        self._known = False

    def request(self, client: Any, send: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """`client.request(...)` as a call of a run; to be awaited for an async client."""
        http_client = client._client
        if self._http is None or self._http() is not http_client:
            self._known = self._hook(http_client)
            self._http = weakref.ref(http_client)
            self.registry.http_clients.add(http_client)
        options = args[1] if len(args) > 1 else kwargs["options"]
        call = self.registry.begin(options.method, str(options.url), streamed=bool(kwargs.get("stream")))
        if not self._known:  # nobody will tell when it sends, and nothing in it can be interrupted
            call.begin_exchange(opaque=True)
        return self.run(call, send, args, kwargs)

    def for_copy(self) -> Adopted:
        """The part of a copy of the client: the same runs; maybe another HTTP client."""
        return Adopted(self.registry, self.runs, hook=self._hook, run=self.run, pause=self.pause)


def adopt_sync(client: Any) -> Adopted:
    """Give a sync client runs, if it has none yet."""
    adopted: Any = client.__dict__.get(ATTRIBUTE)
    if adopted is None:
        from deadstop.calls import blocking, entry
        from deadstop.runs.blocking import Run, Runs
        from deadstop.runs.registry import Registry

        registry = Registry(Run)
        runs = Runs(registry, blocking.reset_client)
        made = Adopted(registry, runs, hook=blocking.hook_client, run=entry.run_blocking, pause=entry.retry_pause)
        # setdefault: two threads may use a new client for the first time at once.
        adopted = client.__dict__.setdefault(ATTRIBUTE, made)
    return adopted  # type: ignore[no-any-return]


def adopt_async(client: Any) -> Adopted:
    """Give an async client runs, if it has none yet."""
    adopted: Any = client.__dict__.get(ATTRIBUTE)
    if adopted is None:
        from deadstop.calls import concurrent, entry
        from deadstop.runs.concurrent import AsyncRun, AsyncRuns
        from deadstop.runs.registry import Registry

        registry = Registry(AsyncRun, in_task=True)
        runs = AsyncRuns(registry, concurrent.reset_client)
        made = Adopted(registry, runs, hook=concurrent.hook_client, run=entry.run_concurrent, pause=entry.retry_pause)
        adopted = client.__dict__.setdefault(ATTRIBUTE, made)
    return adopted  # type: ignore[no-any-return]


def share(adopted: Adopted, copy: Any) -> Any:
    """Let a copy of a client have the client's runs."""
    copy.__dict__[ATTRIBUTE] = adopted.for_copy()
    return copy
