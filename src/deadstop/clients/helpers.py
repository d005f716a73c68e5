"""The SDK's stream helpers (`chat.completions.stream()` and its kin), fenced too, what it does in threads, its polling.

A helper makes several events of one chunk, so the fence below it is not enough. It is reached through the resource
that makes it, when that resource is first asked for: nothing is imported early.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import inspect
from typing import Any, Callable, TypeVar

__all__ = ["LATE", "hook_client_resources", "hook_made_resources", "hook_resources"]

C = TypeVar("C", bound=type)

Hook = Callable[[Any], Any]


class _Lazy:
    """A resource attribute that is prepared when it is first asked for (non-data descriptor, like the SDK's own)."""

    def __init__(self, original: Any, hook: Hook) -> None:
        self._original = original
        self._hook = hook

    def __get__(self, holder: Any, owner: Any = None) -> Any:
        resource = self._original.__get__(holder, owner)
        if holder is not None:
            self._hook(resource)
        return resource


def _fenced_manager(cls: Any) -> type:
    """A stream helper's context manager that hands out a fenced helper."""

    class Manager(cls):  # type: ignore[misc]
        def __enter__(self) -> Any:
            from deadstop.calls.fence import fence_helper

            helper = super().__enter__()
            fence_helper(helper)
            return helper

        async def __aenter__(self) -> Any:
            from deadstop.calls.fence import fence_helper

            helper = await super().__aenter__()
            fence_helper(helper)
            return helper

    return Manager


def _with_stream(cls: Any) -> type:
    """A resource whose `stream()` gives a fenced helper."""

    class Resource(cls):  # type: ignore[misc]
        @functools.wraps(cls.stream)
        def stream(self, *args: Any, **kwargs: Any) -> Any:
            from deadstop.calls.pool import recast

            manager = super().stream(*args, **kwargs)
            recast(manager, _fenced_manager)
            return manager

    return Resource


class _Uploads:
    """A client, or its `files`, for the threads in which the SDK uploads: each goes on in the scope it was begun in."""

    def __init__(self, inner: Any, context: contextvars.Context) -> None:
        self._inner = inner
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def files(self) -> _Uploads:
        return _Uploads(self._inner.files, self._context)

    def create(self, *args: Any, **kwargs: Any) -> Any:
        return self._context.copy().run(self._inner.create, *args, **kwargs)


def _with_uploads(cls: Any) -> type:
    """A resource whose `upload_and_poll()` uploads in the scope of its caller (tasks do so by themselves)."""

    class Resource(cls):  # type: ignore[misc]
        @functools.wraps(cls.upload_and_poll)
        def upload_and_poll(self, *args: Any, **kwargs: Any) -> Any:
            mine = copy.copy(self)
            mine._client = _Uploads(self._client, contextvars.copy_context())
            return cls.upload_and_poll(mine, *args, **kwargs)

    return Resource


def _with_hooked_children(cls: Any) -> type:
    """A resource whose children are prepared when they are first asked for."""
    lazy = {name: _Lazy(cls.__dict__[name], hook) for name, hook in _HOOKS.items() if _is_lazy(cls.__dict__.get(name))}
    return type(cls.__name__, (cls,), lazy)


def _hook_stream(resource: Any) -> None:
    from deadstop.calls.pool import recast

    if callable(getattr(type(resource), "stream", None)):
        recast(resource, _with_stream)


def _hook_children(resource: Any) -> None:
    from deadstop.calls.pool import recast

    recast(resource, _with_hooked_children)
    for name, each in list(vars(resource).items()):  # made already, or by an SDK that makes them at once
        if name in _HOOKS:
            _HOOKS[name](each)


def _hook_connect(resource: Any) -> None:
    from deadstop.calls.pool import recast
    from deadstop.clients.realtime import with_tracked_connections

    if callable(getattr(type(resource), "connect", None)):
        recast(resource, with_tracked_connections)


def _hook_uploads(resource: Any) -> None:
    from deadstop.calls.pool import recast

    _hook_pauses(resource)  # first: a copy of what was recast twice is of the class of the first time
    upload = getattr(type(resource), "upload_and_poll", None)
    if upload is not None and not inspect.iscoroutinefunction(upload):
        recast(resource, _with_uploads)


def _hook_pauses(resource: Any) -> None:
    from deadstop.calls.pool import recast
    from deadstop.clients.polls import with_pauses

    if callable(getattr(type(resource), "_sleep", None)):
        recast(resource, with_pauses)


def _is_lazy(attribute: Any) -> bool:
    return hasattr(attribute, "__get__") and not isinstance(attribute, (property, type(_is_lazy)))


_HOOKS: dict[str, Hook] = {
    "chat": _hook_children,
    "beta": _hook_children,
    "completions": _hook_stream,
    "responses": _hook_stream,
    "messages": _hook_stream,
    "realtime": _hook_connect,
    "vector_stores": _hook_children,
    "file_batches": _hook_uploads,
    "files": _hook_pauses,
    "videos": _hook_pauses,
    "threads": _hook_children,
    "runs": _hook_pauses,
    "agents": _hook_children,
    "sessions": _hook_pauses,
}

_SEEN_TO = ("chat", "beta", "responses", "messages", "realtime", "vector_stores")
LATE = ("files", "videos")
"""Resources of which nothing is ours before their second request: a client that we leave alone is not to load them."""


def hook_resources(cls: C) -> C:
    """Class decorator: prepare the resources of a client class."""
    for name in (*_SEEN_TO, *LATE):
        for base in cls.__mro__:
            if name in base.__dict__:
                original = base.__dict__[name]
                if _is_lazy(original):
                    setattr(cls, name, _Lazy(original, _HOOKS[name]))
                break
    return cls


def hook_client_resources(client: Any) -> None:
    """Prepare the resources of a client whose class is to be left alone."""
    for name in _SEEN_TO:
        resource = getattr(client, name, None)
        if resource is not None:
            _HOOKS[name](resource)


def hook_made_resources(client: Any, names: tuple[str, ...] = (*_SEEN_TO, *LATE)) -> None:
    """Prepare what the client has made of its resources by now: those that are late, or that its SDK makes at once."""
    for name in names:
        resource = client.__dict__.get(name)
        if resource is not None:
            _HOOKS[name](resource)
