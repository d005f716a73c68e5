"""From the cancel to the blocked thread's release, and to the server's end-of-file."""

from __future__ import annotations

import functools
import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional
from urllib.parse import urlsplit

import openai

import deadstop
from bench import phases
from bench.phases import HELD, MESSAGES, OPENING, PHASES, QUICK, TOKENS, Phase, Sample
from bench.sampling import SEED, Measure, shuffled
from deadstop.testing import FakeProcess

LIMIT = "bare socket, no SDK"
SHUTDOWN = "socket.shutdown under the plain SDK"
OURS = "deadstop"

Side = Callable[[Phase, "_Caller"], Callable[[], Any]]
"""Starts a call on the caller's thread and returns what cancels it, once the server holds it."""

_names = itertools.count(1)


def measure_latency(quick: bool) -> Iterator[Measure]:
    """Every phase on three sides: a bare socket, the plain SDK whose socket is shut down, deadstop."""
    count, warm_up = (25, 3) if quick else (250, 8)
    with FakeProcess(rate=0, tokens=TOKENS + 3) as server:
        options: dict[str, Any] = {"base_url": server.base_url, "api_key": "bench"}
        plain = openai.OpenAI(max_retries=0, **options)
        ours = deadstop.OpenAI(**options)
        sides: dict[str, _Client] = {LIMIT: _Bare(server), SHUTDOWN: _Plain(plain), OURS: _Deadstop(ours)}
        with plain, ours:
            for phase in PHASES:
                rng = random.Random(SEED)
                found = phases.measures("sync", phase, SHUTDOWN, OURS)
                for number in range(warm_up + count):
                    taken = {side: _take(server, phase, sides[side]) for side in shuffled(sides, rng)}
                    if number >= warm_up:
                        phases.keep({side: taken[side] for side in sides}, found)
                yield from found.values()


class _Caller:
    """A thread that makes one call and notes when it got control back."""

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        self.released: Optional[float] = None
        self._there = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,))
        self._thread.start()

    def _run(self, work: Callable[[Callable[[], None]], None]) -> None:
        try:
            work(self._there.set)
        except Exception:
            self.released = time.monotonic()
        finally:
            self._there.set()

    def wait_until_there(self) -> None:
        """Block until nothing but the last, blocking read is left to do."""
        self._there.wait(5)

    def join(self) -> None:
        self._thread.join(5)


class _Client:
    def warm(self) -> None:
        """Leave a connection behind that the next call will use again."""
        raise NotImplementedError

    def call(self, phase: Phase, there: Callable[[], None]) -> None:
        """Make the call that the server will hold, and raise when it ends."""
        raise NotImplementedError

    def canceller(self) -> Callable[[], Any]:
        """What ends the call that is being held; all that can be looked up before is."""
        raise NotImplementedError

    def verdict(self, phase: Phase, answer: Any) -> Optional[str]:
        """What was wrong with the canceller's answer."""


def _take(server: FakeProcess, phase: Phase, client: _Client) -> Sample:
    if phase.reused:
        client.warm()
    phases.hold(server, phase)
    caller = _Caller(functools.partial(client.call, phase))
    held = phases.wait_until_held(server, phase)
    caller.wait_until_there()
    cancel = client.canceller()
    time.sleep(phases.settle_for())
    began = phases.now()
    answer = cancel()
    caller.join()
    taken = phases.sample(server, phase, held, began, caller.released)
    return taken._replace(note=taken.note or client.verdict(phase, answer))


class _Plain(_Client):
    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client

    def warm(self) -> None:
        self._client.chat.completions.create(model=QUICK, messages=MESSAGES)

    def call(self, phase: Phase, there: Callable[[], None]) -> None:
        _call(self._client, there, streamed=phase.streamed or phase.inside)

    def canceller(self) -> Callable[[], Any]:
        http: Any = self._client._client
        (connection,) = http._transport._pool.connections
        sock = connection._connection._network_stream.get_extra_info("socket")
        return functools.partial(sock.shutdown, socket.SHUT_RDWR)


class _Deadstop(_Client):
    def __init__(self, client: deadstop.OpenAI) -> None:
        self._client = client
        self._name = ""

    def warm(self) -> None:
        self._client.chat.completions.create(model=QUICK, messages=MESSAGES)

    def call(self, phase: Phase, there: Callable[[], None]) -> None:
        self._name = f"run {next(_names)}"
        with self._client.runs.open(self._name, streamed_inside=phase.inside):
            _call(self._client, there, streamed=phase.streamed)

    def canceller(self) -> Callable[[], Any]:
        return functools.partial(self._client.runs.cancel, self._name)

    def verdict(self, phase: Phase, answer: Any) -> Optional[str]:
        expected = "reading" if phase.tokens else "waiting_for_headers"
        if answer.outcome != "cancelled":
            return f"the receipt says {answer.outcome.value}"
        found = answer.calls[0].phase.value
        return None if found == expected else f"the call was {found}, not {expected}"


class _Bare(_Client):
    """A blocking `recv` on a socket of its own: what the machine can do at best."""

    def __init__(self, server: FakeProcess) -> None:
        url = urlsplit(server.base_url)
        self._address = (str(url.hostname), url.port or 80)
        self._kept: Optional[socket.socket] = None
        self._sock: Optional[socket.socket] = None

    def warm(self) -> None:
        self._kept = socket.create_connection(self._address)
        self._kept.sendall(_request(QUICK, stream=False))
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.endswith(b"}"):
            answer += self._kept.recv(1 << 16)

    def call(self, phase: Phase, there: Callable[[], None]) -> None:
        sock, self._kept = self._kept or socket.create_connection(self._address), None
        with sock:
            self._sock = sock
            sock.sendall(_request(HELD, stream=phase.streamed or phase.inside))
            there()
            while sock.recv(1 << 16):
                pass
            raise EOFError

    def canceller(self) -> Callable[[], Any]:
        assert self._sock is not None
        return functools.partial(self._sock.shutdown, socket.SHUT_RDWR)


def _request(model: str, stream: bool) -> bytes:
    body = json.dumps({"model": model, "messages": MESSAGES, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _call(client: Any, there: Callable[[], None], streamed: bool) -> None:
    if not streamed:
        there()
        client.chat.completions.create(model=HELD, messages=MESSAGES)
        return
    stream = client.chat.completions.create(model=HELD, messages=MESSAGES, stream=True)
    for number, _ in enumerate(stream, 1):
        if number == OPENING + TOKENS:
            there()
