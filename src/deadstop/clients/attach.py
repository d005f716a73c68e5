"""`attach()`: runs for a client that somebody else built."""

from __future__ import annotations

import inspect
import weakref
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Optional, Protocol, Union, overload

from deadstop.clients.adopted import ATTRIBUTE, Adopted, adopt_async, adopt_sync, keep, share, url_in_force
from deadstop.clients.drop_in import is_ours
from deadstop.clients.helpers import LATE, hook_client_resources, hook_made_resources
from deadstop.errors import UnsupportedClientError

if TYPE_CHECKING:
    from deadstop.runs.blocking import Runs
    from deadstop.runs.concurrent import AsyncRuns

__all__ = ["attach"]


class _Client(Protocol):
    """What a type checker takes for a sync client: `close()` tells the two apart in every SDK of that generator."""

    max_retries: int

    def close(self) -> None: ...


class _AsyncClient(Protocol):
    max_retries: int

    async def close(self) -> None: ...


@overload
def attach(client: _Client, *, url: Optional[str] = None) -> Runs: ...
@overload
def attach(client: _AsyncClient, *, url: Optional[str] = None) -> AsyncRuns: ...
def attach(client: Any, *, url: Optional[str] = None) -> Union[Runs, AsyncRuns]:
    """Runs for a client that was built elsewhere: `Runs` for a sync one, `AsyncRuns` for an async one.

    The client goes on as it is, its class is left alone, and its calls can be cancelled from now on; those of the
    copies it makes later (`copy()`, `with_options()`), too. Works for the clients of `openai` and of the SDKs that
    come from the same generator (`anthropic`, `groq`, `together`, ...). Attaching twice gives the same runs.

    `url` is the address of a ledger, as `runs_url` of `OpenAI`; without it `DEADSTOP_URL` counts.

    Raises `UnsupportedClientError` for anything else, LedgerError if the ledger can't be used, `UsageError` for a
    `DEADSTOP_*` setting that can't be.
    """
    if is_ours(client):
        if url is not None:
            keep(_adopt(client), client, url)
        return client.runs  # type: ignore[no-any-return]
    request = getattr(type(client), "request", None)
    missing = [name for name in ("_client", "_calculate_retry_timeout") if not hasattr(client, name)]
    if isinstance(client, type) or request is None or missing:
        raise UnsupportedClientError(
            f"attach() takes a client of openai or of an SDK built like it, and got {_named(client)}. "
            "Give the client object itself, such as the `openai.OpenAI(...)` that your framework holds."
        )
    known: Any = client.__dict__.get(ATTRIBUTE)
    if known is None:
        import_module("deadstop.runs.settings").check_settings()
    url = url_in_force(url) if url is not None or known is None else None
    if known is None:
        known = _attach(client)
    keep(known, client, url)
    return known.runs  # type: ignore[no-any-return]


def _adopt(client: Any) -> Adopted:
    # Not what its `request` is: an instrumentor's, which gives what the SDK's gives, need be no coroutine function.
    return (adopt_async if hasattr(type(client), "__aenter__") else adopt_sync)(client)


def _named(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"


def _attach(client: Any) -> Adopted:
    adopted = _adopt(client)
    _override(client, adopted)
    hook_client_resources(client)
    return adopted


_OVERRIDDEN = ("request", "close", "copy", "with_options", "_calculate_retry_timeout")


async def _close_after(closing: Any, adopted: Adopted, client: Any) -> None:
    try:
        if closing is not None:
            await closing
    finally:
        await adopted.aclose(client)


def _override(client: Any, adopted: Adopted) -> None:
    # Weakly: a client that refers to itself would stay until the garbage collector comes by, with its sockets.
    ref = weakref.ref(client)
    cls: Any = type(client)
    # What somebody else has put on the client stays below ours (logfire.instrument_openai(client) does).
    theirs = {name: client.__dict__[name] for name in _OVERRIDDEN if name in client.__dict__}

    def below(name: str, alive: Any) -> Any:
        if name in theirs:
            return theirs[name]
        method = getattr(cls, name)
        return method.__get__(alive, cls) if hasattr(method, "__get__") else method  # a mock is not bound

    def request(*args: Any, **kwargs: Any) -> Any:
        alive = ref()
        hook_made_resources(alive, LATE)
        return adopted.request(alive, below("request", alive), args, kwargs)

    def calculate(*args: Any, **kwargs: Any) -> float:
        return adopted.pause(below("_calculate_retry_timeout", ref())(*args, **kwargs))

    def copied(name: str, *args: Any, **kwargs: Any) -> Any:
        twin = share(adopted, below(name, ref())(*args, **kwargs))
        _override(twin, twin.__dict__[ATTRIBUTE])
        hook_client_resources(twin)
        return twin

    def copy(*args: Any, **kwargs: Any) -> Any:
        return copied("copy", *args, **kwargs)

    def with_options(*args: Any, **kwargs: Any) -> Any:
        return copied("with_options", *args, **kwargs)

    def close() -> Any:
        client = ref()  # None in the destructor, which closes with openai 1.0, if the collector comes by
        try:
            closing = None if client is None else below("close", client)()
        except BaseException:
            if not adopted.registry.in_task:
                adopted.close(client)
            raise
        return _close_after(closing, adopted, client) if adopted.registry.in_task else adopted.close(client)

    client._calculate_retry_timeout = calculate
    for made in (request, close, copy, with_options):
        if hasattr(cls, made.__name__):
            setattr(client, made.__name__, made)
            made.__signature__ = _signature(cls, made.__name__)  # type: ignore[attr-defined]


@lru_cache(maxsize=64)
def _signature(cls: Any, name: str) -> Optional[inspect.Signature]:
    """That of a client's method, as `inspect` tells it: without `self`."""
    method = getattr(cls, name, None)
    if method is None:
        return None
    whole = inspect.signature(method)
    return whole.replace(parameters=list(whole.parameters.values())[1:])
