"""A bus between hosts: one connection to NATS for a process, in a daemon thread with an event loop of its own.

So it serves threads, asyncio and trio alike, and never keeps a process alive. A holder subscribes to the subject of
each of its runs: a cancel is a request to that subject, and where nobody holds the run the server says so at once. As
every signal these are hints: what is lost while the connection is down is made good by reading the record again.

Subjects, all below ``deadstop.SPACE``: ``run.HASH`` what a holder hears, ``at.HASH.ping`` and ``at.HASH.in.ID`` a
process, ``all`` everybody. HASH stands for a run's name, which need not be fit for a subject, or for a process. What is
below ``job`` is kept by the server: see ``jobs.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional

from deadstop.fleet.addresses import OVER_BUS, BusAddress
from deadstop.fleet.need_nats import CONNECT, Client, Loop, Tap, drained, flushed, is_nobody, options, written

if TYPE_CHECKING:
    from deadstop.fleet.jobs import Jobs

__all__ = ["Bus"]

log = logging.getLogger("deadstop")

SOON, LATE = 0.1, 2.0
"""How long (seconds) to wait before the next attempt: at first, doubled each time, at most."""

RETURN = LATE + 1.0
"""How long (seconds) after an outage others may still be on their way back."""

REQUEST = 2.0
"""How long (seconds) the server's answer to a question about jobs is waited for."""

LARGEST = 200_000  # bytes of a message; a server takes a megabyte unless told otherwise

Message = dict[str, Any]
Work = Callable[[Any], Awaitable[None]]

