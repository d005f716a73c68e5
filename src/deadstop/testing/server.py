"""FakeOpenAI: the listening socket, its threads, and the handle that tests hold."""

from __future__ import annotations

import itertools
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Callable

from deadstop.testing.connection import Connection
from deadstop.testing.control import Control
from deadstop.testing.faults.base import Fault
from deadstop.testing.record import RecordBook, RequestRecord
from deadstop.testing.reply import Reply
from deadstop.testing.runs import RunRecord, RunStore
from deadstop.testing.script import Replies, Script

_STOP_TIMEOUT = 5.0


class FakeOpenAI:
    """An OpenAI-compatible server in this process, that generates at a scripted rate and records the truth.

    `rate` is tokens per second (0 or inf: as fast as possible), `tokens` the length of an answer that the
    reply does not script, `burst` the number of events written in one send, `reply` what to say: a Reply, or
    a function from the request's JSON to one. It listens on 127.0.0.1; `port=0` takes a free one. With
    `ssl_context` it speaks HTTPS. It runs between `start()` and `stop()`, or inside `with`; `reply` and
    `rate` may be changed meanwhile.
    """

    def __init__(
        self,
        rate: float = 200.0,
        tokens: int = 50,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        faults: Iterable[Fault] = (),
        *,
        host: str = "127.0.0.1",
        burst: int = 1,
        reply: Replies = Reply(),  # noqa: B008 - frozen
    ) -> None:
        self._script = Script(rate, tokens, burst, reply, faults)
        self._book = RecordBook()
        self._runs = RunStore()
        self._address = (host, port)
        self._ssl_context = ssl_context
        self._listener: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._open: dict[int, Connection] = {}
        self._threads: list[threading.Thread] = []

    # -- life

    def start(self) -> FakeOpenAI:
        """Listens; returns itself. Raises RuntimeError when it runs already, OSError for a taken port."""
        if self._listener is not None:
            raise RuntimeError(f"This server is already running at {self.base_url}.")
        self._listener = socket.create_server(self._address, backlog=1024)
        self._listener.setblocking(False)
        self._address = self._listener.getsockname()[:2]
        self._stop_fd, self._stop_writer = os.pipe()
        self._control = Control(self._script, self._book, self._runs)
        self._accepter = threading.Thread(
            target=self._accept, args=(self._listener, self._stop_fd), name="fake-openai-accept", daemon=True
        )
        self._accepter.start()
        return self

    def stop(self) -> None:
        """Closes every socket and joins every thread, stalled ones too; a second stop does nothing.

        Requests that were still running are `failed`. Raises RuntimeError when a thread outlives 5 seconds,
        which only a fault or a reply of the caller's own making can bring about.
        """
        if self._listener is None:
            return
        deadline = time.monotonic() + _STOP_TIMEOUT
        os.close(self._stop_writer)  # every wait polls the other end
        self._control.stop()
        self._accepter.join(_STOP_TIMEOUT)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        self._listener = None
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            raise RuntimeError(f"These threads of the fake server did not end: {', '.join(stuck)}.")
        os.close(self._stop_fd)
        self._threads.clear()

    def __enter__(self) -> FakeOpenAI:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what it tells

    @property
    def host(self) -> str:
        return str(self._address[0])

    @property
    def port(self) -> int:
        """The port; 0 before the start when any would do."""
        return int(self._address[1])

    @property
    def origin(self) -> str:
        """The URL without a path, as Azure and Anthropic clients want it."""
        return f"{'https' if self._ssl_context else 'http'}://{self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What goes into `OpenAI(base_url=...)`."""
        return f"{self.origin}/v1"

    @property
    def requests(self) -> list[RequestRecord]:
        """The records so far, in the order of arrival; the list is a copy, its records go on changing."""
        return self._book.snapshot()

    @property
    def runs(self) -> list[RunRecord]:
        """The remote runs so far, in the order of their making, as they stand now: the ground truth."""
        return self._runs.records()

    def wait_for_runs(self, predicate: Callable[[list[RunRecord]], bool], timeout: float = 5.0) -> None:
        """Blocks until `predicate(runs)` holds. Raises TimeoutError after `timeout` seconds, naming the runs."""
        self._runs.wait_for(predicate, timeout)

    @property
    def open_connections(self) -> int:
        """How many accepted connections are not closed yet, the remote control's left out."""
        return sum(not connection.is_control for connection in list(self._open.values()))

    def wait_for(self, predicate: Callable[[list[RequestRecord]], bool], timeout: float = 5.0) -> None:
        """Blocks until `predicate(requests)` holds; looked at anew at each change, connections included.

        Raises TimeoutError after `timeout` seconds, naming the records.
        """
        self._book.wait_for(predicate, timeout)

    # -- what it is told

    @property
    def reply(self) -> Replies:
        """What is said from the next request on: a Reply, or a function from the request's JSON to one."""
        return self._script.reply

    @reply.setter
    def reply(self, reply: Replies) -> None:
        self._script.reply = reply

    @property
    def rate(self) -> float:
        """Tokens per second; a change also reaches the requests that are running."""
        return self._script.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._script.rate = rate

    def add(self, fault: Fault, *, path: str | None = None, model: str | None = None, times: int | None = None) -> None:
        """Plays a fault from the next request on.

        `path` limits it to requests whose path ends so, `model` to those for that model, `times` to that many
        of them. Faults that act on a connection (Blackhole, SlowTLS) count new connections instead and take
        no limit. Raises ValueError for such a limit.
        """
        self._script.add(fault, path=path, model=model, times=times)

    def clear(self) -> None:
        """Removes all faults; requests that are already suffering go on doing so."""
        self._script.clear()

    def reset(self) -> None:
        """Removes all faults and forgets all records and runs."""
        self._script.clear()
        self._book.reset()
        self._runs.forget()

    # -- inside

    def _accept(self, listener: socket.socket, stop_fd: int) -> None:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        poller.register(stop_fd, select.POLLIN)
        while True:
            if any(fd == stop_fd for fd, _ in poller.poll()):
                return
            try:
                sock, _ = listener.accept()
            except OSError:  # the peer has left the queue already
                continue
            number = next(self._numbers)
            connection = Connection(
                sock,
                number,
                stop_fd=stop_fd,
                script=self._script,
                book=self._book,
                runs=self._runs,
                control=self._control,
                ssl_context=self._ssl_context,
            )
            thread = threading.Thread(target=self._serve, args=(connection,), name=f"fake-openai-{number}", daemon=True)
            self._open[number] = connection
            # Only here are ended threads dropped: one that dropped itself could outlive stop().
            if len(self._threads) > 2 * len(self._open) + 16:
                self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(thread)
            self._book.touch()
            thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            del self._open[connection.number]
            self._book.touch()
