"""What a caller holds of an SDK stream: a twin in no reference cycle, that says when its response is taken out."""

from __future__ import annotations

from typing import Any, Callable

from deadstop.calls.call import Call

__all__ = ["CALL_OF", "bare", "twin_of"]

CALL_OF = "_deadstop_call"
"""The attribute of a stream or a response that names its call."""

_twins: dict[type, type] = {}


def bare(stream: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The SDK's own stream, and how its twin takes its place: as it is, or in what an instrumentor put around it.

    Who patches the `request` of the SDK's classes (OpenInference does) is below us, and what it gives may be a proxy
    (wrapt's) that passes for the stream.
    """
    outermost = proxy = None
    while type(stream) is not stream.__class__ and hasattr(stream, "__wrapped__"):
        proxy, stream = stream, stream.__wrapped__
        outermost = outermost or proxy

    def put(twin: Any) -> Any:
        if proxy is None:
            return twin
        proxy.__wrapped__ = twin
        return outermost

    return stream, put


def twin_of(stream: Any) -> Any:
    """Another stream with the attributes of `stream`, that is in no reference cycle."""
    cls = type(stream)
    shown = _twins.get(cls)
    if shown is None:
        shown = _twins[cls] = _with_shown_response(cls)
    twin: Any = object.__new__(shown)
    # Copied, not shared: CPython 3.13 keeps attributes inside the object, and its collector does not see a shared dict.
    twin.__dict__.update(stream.__dict__)
    return twin


def _with_shown_response(cls: Any) -> type:
    """A stream that notes when its caller takes the HTTP response out: it may be read on without the stream."""

    class Stream(cls):  # type: ignore[misc]
        @property
        def response(self) -> Any:
            call: Call = self.__dict__[CALL_OF]
            call.shown = True
            if call.drains and call.drain is not None:  # what is read there would be seen
                call.drain.end()
            return self.__dict__["response"]

        @response.setter
        def response(self, response: Any) -> None:
            self.__dict__["response"] = response

    if hasattr(cls, "close"):  # the SDK's own, but for the property: closing a stream shows nothing of it

        def close(self: Any) -> Any:
            response = self.__dict__["response"]
            return response.aclose() if hasattr(cls, "__anext__") else response.close()

        Stream.close = close
    Stream.__name__, Stream.__qualname__, Stream.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return Stream