_abandoned: list[Bus] = []  # of a parent process: never collected, since a goodbye would be sent in the parent's name


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Bus:
    """`hear` gets every message, and `back` is called after each time that the connection was made; both in the bus's
    thread, so they must not block. Connecting is up to the thread: a server that is down is a warning, and it is tried
    again for as long as the process lives."""

    def __init__(
        self,
        address: BusAddress,
        owner: str,
        hear: Callable[[Message], None],
        back: Callable[[], None],
        jobs: Optional[Jobs] = None,
    ) -> None:
        self.address = address
        self._jobs = jobs
        self._options = options(address)
        self._hear, self._back = hear, back
        self._top = f"deadstop.{address.space}"
        self._me = f"{self._top}.at.{_hash(owner)}"
        self._asked: dict[str, Callable[[Any], None]] = {}  # questions that are under way, but those of cancels
        self._tried = threading.Event()  # the first attempt to connect is over
        self._reached = threading.Event()
        self._warned = False
        self._been_up, self._all_back = False, 0.0  # when all are back that lost it as we did
        self._why: Optional[BaseException] = None
        # Of the loop's thread alone:
        self._runs: dict[str, int] = {}
        self._subscriptions: dict[str, Any] = {}
        self._leaving: set[asyncio.Future[None]] = set()
        self._work: Optional[asyncio.Queue[tuple[Work, Callable[[], None]]]] = None  # there is one while connected
        self._task: Optional[asyncio.Task[None]] = None
        self._stopped = False
        self._loop = Loop()
        self._thread = threading.Thread(target=self._serve, name="deadstop bus", daemon=True)
        self._thread.start()

    # From any thread. None of it blocks but `ready`, `there` and `close`.

    @property
    def up(self) -> bool:
        """Whether the server can be reached, as far as is known."""
        return self._reached.is_set()

    @property
    def just_back(self) -> bool:
        """Whether it was lost, and others may not be back yet: that nobody hears a subject says little now."""
        return time.monotonic() < self._all_back

    def ready(self, timeout: float, patient: bool) -> bool:
        """Whether the server can be reached. Waits at most `timeout` seconds, for the first attempt, or if `patient`
        for as many as it takes. Blocks."""
        return (self._reached if patient else self._tried).wait(timeout) and self.up

    def listen(self, run: str) -> None:
        """A run of that name is held here, from now on."""
        self.soon(self._count, run, 1)

    def forget(self, run: str) -> None:
        """It is not, any more."""
        self.soon(self._count, run, -1)

    def ask(self, run: str, message: Message, holder: Optional[str] = None) -> None:
        """Have a run's holder hear a message; that process, though the run may have ended, if it is known. The answers
        come to `hear`; from the server itself: ``nobody``."""
        at = f"run.{_hash(run)}" if holder is None else f"at.{_hash(holder)}.in.{message['id']}"
        self._ask(f"{self._top}.{at}", message)

    def call(self, message: Message) -> None:
        """Have every other process hear a message."""
        self._ask(f"{self._top}.all", message)

    def answer(self, to: str, message: Message, then: Callable[[], None]) -> None:
        """Answer what came with that reply address, and do `then` once the answer is on its way, or can't be."""
        subject = to[len(OVER_BUS) :]
        if subject.startswith(f"{self._top}.at."):
            self._publish(subject, message, then=then)
        else:
            then()

    def there(self, owner: str, timeout: float = 0.5) -> Optional[bool]:
        """Whether that process is on the bus. None: no answer in time, or none to be had. Blocks."""
        asked, found, done = uuid.uuid4().hex, list[bool](), threading.Event()

        def told(answer: Any) -> None:
            found.append(not is_nobody(answer))
            done.set()

        if not self.up:
            return None
        self._asked[asked] = told
        try:
            self._publish(f"{self._top}.at.{_hash(owner)}.ping", {}, reply=f"{self._me}.in.{asked}", then=_nothing)
            done.wait(timeout)
        finally:
            self._asked.pop(asked, None)
        return found[0] if found else None

    def close(self, timeout: float = 1.0) -> None:
        """Send what is to be sent, for at most `timeout` seconds, and hang up."""
        if threading.current_thread() is self._thread:
            return
        sent = threading.Event()
        if self.up:
            self.soon(self._put, flushed(sent.set), sent.set)
            sent.wait(timeout / 2)
        self.soon(self._stop)
        self._thread.join(timeout)

    def disown(self) -> None:
        """In a forked child: the connection is the parent's, and must end with the parent, whoever else lives on."""
        _abandoned.append(self)
        with contextlib.suppress(OSError, AttributeError, ValueError):
            mine, nowhere = self._loop.socket.fileno(), os.open(os.devnull, os.O_RDWR)
            if mine >= 0:
                os.dup2(nowhere, mine, inheritable=False)  # the number stays taken: something may close it again
            os.close(nowhere)

    # To the loop.

    def soon(self, function: Callable[..., object], *arguments: object) -> bool:
        """Call that in the bus's thread. False: it has ended. Never blocks."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # it was closed
            return False
        return True

    def _ask(self, subject: str, message: Message) -> None:
        reply = f"{self._me}.in.{message['id']}"
        self._publish(subject, {**message, "reply": OVER_BUS + reply}, reply=reply, then=_nothing)

    def _publish(self, subject: str, message: Message, *, then: Callable[[], None], reply: str = "") -> None:
        data = json.dumps(message).encode()
        if len(data) > LARGEST:
            data = json.dumps({key: value for key, value in message.items() if key != "receipt"}).encode()

        async def work(client: Any) -> None:
            try:
                await client.publish(subject, data, reply=reply)
                if then is not _nothing:
                    await written(client)
            finally:
                then()

        if not self.soon(self._put, work, then):
            then()

    # In the loop's thread.

    def _put(self, work: Work, otherwise: Callable[[], None]) -> None:
        if self._work is None:
            otherwise()
        else:
            self._work.put_nowait((work, otherwise))

    def _count(self, run: str, more: int) -> None:
        subject = f"{self._top}.run.{_hash(run)}"
        self._runs[subject] = self._runs.get(subject, 0) + more
        if self._runs[subject] <= 0:
            del self._runs[subject]
        self._put(self._subscribing(subject), _nothing)

    def _subscribing(self, subject: str) -> Work:
        async def work(client: Any) -> None:
            if subject in self._runs and subject not in self._subscriptions:
                self._subscriptions[subject] = await client.subscribe(subject, future=self._tap)
            elif subject not in self._runs and subject in self._subscriptions:
                # What is on its way to us is heard yet, and answered: whoever asks must not wait for nothing.
                leaving = asyncio.ensure_future(drained(self._subscriptions.pop(subject)))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

        return work

    def _heard(self, message: Any) -> None:
        """A message from the server."""
        last = message.subject.rpartition(".")[2]
        tell = self._asked.get(last)
        if message.subject == f"{self._me}.ping":
            self._publish(message.reply, {"do": "pong"}, then=_nothing)
        elif tell is not None:
            tell(message)
        elif is_nobody(message):
            self._hear({"do": "nobody", "id": last, "via": OVER_BUS})
        else:
            try:
                found = json.loads(message.data)
            except (ValueError, RecursionError):
                return
            if isinstance(found, dict):
                self._hear({**found, "via": OVER_BUS})

    async def _request(
        self, client: Any, subject: str, data: bytes, headers: Optional[dict[str, str]] = None, timeout: float = REQUEST
    ) -> Optional[bytes]:
        """What is answered; None if nobody hears that. Raises asyncio.TimeoutError."""
        asked, answer = uuid.uuid4().hex, asyncio.get_running_loop().create_future()
        self._asked[asked] = lambda message: None if answer.done() else answer.set_result(message)
        try:
            await client.publish(subject, data, reply=f"{self._me}.in.{asked}", headers=headers)
            message = await asyncio.wait_for(answer, timeout)
        except (asyncio.CancelledError, asyncio.TimeoutError):
            raise
        except Exception as error:  # the connection is about to end
            raise asyncio.TimeoutError(f"not sent: {error!r}") from error
        finally:
            self._asked.pop(asked, None)
        return None if is_nobody(message) else bytes(message.data)

    async def _present(self, client: Any, owner: str) -> Optional[bool]:
        """As `there`, in the loop."""
        try:
            return await self._request(client, f"{self._top}.at.{_hash(owner)}.ping", b"{}", timeout=0.5) is not None
        except asyncio.TimeoutError:
            return None

    # The connection.

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except Exception:
            log.exception("The bus ended unexpectedly.")
        finally:
            self._reached.clear()
            self._loop.close()

    def _stop(self) -> None:
        self._stopped = True  # there may be no task yet, or it is told in a moment in which `wait_for` keeps that back
        if self._task is not None:
            self._task.cancel()

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        self._tap = Tap()
        self._tap.hear = self._heard
        pause = SOON
        with contextlib.suppress(asyncio.CancelledError):
            for server in itertools.cycle(self.address.servers):
                if self._stopped:
                    return
                if await self._connection(server):
                    pause = SOON
                # A fleet does not come back in one moment.
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, LATE)

    async def _connection(self, server: str) -> bool:
        """One connection, from beginning to end. Whether there was one."""
        client, closed, self._why = Client(), asyncio.Event(), None

        async def end() -> None:
            closed.set()

        try:
            connecting = client.connect([server], closed_cb=end, error_cb=self._note, **self._options)
            await asyncio.wait_for(connecting, CONNECT)
            await self._connected(client, closed)
            return True
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._failed(error)
            return False
        finally:
            self._tried.set()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.close(), 1.0)

    async def _connected(self, client: Any, closed: asyncio.Event) -> None:
        for subject in (f"{self._me}.ping", f"{self._me}.in.*", f"{self._top}.all"):
            await client.subscribe(subject, future=self._tap)
        self._subscriptions = {}
        work: asyncio.Queue[tuple[Work, Callable[[], None]]] = asyncio.Queue()
        self._work = work
        beside: list[asyncio.Future[None]] = [asyncio.ensure_future(self._working(client, work))]
        try:
            for each in list(self._runs):
                self._put(self._subscribing(each), _nothing)
            heard = asyncio.Event()
            self._put(flushed(heard.set), _nothing)
            await asyncio.wait_for(heard.wait(), CONNECT)
            await client.flush(CONNECT)  # now the server has all of it
            self._is_up()
            if self._jobs is not None:
                serve = self._jobs.serve(
                    partial(self._request, client), partial(self._present, client), self.address.space
                )
                beside.append(asyncio.ensure_future(serve))
            if not self._stopped:
                await closed.wait()
        finally:
            self._reached.clear()
            self._work = None
            for task in (*beside, *self._leaving):
                task.cancel()
            while not work.empty():
                work.get_nowait()[1]()

    async def _working(self, client: Any, work: asyncio.Queue[tuple[Work, Callable[[], None]]]) -> None:
        while True:
            each, _ = await work.get()
            try:
                await each(client)
            except Exception as error:  # the connection is about to end, or the message is none that the server takes
                log.debug("Not sent over the bus: %r", error)

    async def _note(self, error: BaseException) -> None:
        self._why = error
        said = str(error).lower()
        if "permissions violation" in said and "$js.api" in said:
            log.debug("The bus %s keeps no jobs for us: %s", self.address.shown, error)
        elif "permissions violation" in said:
            log.warning("The bus %s refuses something: %s", self.address.shown, error)

    def _is_up(self) -> None:
        self._all_back = time.monotonic() + RETURN if self._been_up else 0.0
        self._been_up = True
        self._reached.set()
        self._tried.set()
        if self._warned:
            self._warned = False
            log.warning("The bus %s can be reached again.", self.address.shown)
        self._back()

    def _failed(self, error: BaseException) -> None:
        why = self._why or error
        if not self._warned:
            self._warned = True
            what = " ".join(str(why).split()) or type(why).__name__
            log.warning(
                "The bus %s can't be reached now, so cancels from other hosts come late or not at all: %s. "
                "It is tried again.",
                self.address.shown,
                what.rstrip("."),
            )


def _nothing() -> None:
    pass
