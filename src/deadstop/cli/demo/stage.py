"""Playing the cases: on a fake server in a process of its own, or against a real one."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any, Callable, Optional

from deadstop.cli.demo.callers import Caller, Loop, wait_until
from deadstop.cli.demo.cases import Case, Moment
from deadstop.cli.demo.judge import Played, judge, judge_alone
from deadstop.cli.demo.shapes import SHAPES
from deadstop.clients.drop_in import AsyncOpenAI, OpenAI
from deadstop.core.model import Phase
from deadstop.errors import DeadstopError
from deadstop.testing import FakeProcess, RequestRecord, full_backlog

__all__ = ["Neighbour", "Stage", "fake_stage"]

RATE = 200.0
_ACTIVE = ("receiving", "generating")


class Stage:
    """Where cases are played. Without a `fake` there are no records, and `model` is asked."""

    def __init__(self, base_url: str, api_key: str, fake: Optional[FakeProcess], model: Optional[str]) -> None:
        self.fake, self._model = fake, model
        self._base_url, self._api_key = base_url, api_key
        self._loop = Loop()
        self._holder: Optional[Neighbour] = None  # of the only slot of a pool
        self._clean = contextlib.ExitStack()
        self._clients = {False: self._client(False), True: self._client(True)}

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *error: object) -> None:
        self._clean.close()
        self._loop.stop()

    def records(self, model: str) -> list[RequestRecord]:
        """The server's records for a model; none without a fake server."""
        return [] if self.fake is None else [each for each in self.fake.records() if each.model == model]

    def play(self, case: Case, number: int) -> Played:
        """Make the call, wait until it is where it is to be, cancel it."""
        model = self._model or f"case-{number}"
        played = Played(case, counted=SHAPES[case.shape].counted)
        with contextlib.ExitStack() as clean:
            try:
                client = self._client_for(case, model, clean)
            except RuntimeError as error:  # this system's backlog can't be filled
                played.skipped = str(error)
                return played
            except TimeoutError as error:
                played.failed = str(error)
                return played
            played.skipped = SHAPES[case.shape].missing(client)
            if played.skipped:
                return played
            if self.fake is not None and case.fault is not None:
                self.fake.add(case.fault, model=model)
            ask = SHAPES[case.shape].ask(model, case.tokens if self.fake else None)
            caller = Caller(case, client, f"demo-{number}", ask, self._loop if case.task else None)
            caller.start()
            try:
                self._cancel(caller, model)
                played.then = self.records(model)
            except (TimeoutError, DeadstopError) as error:
                played.failed = str(error)
            finally:
                caller.go_on()
            caller.done.wait(15.0)
            self._note(played, caller)
            if self._holder is not None:
                played.beside, self._holder = self._holder.problems(), None
        return played

    def finish(self, played: Played, number: int) -> None:
        """Wait until the server has nothing more to do for the case, and judge it."""
        if played.skipped:
            return
        if self.fake is None:
            played.problems = judge_alone(played)
            return
        model = f"case-{number}"
        with contextlib.suppress(TimeoutError):
            wait_until(
                lambda: all(each.state not in _ACTIVE for each in self.records(model)), "the server is done", 10.0
            )
        played.final = self.records(model)
        played.problems = judge(played)

    def is_over(self, number: int) -> bool:
        """Whether the server has nothing more to do for the case just now."""
        return all(each.state not in _ACTIVE for each in self.records(f"case-{number}"))

    # Getting there

    def _cancel(self, caller: Caller, model: str) -> None:
        moment = caller.case.moment
        reached = self._conditions(caller, model)[moment]
        wait_until(lambda: caller.done.is_set() or reached(), f"the call is {moment.value}")
        if caller.done.is_set() and caller.error is not None:
            return  # it failed before it could be cancelled
        caller.cancel(0.25 if caller.case.opaque else 10.0)

    def _conditions(self, caller: Caller, model: str) -> dict[Moment, Callable[[], bool]]:
        def at(phase: Phase) -> Callable[[], bool]:
            return lambda: caller.call is not None and caller.call.phase is phase

        def working(tokens: int) -> bool:
            if self.fake is None:
                return True
            return any(each.state == "generating" and each.tokens_sent >= tokens for each in self.records(model))

        def refused() -> bool:
            return any(each.status == 429 and each.state not in _ACTIVE for each in self.records(model))

        def reading() -> bool:
            inside = "stream" not in caller.case.shape
            got = inside or caller.seen >= 3
            return got and at(Phase.READING)() and working(5)

        # A task's backoff is the SDK's own sleep, which leaves no phase: there the server's answer has to do.
        backing_off = refused if caller.case.task else at(Phase.BACKING_OFF)
        waiting = at(Phase.UNKNOWN if caller.case.opaque else Phase.WAITING_FOR_HEADERS)
        return {
            Moment.BEFORE_START: caller.holding.is_set,
            Moment.CONNECTING: at(Phase.CONNECTING),
            Moment.POOL: at(Phase.WAITING_FOR_POOL),
            Moment.HEADERS: lambda: waiting() and working(0),
            Moment.READING: reading,
            Moment.BETWEEN: caller.holding.is_set,
            Moment.BUFFERED: caller.holding.is_set,
            Moment.BACKING_OFF: backing_off,
            Moment.DEADLINE: lambda: caller.run is not None,
            Moment.OVER: caller.done.is_set,
        }

    def _note(self, played: Played, caller: Caller) -> None:
        played.receipt, played.error = caller.receipt, caller.error
        played.seen, played.late, played.freed_at = caller.seen, caller.late, caller.freed_at
        played.asked_at, played.returned_at = caller.asked_at or 0.0, caller.returned_at or 0.0
        if caller.receipt is None and played.failed is None:
            what = f"{type(caller.error).__name__}: {caller.error}" if caller.error else "it ended too early"
            if self.fake is None:
                played.skipped = f"this server does not serve it so: {what}"
            else:
                played.failed = what

    # Clients

    def _client_for(self, case: Case, model: str, clean: contextlib.ExitStack) -> Any:
        if case.moment is Moment.CONNECTING:
            host, port = clean.enter_context(full_backlog())
            return self._client(case.task, base_url=f"http://{host}:{port}/v1")
        if case.moment is Moment.POOL:
            client = self._client(case.task, limits=1)
            self._holder = clean.enter_context(self.neighbour(case.task, f"holder-of-{model}", 150, client))
            return client
        if case.opaque:
            return self._client(case.task, opaque=True)
        return self._client(case.task) if case.inside is None else self._clients[case.task]

    def neighbour(self, task: bool, model: str, tokens: int, client: Any = None) -> Neighbour:
        """A stream on the same client as the calls that are cancelled."""
        return Neighbour(self, client or self._clients[task], model, tokens, self._loop if task else None)

    def _client(
        self, task: bool, *, base_url: Optional[str] = None, limits: Optional[int] = None, opaque: bool = False
    ) -> Any:
        url = base_url or self._base_url
        cls: Any = AsyncOpenAI if task else OpenAI
        client: Any = cls(api_key=self._api_key, base_url=url)
        if limits or opaque:
            http = _http_of(client)
            kind = http.AsyncClient if task else http.Client
            options: dict[str, Any] = {"base_url": url, "timeout": 60.0}
            if limits:
                options["limits"] = http.Limits(max_connections=limits)
            if opaque:
                options["transport"] = _Opaque(http.HTTPTransport())
            self._close_later(task, client)
            client = cls(api_key=self._api_key, base_url=url, http_client=kind(**options))
        self._close_later(task, client)
        return client

    def _close_later(self, task: bool, client: Any) -> None:
        if task:
            self._clean.callback(lambda: self._loop.start(client.close()).result(5.0))
        else:
            self._clean.callback(client.close)


