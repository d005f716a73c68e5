"""What a client of ours carries: its registry and its runs, shared with its copies.

The machinery is imported when a client is first used, so that importing deadstop costs next to nothing.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from deadstop.errors import LedgerError, UsageError
from deadstop.kinds.register import passing, unrelated

if TYPE_CHECKING:
    from deadstop.runs.blocking import Runs
    from deadstop.runs.concurrent import AsyncRuns
    from deadstop.runs.registry import Registry

__all__ = ["ATTRIBUTE", "Adopted", "adopt_async", "adopt_sync", "fall_back_on", "keep", "share", "url_in_force"]

ATTRIBUTE = "_deadstop"

log = logging.getLogger("deadstop")

_fallback: list[str] = []  # the ledger of clients that are given none, if any


class Adopted:
    """A client's part in deadstop. The HTTP client is prepared when it is first used, and again if it is replaced.

    `run(call, send, args, kwargs)` runs one call of the SDK; `pause(seconds)` is its wait before a retry.
    """

    __slots__ = ("_channel", "_connect", "_hook", "_http", "_known", "pause", "registry", "run", "runs")

    def __init__(
        self,
        registry: Registry,
        runs: Union[Runs, AsyncRuns],
        *,
        hook: Callable[[Any], bool],
        run: Callable[..., Any],
        pause: Callable[[float], float],
        connect: Callable[[Any], Any],
    ) -> None:
        self.registry = registry
        self.runs = runs
        self.run = run
        self.pause = pause
        self._hook = hook
        self._connect = connect
        self._http: Any = None
        self._known = False
        self._channel: Any = None

    def request(self, client: Any, send: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """`client.request(...)` as a call of a run; to be awaited for an async client."""
        http_client = client._client
        if self._http is None or self._http() is not http_client:
            self._known = self._hook(http_client)
            self._http = weakref.ref(http_client)
            self.registry.http_clients.add(http_client)
        options = args[1] if len(args) > 1 else kwargs["options"]
        url = str(options.url)
        passes = None if url in unrelated() else passing(options.method, url, partial(_body, options))
        call = self.registry.begin(
            options.method,
            url,
            streamed=bool(kwargs.get("stream")),
            passing=passes,
            channel=None if passes is None else lambda: self.channel(client),
        )
        try:
            call.opaque = not self._known
            return self.run(call, send, args, kwargs)
        except BaseException:  # Ctrl-C, before it had begun to run, or as it ended
            if call.left_at is None:
                call.leave()
            raise

    def channel(self, client: Any) -> Any:
        """The way to `client`'s server for cancels and status reads."""
        if self._channel is None:
            self._channel = self._connect(client)
            self.registry.channels.add(self._channel)
        if hasattr(self._channel, "at_home"):
            self._channel.at_home()
        return self._channel

    def close(self, client: Any) -> None:
        """The client is closed: what still goes on in the background ends."""
        for channel in self._closing(client):
            channel.close()

    async def aclose(self, client: Any) -> None:
        """As `close`, of an async client."""
        for channel in self._closing(client):
            await channel.aclose()

    def _closing(self, client: Any) -> list[Any]:
        home = self.registry.home()
        theirs = getattr(client, "_client", None)
        if home is not None and home._client is not theirs:  # a copy with an HTTP client of its own
            return [] if self._channel is None else [self._channel]
        self.registry.reconciler.close()
        if self.registry.keeper is not None:
            self.registry.keeper.close()
        return list(self.registry.channels)

    def for_copy(self) -> Adopted:
        """The part of a copy of the client: the same runs; maybe another HTTP client and another server."""
        return Adopted(self.registry, self.runs, hook=self._hook, run=self.run, pause=self.pause, connect=self._connect)


def _body(options: Any) -> Any:
    """The JSON body that the SDK is about to send, as far as it says."""
    body, extra = getattr(options, "json_data", None), getattr(options, "extra_json", None)
    return {**body, **extra} if isinstance(body, Mapping) and isinstance(extra, Mapping) else body


