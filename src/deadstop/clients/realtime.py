"""Responses over the SDK's realtime connections, as runs.

The connection that the user holds is the way to the server: a cancel goes out on it, and what the server says of the
run comes in on it, when its user reads. So every event that is sent or received is looked at here, and those of a
response that was cancelled are kept back.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections import deque
from functools import partial
from typing import Any, Callable, Optional

from deadstop.calls.errand import Result
from deadstop.calls.loops import Loop
from deadstop.calls.pool import recast
from deadstop.calls.workers import Workers
from deadstop.clients.adopted import adopt_async, adopt_sync
from deadstop.clients.outgoing import Outgoing
from deadstop.core.model import Attempt, Evidence
from deadstop.kinds.base import Request
from deadstop.kinds.realtime_response import REALTIME_RESPONSE as KIND

__all__ = ["with_tracked_connections"]

_HEAD = 400
"""How many bytes of an event are looked at for its type: what follows may be a lot of audio."""


def with_tracked_connections(cls: Any) -> type:
    """A realtime resource whose connections are watched."""

    class Resource(cls):  # type: ignore[misc]
        @functools.wraps(cls.connect)
        def connect(self, *args: Any, **kwargs: Any) -> Any:
            manager = super().connect(*args, **kwargs)
            manager._deadstop_client = self._client
            recast(manager, _with_watched_connection)
            return manager

    return Resource


def _with_watched_connection(cls: Any) -> type:
    class Manager(cls):  # type: ignore[misc]
        def __enter__(self) -> Any:
            connection = super().__enter__()
            connection._deadstop = Watcher(connection, adopt_sync(self._deadstop_client), None)
            recast(connection, _watched)
            return connection

        async def __aenter__(self) -> Any:
            connection = await super().__aenter__()
            connection._deadstop = Watcher(connection, adopt_async(self._deadstop_client), Loop.current())
            recast(connection, _watched_async)
            return connection

        def enter(self) -> Any:
            return self.__aenter__() if hasattr(cls, "__aenter__") else self.__enter__()

    return Manager


def _watched(cls: Any) -> type:
    class Connection(cls):  # type: ignore[misc]
        def send(self, event: Any) -> None:
            asked = self._deadstop.sending(event)
            try:
                super().send(event)
            except BaseException:
                self._deadstop.unsent(asked)
                raise

        def recv_bytes(self) -> bytes:
            while True:
                data: bytes = super().recv_bytes()
                if self._deadstop.lets_through(data):
                    return data

        def close(self, *args: Any, **kwargs: Any) -> None:
            super().close(*args, **kwargs)
            self._deadstop.closed()

    return Connection


def _watched_async(cls: Any) -> type:
    class Connection(cls):  # type: ignore[misc]
        async def send(self, event: Any) -> None:
            asked = self._deadstop.sending(event)
            try:
                await super().send(event)
            except BaseException:
                self._deadstop.unsent(asked)
                raise

        async def recv_bytes(self) -> bytes:
            while True:
                data: bytes = await super().recv_bytes()
                if self._deadstop.lets_through(data):
                    return data

        async def close(self, *args: Any, **kwargs: Any) -> None:
            await super().close(*args, **kwargs)
            self._deadstop.closed()

    return Connection


class Watcher:
    """What is known of the responses of one connection."""

    def __init__(self, connection: Any, adopted: Any, loop: Optional[Loop]) -> None:
        self._registry = adopted.registry
        self._channel = _Channel(connection, self._registry, loop)
        self._asked: deque[Any] = deque()  # runs whose `response.created` is still to come
        self._live: dict[str, Any] = {}  # by the id of the response

    def sending(self, event: Any) -> Any:
        """The user sends an event. Raises `RunCancelledError` where it would start a response in a cancelled run."""
        said = partial(_field, event)
        if said("type") == "response.create":
            run = self._registry.unborn(KIND, self._channel)
            if run.cancelled:
                run.remote.unborn(True, None)
                raise run.error()
            asked = (run, said("event_id"))
            self._asked.append(asked)
            return asked
        return None

    def unsent(self, asked: Any) -> None:
        """An event could not be sent, or was refused."""
        if asked in self._asked:
            self._asked.remove(asked)
            asked[0].remote.unborn(True, None)

    def _refused(self, event: Any) -> None:
        error = event.get("error") or {}
        name, active = error.get("event_id"), error.get("code") == "conversation_already_has_active_response"
        asked = next((each for each in self._asked if name is not None and each[1] == name), None)
        if asked is None and name is None and active and self._asked:
            asked = self._asked[0]  # they are answered in the order in which they were asked for
        self.unsent(asked)

    def lets_through(self, data: Any) -> bool:
        """An event has come; whether its user is to get it. Raises the error of a cancelled response at its end."""
        raw = data.encode() if isinstance(data, str) else data
        head = raw[:_HEAD]
        if b'"response.created"' in head:
            return self._created(json.loads(raw))
        if b'"error"' in head:
            event = json.loads(raw)
            if event.get("type") == "error":
                self._refused(event)
        if b'"response.done"' in head:
            return self._done(json.loads(raw))
        return not any(run.cancelled and name.encode() in raw for name, run in list(self._live.items()))

    def _created(self, event: Any) -> bool:
        found = KIND.take(event.get("response") or {})
        if found is None:
            return True
        # One that the server has begun by itself (voice activity) belongs to whoever reads.
        run = self._asked.popleft()[0] if self._asked else self._registry.unborn(KIND, self._channel)
        self._registry.christen(run, found[0])
        self._live[found[0].ids[0]] = run
        run.remote.born(found[0])
        run.remote.observe(found[1] or "in_progress", Evidence.EVENTS)
        return not run.cancelled

    def _done(self, event: Any) -> bool:
        found = KIND.take(event.get("response") or {})
        run = None if found is None else self._live.pop(found[0].ids[0], None)
        if found is None or run is None:
            return True
        self._registry.observe(found[0], found[1] or "completed", Evidence.EVENTS)
        if run.cancelled:
            raise run.error()
        return True

    def closed(self) -> None:
        """The connection is closed, and its responses with it."""
        for run in [*(each[0] for each in self._asked), *self._live.values()]:
            run.remote.unborn(run.remote.ref is None, None)
        self._asked.clear()
        self._live.clear()


class _Channel:
    """The way to the server: the connection itself. What can be read of a status is what has come in on it."""

    def __init__(self, connection: Any, registry: Any, loop: Optional[Loop]) -> None:
        self.base_url = "realtime"
        self._connection, self._registry, self._loop = connection, registry, loop
        self._workers = Workers(limit=1) if loop is None else None
        self._lock = threading.Lock()

    def spawn(self, work: Callable[[], None]) -> bool:
        """Have `work` run soon. False if the loop is over."""
        if self._workers is not None:
            self._workers.submit(work)
            return True
        return self._loop is not None and self._loop.call(work)

    def send(
        self, request: Request, number: int, timeout: float, left: Callable[[], None], done: Callable[[Result], None]
    ) -> Outgoing:
        """Send the cancel as an event, or say how the run stands. Never blocks."""
        out = Outgoing(number, timeout)  # what is sent is sent: there is no errand to abandon
        name = request.path.split("/")[3]
        if request.method == "GET":
            word = self._registry.word_of(KIND.ref(name)) or "in_progress"
            now = time.monotonic()
            answer = Result(Attempt(number, now, now, status=200), 200, {"id": name, "status": word}, None, True)
            self.spawn(lambda: done(answer))
            return out
        event = {"type": "response.cancel", "response_id": name}
        began = time.monotonic()

        def sent(error: Optional[BaseException]) -> None:
            ended = time.monotonic()
            if error is None:
                left()
                done(Result(Attempt(number, began, ended, status=202), 202, None, None, True))
            else:
                said = f"{type(error).__name__}: {error}"
                done(Result(Attempt(number, began, ended, error=said), may_have_arrived=True))

        if self._loop is None:
            self.spawn(lambda: sent(_try(lambda: self._connection.send(event))))
        elif not self._loop.spawn(lambda: self._send_in_task(event, sent)):
            sent(RuntimeError("the event loop is closed"))
        return out

    async def _send_in_task(self, event: Any, sent: Callable[[Optional[BaseException]], None]) -> None:
        try:
            await self._connection.send(event)
        except Exception as error:
            sent(error)
        else:
            sent(None)


def _try(work: Callable[[], Any]) -> Optional[BaseException]:
    try:
        work()
    except Exception as error:
        return error
    return None


def _field(event: Any, name: str) -> Any:
    return event.get(name) if isinstance(event, dict) else getattr(event, name, None)