class Neighbour:
    """A stream that nobody cancels, beside those that are."""

    def __init__(self, stage: Stage, client: Any, model: str, tokens: int, loop: Optional[Loop]) -> None:
        self._stage, self.model, self._tokens = stage, model, tokens
        case = Case("chat, streamed", Moment.OVER, task=loop is not None, inside=None)
        self._caller = Caller(case, client, model, SHAPES[case.shape].ask(model, tokens), loop)

    def __enter__(self) -> Neighbour:
        self._caller.start()
        wait_until(lambda: self._caller.seen > 0 or self._caller.done.is_set(), "the neighbour's stream has begun")
        return self

    def __exit__(self, *error: object) -> None:
        self._caller.done.wait(15.0)

    def problems(self) -> list[str]:
        """What is wrong with it: it has to be complete, in the record and in its caller's hands."""
        if not self._caller.done.wait(15.0):
            return ["the neighbour's call never came back"]
        if self._caller.error is not None:
            return [f"the neighbour got {type(self._caller.error).__name__}: {self._caller.error}"]
        records = self._stage.records(self.model)
        if [(each.state, each.tokens_sent) for each in records] != [("completed", self._tokens)]:
            return [f"by the record the neighbour is not complete: {', '.join(map(str, records))}"]
        if self._caller.seen < self._tokens:
            return [f"the neighbour was given {self._caller.seen} events of {self._tokens} tokens"]
        return []

    def summary(self) -> str:
        """Its record in words."""
        return "; ".join(map(str, self._stage.records(self.model)))


class _Opaque:
    """A transport that hides what it sends on, as one of the user's own may."""

    send: Any
    end: Any

    def __init__(self, inner: Any) -> None:
        self.send, self.end = inner.handle_request, inner.close

    def handle_request(self, request: Any) -> Any:
        return self.send(request)

    def close(self) -> None:
        self.end()


def _http_of(client: Any) -> Any:
    """httpx or httpx2, whichever the client rides on."""
    names = (cls.__module__.partition(".")[0] for cls in type(client._client).__mro__)
    return importlib.import_module(next(name for name in names if name in ("httpx", "httpx2")))


@contextlib.contextmanager
def fake_stage() -> Iterator[Stage]:
    """A stage on a fake server in a process of its own."""
    for name in ("NO_PROXY", "no_proxy"):  # nobody's proxy stands between us and our own child
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    with FakeProcess(RATE, 4000) as fake, Stage(fake.base_url, "none-needed", fake, None) as stage:
        yield stage
