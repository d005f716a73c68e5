"""`OpenAI` and its kin: the SDK's classes, with `runs`."""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, cast, overload

import openai

from deadstop.clients.adopted import ATTRIBUTE, adopt_async, adopt_sync, keep, share, url_in_force
from deadstop.clients.helpers import hook_made_resources, hook_resources

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec, Self

    from deadstop.runs.blocking import Runs
    from deadstop.runs.concurrent import AsyncRuns

__all__ = ["AsyncAzureOpenAI", "AsyncOpenAI", "AzureOpenAI", "OpenAI", "is_ours", "liken"]

_URL = "_deadstop_url"

_copied: ContextVar[Optional[type]] = ContextVar("deadstop_copied", default=None)
"""The class of a client that is being made as a copy: it gets the other's runs, and keeps none of its own."""

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    P = ParamSpec("P")
    S = TypeVar("S")
    R = TypeVar("R")

    # For type checkers, which can't follow `_prepared` and `_sharing`: what they find is the SDK's own parameters, of
    # whichever SDK is there, and beside them a form that has `runs_url`.
    def _as(
        theirs: Callable[Concatenate[Any, P], Any],
    ) -> Callable[[Callable[[S], R]], Callable[Concatenate[S, P], R]]: ...


class _Likeness(type(openai.OpenAI)):  # type: ignore[misc]
    """While `install()` is on, the SDK's own clients count as ours too: they go by the same names then."""

    installed = False

    def __instancecheck__(cls, thing: Any) -> bool:
        return cls.__subclasscheck__(type(thing))

    def __subclasscheck__(cls, other: type) -> bool:
        if super().__subclasscheck__(other):
            return True
        theirs: Any = next(each for each in cls.__mro__ if each.__module__.startswith("openai"))
        return _Likeness.installed and issubclass(other, theirs)


class _Sync:
    @property
    def runs(self) -> Runs:
        """The runs of this client and its copies."""
        adopted: Any = self.__dict__.get(ATTRIBUTE) or adopt_sync(self)
        return adopted.runs  # type: ignore[no-any-return]

    def request(self, *args: Any, **kwargs: Any) -> Any:
        # Not by `adopt_sync` alone: each call passes here, and a function more that does next to nothing shows.
        adopted = self.__dict__.get(ATTRIBUTE) or adopt_sync(self)
        return adopted.request(self, super().request, args, kwargs)  # type: ignore[misc]

    def close(self) -> None:
        try:
            super().close()  # type: ignore[misc]
        finally:
            adopted = self.__dict__.get(ATTRIBUTE)
            if adopted is not None:
                adopted.close(self)

    def _calculate_retry_timeout(self, *args: Any, **kwargs: Any) -> float:
        return adopt_sync(self).pause(super()._calculate_retry_timeout(*args, **kwargs))  # type: ignore[misc]


class _Async:
    @property
    def runs(self) -> AsyncRuns:
        """The runs of this client and its copies."""
        adopted: Any = self.__dict__.get(ATTRIBUTE) or adopt_async(self)
        return adopted.runs  # type: ignore[no-any-return]

    async def request(self, *args: Any, **kwargs: Any) -> Any:
        adopted = self.__dict__.get(ATTRIBUTE) or adopt_async(self)
        return await adopted.request(self, super().request, args, kwargs)  # type: ignore[misc]

    def _calculate_retry_timeout(self, *args: Any, **kwargs: Any) -> float:
        return adopt_async(self).pause(super()._calculate_retry_timeout(*args, **kwargs))  # type: ignore[misc]

    async def close(self) -> None:
        try:
            await super().close()  # type: ignore[misc]
        finally:
            adopted = self.__dict__.get(ATTRIBUTE)
            if adopted is not None:
                await adopted.aclose(self)


functools.update_wrapper(_Sync.request, openai.OpenAI.request)  # for who inspects it
functools.update_wrapper(_Async.request, openai.AsyncOpenAI.request)


def _sharing(copy: F, adopt: Callable[[Any], Any]) -> F:
    """`copy()` that gives the copy the client's runs; with the SDK's own signature, and `runs_url`.

    The runs are those of the client, so another ledger than theirs is a UsageError.
    """

    @functools.wraps(copy)
    def shared(self: Any, *args: Any, runs_url: Optional[str] = None, **kwargs: Any) -> Any:
        token = _copied.set(type(self))
        try:
            made = share(adopt(self), copy(self, *args, **kwargs))
        finally:
            _copied.reset(token)
        keep(adopt(made), made, runs_url)
        return made

    shared.__signature__ = _with_url(copy)  # type: ignore[attr-defined]
    return cast(F, shared)


def _with_url(function: Any) -> inspect.Signature:
    signature = inspect.signature(function)
    more = inspect.Parameter("runs_url", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Optional[str])
    kinds = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    rest = [each for each in signature.parameters.values() if each.kind is inspect.Parameter.VAR_KEYWORD]
    return signature.replace(parameters=[*kinds, more, *rest])