def adopt_sync(client: Any) -> Adopted:
    """Give a sync client runs, if it has none yet."""
    adopted: Any = client.__dict__.get(ATTRIBUTE)
    if adopted is None:
        from deadstop.calls import blocking, entry
        from deadstop.clients.channel import Channel
        from deadstop.runs.blocking import Run, Runs
        from deadstop.runs.registry import Registry

        registry = Registry(Run)
        http_clients = registry.http_clients
        registry.reset = lambda: sum(blocking.reset_client(each) for each in list(http_clients))
        made = Adopted(
            registry,
            Runs(registry),
            hook=blocking.hook_client,
            run=entry.run_blocking,
            pause=entry.retry_pause,
            connect=Channel,
        )
        _lead_home(registry, client)
        # setdefault: two threads may use a new client for the first time at once.
        adopted = client.__dict__.setdefault(ATTRIBUTE, made)
    return adopted  # type: ignore[no-any-return]


def adopt_async(client: Any) -> Adopted:
    """Give an async client runs, if it has none yet."""
    adopted: Any = client.__dict__.get(ATTRIBUTE)
    if adopted is None:
        from deadstop.calls import concurrent, entry
        from deadstop.clients.channel import AsyncChannel
        from deadstop.runs.concurrent import AsyncRun, AsyncRuns
        from deadstop.runs.registry import Registry

        registry = Registry(AsyncRun, in_task=True)
        http_clients = registry.http_clients

        async def reset() -> int:
            return sum([await concurrent.reset_client(each) for each in list(http_clients)])

        registry.reset = reset
        made = Adopted(
            registry,
            AsyncRuns(registry),
            hook=concurrent.hook_client,
            run=entry.run_concurrent,
            pause=entry.retry_pause,
            connect=AsyncChannel,
        )
        _lead_home(registry, client)
        adopted = client.__dict__.setdefault(ATTRIBUTE, made)
    return adopted  # type: ignore[no-any-return]


def url_in_force(url: Optional[str]) -> Optional[str]:
    """The ledger's address: the one given, or that of the environment (`DEADSTOP_URL`). None: no ledger.

    Raises LedgerError if it can't be used.
    """
    url = url or os.environ.get("DEADSTOP_URL") or None
    if url is not None:
        from deadstop.fleet.members import member_of

        member_of(url)
        return url
    return _fallback_in_force() if _fallback else None


def fall_back_on(url: Optional[str]) -> None:
    """Clients that are given no ledger use this one from now on, as far as it can be used. None: none, as at first."""
    _fallback[:] = [] if url is None else [url]


def _fallback_in_force() -> Optional[str]:
    try:
        from deadstop.fleet.members import member_of

        member_of(_fallback[0])
    except (LedgerError, ImportError) as error:  # a Python may come without sqlite3
        log.warning("Nothing of this process is put on record, and others can't cancel its runs: %s", error)
        _fallback.clear()
        return None
    return _fallback[0]


def keep(adopted: Adopted, client: Any, url: Optional[str]) -> None:
    """Have a client's runs kept in the ledger at `url`, from now on. Raises LedgerError, UsageError."""
    if url is None:
        return
    from deadstop.fleet.members import member_of
    from deadstop.runs.keeper import Keeper
    from deadstop.runs.pickup import PickUp

    registry, member = adopted.registry, member_of(url)
    if registry.keeper is not None:
        if registry.keeper.member is not member:
            raise UsageError(f"The runs of this client are kept in {registry.keeper.member.ledger.url} already.")
        return
    keeper = Keeper(registry, member)
    keeper.pick_up = PickUp(keeper, str(getattr(client, "base_url", "")))
    if registry.in_task:
        keeper.at_home = lambda work: registry.loop is not None and registry.loop.call(work)
        keeper.at_work = lambda: registry.loop is not None and registry.loop.turns()
    registry.keeper = keeper


def _lead_home(registry: Registry, client: Any) -> None:
    """Runs that are named by their id alone are those of the client that had `runs` first."""
    home, default = weakref.ref(client), registry.channel_to
    registry.home = home

    def channel_to() -> Any:
        alive = home()
        return default() if alive is None else alive.__dict__[ATTRIBUTE].channel(alive)

    registry.channel_to = channel_to


def share(adopted: Adopted, copy: Any) -> Any:
    """Let a copy of a client have the client's runs."""
    copy.__dict__[ATTRIBUTE] = adopted.for_copy()
    return copy
