"""What we add to h2's state of a connection, so that a call can leave its stream and take nothing from the others.

httpcore drops what a stream has received and nobody has read, and with it the room that this takes in the window of
the whole connection: 16 MB of such remains, and the server may send nothing to anybody any more (RFC 9113, 5.2.1).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from typing import Any

__all__ = ["guarded", "tidied"]

_CANCEL = 0x8  # RFC 9113, 7: the stream is not needed any more
_STREAM_CLOSED = 0x5

_REMEMBERED = 1000
"""How many streams that were reset are remembered: what the server sent before it knew is soon over."""


def tidied(cls: Any) -> type:
    """h2's state of a connection, whose streams can be left before their end."""

    class State(cls):  # type: ignore[misc]
        # Bytes that each stream has received, and that were not acknowledged yet; the streams that were reset.
        _deadstop_unread: dict[int, int]
        _deadstop_reset: deque[int]
        highest_outbound_stream_id: int  # h2's

        def __getattr__(self, name: str) -> Any:
            if name == "_deadstop_unread":
                return self.__dict__.setdefault(name, {})
            if name == "_deadstop_reset":
                return self.__dict__.setdefault(name, deque(maxlen=_REMEMBERED))
            raise AttributeError(name)

        def receive_data(self, data: bytes) -> Any:
            events = super().receive_data(data)
            for event in events:
                length = getattr(event, "flow_controlled_length", None)
                if length:
                    unread = self._deadstop_unread
                    unread[event.stream_id] = unread.get(event.stream_id, 0) + length
            return events

        def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
            super().acknowledge_received_data(acknowledged_size, stream_id)
            left = self._deadstop_unread.pop(stream_id, 0) - acknowledged_size
            if left > 0:
                self._deadstop_unread[stream_id] = left

        def deadstop_leave(self, stream_id: int, reset: bool) -> bool:
            """Give back what the stream has taken, and `reset` it unless it is at its end. Whether it was reset.

            What the server is to be told by it waits to be written.
            """
            told = False
            if stream_id > self.highest_outbound_stream_id:
                # It was never opened. The next to ask must not get the same one, while this one is still taken down:
                # a number that is passed over counts as closed (RFC 9113, 5.1.1).
                self.highest_outbound_stream_id = stream_id
                return False
            stream = self.streams.get(stream_id)
            with contextlib.suppress(Exception):  # the connection is over, and all of its streams
                if reset and stream is not None and not stream.closed:
                    self.reset_stream(stream_id, _CANCEL)
                    self._deadstop_reset.append(stream_id)
                    told = True
                unread = self._deadstop_unread.pop(stream_id, 0)
                if unread:
                    self.acknowledge_received_data(unread, stream_id)
            return told

    if hasattr(cls, "_prepare_for_sending"):
        State._prepare_for_sending = _once(cls._prepare_for_sending)
    return State


def _once(prepare: Any) -> Any:
    """A stream is reset once. h2 does it again for every frame that was on its way (RFC 9113, 5.1: ignore those)."""

    @functools.wraps(prepare)
    def prepared(self: Any, frames: Any) -> None:
        if self._deadstop_reset:
            frames = [each for each in frames if not _again(each, self._deadstop_reset)]
        prepare(self, frames)

    return prepared


def _again(frame: Any, reset: deque[int]) -> bool:
    return getattr(frame, "error_code", None) == _STREAM_CLOSED and frame.stream_id in reset


_OPERATIONS = (
    "acknowledge_received_data", "close_connection", "data_to_send", "deadstop_leave", "end_stream",
    "increment_flow_control_window", "initiate_connection", "local_flow_control_window", "receive_data",
    "reset_stream", "send_data",
)  # fmt: skip


def guarded(cls: Any) -> type:
    """h2's state of a connection, for several threads: h2 leaves that to its user, and httpcore does not do it.

    From asking for the next stream until its headers are written down a thread has it to itself: two that ask at once
    get the same one.
    """

    class State(cls):  # type: ignore[misc]
        @property
        def _deadstop_lock(self) -> Any:
            own = self.__dict__
            return own.get("_deadstop_rlock") or own.setdefault("_deadstop_rlock", threading.RLock())

        def get_next_available_stream_id(self) -> Any:
            self._deadstop_lock.acquire()
            try:
                stream_id = super().get_next_available_stream_id()
            except BaseException:
                self._deadstop_lock.release()
                raise
            self._deadstop_opener = threading.get_ident()
            return stream_id

        def send_headers(self, *args: Any, **kwargs: Any) -> None:
            try:
                with self._deadstop_lock:
                    super().send_headers(*args, **kwargs)
            finally:
                self.deadstop_opened()

        def deadstop_opened(self) -> None:
            """This thread opens no stream, or does not any more."""
            if self.__dict__.get("_deadstop_opener") == threading.get_ident():
                self.__dict__["_deadstop_opener"] = None
                self._deadstop_lock.release()

    for name in _OPERATIONS:
        setattr(State, name, _one_at_a_time(getattr(cls, name)))
    return State


def _one_at_a_time(method: Any) -> Any:
    @functools.wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._deadstop_lock:
            return method(self, *args, **kwargs)

    return locked