def _prepared(init: Any) -> Any:
    """A constructor that imports the machinery first; with the SDK's own signature, and `runs_url`.

    Not later: a signal handler that looks for runs must not come upon a half of it.
    """

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, runs_url: Optional[str] = None, **kwargs: Any) -> None:
        for name in ("calls.blocking", "calls.entry", "clients.channel", "runs.blocking", "runs.concurrent"):
            import_module(f"deadstop.{name}")
        first = _URL not in self.__dict__  # Azure's constructor comes by here twice
        if first:
            self.__dict__[_URL] = None if _copied.get() is type(self) else _checked_url(runs_url)
        init(self, *args, **kwargs)
        hook_made_resources(self)  # by an SDK that makes them at once
        if first and self.__dict__[_URL] is not None:
            keep((adopt_async if isinstance(self, _Async) else adopt_sync)(self), self, self.__dict__[_URL])

    __init__.__signature__ = _with_url(init)  # type: ignore[attr-defined]
    return __init__


def _checked_url(runs_url: Optional[str]) -> Optional[str]:
    import_module("deadstop.runs.settings").check_settings()
    return url_in_force(runs_url)


@hook_resources
class OpenAI(_Sync, openai.OpenAI, metaclass=_Likeness):
    """`openai.OpenAI` whose calls can be cancelled at any moment: same constructor, same behaviour, and `runs`.

    `runs_url` is the address of a ledger (`sqlite:`, `sqlite:////path/runs.db`, `postgresql://...`; or from
    `DEADSTOP_URL`): with one, runs can be cancelled from other processes, and cancels outlive a crash. Raises
    LedgerError if it can't be used. Without one nothing is kept. After a space it takes a bus between hosts:
    `sqlite: nats://bus:4222`; a bus alone will do, too. Raises UsageError for a bad `DEADSTOP_*` setting.
    """

    if TYPE_CHECKING:

        @overload
        @_as(openai.OpenAI.__init__)
        def __init__(self) -> None: ...
        @overload
        def __init__(self, *args: Any, runs_url: Optional[str], **kwargs: Any) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        @overload
        @_as(openai.OpenAI.copy)
        def copy(self) -> Self: ...
        @overload
        def copy(self, *args: Any, runs_url: Optional[str], **kwargs: Any) -> Self: ...
        def copy(self, *args: Any, **kwargs: Any) -> Self: ...
    else:
        __init__ = _prepared(openai.OpenAI.__init__)
        copy = _sharing(openai.OpenAI.copy, adopt_sync)

    with_options = copy


@hook_resources
class AsyncOpenAI(_Async, openai.AsyncOpenAI, metaclass=_Likeness):
    """`openai.AsyncOpenAI` whose calls can be cancelled at any moment, from any thread, on asyncio and trio."""

    if TYPE_CHECKING:

        @overload
        @_as(openai.AsyncOpenAI.__init__)
        def __init__(self) -> None: ...
        @overload
        def __init__(self, *args: Any, runs_url: Optional[str], **kwargs: Any) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        @overload
        @_as(openai.AsyncOpenAI.copy)
        def copy(self) -> Self: ...
        @overload
        def copy(self, *args: Any, runs_url: Optional[str], **kwargs: Any) -> Self: ...
        def copy(self, *args: Any, **kwargs: Any) -> Self: ...
    else:
        __init__ = _prepared(openai.AsyncOpenAI.__init__)
        copy = _sharing(openai.AsyncOpenAI.copy, adopt_async)

    with_options = copy


@hook_resources
class AzureOpenAI(openai.AzureOpenAI, OpenAI):
    """`openai.AzureOpenAI` with `runs`; see `OpenAI`."""

    if TYPE_CHECKING:

        @overload
        @_as(openai.AzureOpenAI.__init__)
        def __init__(self) -> None: ...
        @overload
        def __init__(self, *args: Any, runs_url: Optional[str] = None, **kwargs: Any) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        @overload
        @_as(openai.AzureOpenAI.copy)
        def copy(self) -> Self: ...
        @overload
        def copy(self, *args: Any, runs_url: Optional[str], **kwargs: Any) -> Self: ...
        def copy(self, *args: Any, **kwargs: Any) -> Self: ...
    else:
        __init__ = _prepared(openai.AzureOpenAI.__init__)
        copy = _sharing(openai.AzureOpenAI.copy, adopt_sync)

    with_options = copy


@hook_resources
class AsyncAzureOpenAI(openai.AsyncAzureOpenAI, AsyncOpenAI):
    """`openai.AsyncAzureOpenAI` with `runs`; see `AsyncOpenAI`."""

    if TYPE_CHECKING:

        @overload
        @_as(openai.AsyncAzureOpenAI.__init__)
        def __init__(self) -> None: ...
        @overload
        def __init__(self, *args: Any, runs_url: Optional[str] = None, **kwargs: Any) -> None: ...
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        @overload
        @_as(openai.AsyncAzureOpenAI.copy)
        def copy(self) -> Self: ...
        @overload
        def copy(self, *args: Any, runs_url: Optional[str], **kwargs: Any) -> Self: ...
        def copy(self, *args: Any, **kwargs: Any) -> Self: ...
    else:
        __init__ = _prepared(openai.AsyncAzureOpenAI.__init__)
        copy = _sharing(openai.AsyncAzureOpenAI.copy, adopt_async)

    with_options = copy


def is_ours(client: Any) -> bool:
    """Whether a client is an instance of one of the classes here, and not only passes for one."""
    return isinstance(client, (_Sync, _Async))


def liken(on: bool) -> None:
    """Whether the SDK's own clients pass for ours in `isinstance` and `issubclass`."""
    _Likeness.installed = on
