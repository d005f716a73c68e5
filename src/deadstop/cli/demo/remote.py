"""Remote runs in the demo: each cancelled under a fault, and judged by what the server knows to be true of it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Dict, Optional  # noqa: UP035 - the SDK looks at Dict at run time, on Python 3.9 too

from deadstop.cli.demo.callers import Loop, wait_until
from deadstop.cli.extras import Console, Table, escape
from deadstop.core.model import CancelReceipt, Outcome
from deadstop.core.policy import CancelPolicy
from deadstop.errors import DeadstopError, RunCancellationTimeoutError, RunCancelledError
from deadstop.testing import FakeProcess, RunRecord, faults
from deadstop.testing.faults.base import Fault

__all__ = ["REMOTE_CASES", "PlayedRemote", "RemoteCase", "judge_remote", "play_remote", "show_remote"]

_JSON = Dict[str, object]  # noqa: UP006
_POLICY = CancelPolicy(timeout=5.0, attempt_timeout=1.0, recheck=0.4)

_BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "background response": ("/responses", {"model": "m", "input": "Count to 400.", "background": True}),
    "thread run": ("/threads/runs", {"assistant_id": "asst_demo"}),
    "batch": ("/batches", {"input_file_id": "file-demo", "endpoint": "/v1/responses", "completion_window": "24h"}),
}


@dataclass(frozen=True)
class RemoteCase:
    """One run and its cancel.

    `early`: it is cancelled before its id is known. `streamed`: its event stream is being read meanwhile. `expects`
    are the outcomes that are right; `timeout` (seconds) is the cancel's. `times`: how often the fault is played.
    """

    kind: str
    fault: Optional[Fault] = None
    task: bool = False
    early: bool = False
    streamed: bool = False
    times: Optional[int] = None
    timeout: float = 5.0
    expects: Outcome = Outcome.CANCELLED

    @property
    def run(self) -> str:
        """The run in words."""
        told = [word for word, so in (("streamed", self.streamed), ("id not known yet", self.early)) if so]
        return ", ".join([f"{'async' if self.task else 'sync'} {self.kind}", *told])

    @property
    def server(self) -> str:
        """The server in words."""
        return type(self.fault).__name__ if self.fault else "cancels as asked"


_RESPONSE, _THREAD, _BATCH = _BODIES
REMOTE_CASES: tuple[RemoteCase, ...] = (
    RemoteCase(_RESPONSE),
    RemoteCase(_RESPONSE, faults.CancelReplyLost(), task=True),
    RemoteCase(_RESPONSE, faults.CancelReplySlow(None), streamed=True),
    RemoteCase(_RESPONSE, faults.CreateReplySlow(0.5), early=True, task=True),
    RemoteCase(_RESPONSE, faults.CreateReplyLost(), timeout=1.0, expects=Outcome.UNCONFIRMED),
    RemoteCase(_RESPONSE, faults.CompletesFirst(), expects=Outcome.FINISHED_FIRST),
    RemoteCase(_RESPONSE, faults.ComesBackToLife(0.1), task=True),
    RemoteCase(_RESPONSE, faults.IgnoresCancel(), timeout=0.6, expects=Outcome.UNCONFIRMED),
    RemoteCase(_THREAD, faults.StaysCancelling(0.4)),
    RemoteCase(_THREAD, faults.FalseConflict(), task=True, times=2),
    RemoteCase(_BATCH, faults.StaysCancelling(0.6), task=True),
    RemoteCase(_BATCH, faults.Overloaded(503, "0.2"), times=2),
)


@dataclass
class PlayedRemote:
    """What became of one case."""

    case: RemoteCase
    receipt: Optional[CancelReceipt] = None
    error: Optional[BaseException] = None
    truth: Optional[RunRecord] = None
    late: int = 0
    took: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def child(self) -> Optional[CancelReceipt]:
        """The receipt of the run itself."""
        children = self.receipt.children if self.receipt is not None else ()
        return children[0] if children else self.receipt


def judge_remote(played: PlayedRemote) -> Iterator[str]:
    """Where the receipt and the server's truth disagree, in sentences."""
    case, child, truth = played.case, played.child, played.truth
    if child is None or truth is None:
        yield f"there is no {'receipt' if child is None else 'run'}: {played.error}"
        return
    if child.outcome is not case.expects:
        yield f"the receipt says {child.outcome}, and {case.expects} would be right"
    right = {Outcome.CANCELLED: "cancelled", Outcome.FINISHED_FIRST: "completed", Outcome.UNCONFIRMED: "active"}
    if truth.truth != right.get(child.outcome):
        yield f"the receipt says {child.outcome}, and the run is {truth.truth}"
    if truth.most_cancels > 1:
        yield f"{truth.most_cancels} cancel requests were under way at once"
    if child.outcome is Outcome.UNCONFIRMED and child.diagnosis is None:
        yield "the receipt is unconfirmed, and has no diagnosis"
    if isinstance(case.fault, faults.CreateReplyLost) and child.orphan_suspect is None:
        yield "the create's answer was lost, and the receipt has no orphan suspect"
    if isinstance(case.fault, faults.ComesBackToLife) and not child.revivals:
        yield "the run came back to life, and that is not on the receipt"
    if played.late:
        yield f"{played.late} events were delivered after the cancel"
    if (case.early or case.streamed) and not isinstance(played.error, RunCancelledError):
        yield f"the caller got {type(played.error).__name__} instead of RunCancelledError"


class _Player:
    """Starts a run in a scope, in a thread or a task, and cancels the scope from here."""

    def __init__(self, case: RemoteCase, client: Any, name: str, loop: Loop) -> None:
        self.played = PlayedRemote(case)
        self._client, self._name, self._loop = client, name, loop
        self._seen = 0
        self._cancelled = False
        self.started = threading.Event()
        self.done = threading.Event()

    def start(self) -> None:
        if self.played.case.task:
            self._loop.start(self._be_task())
        else:
            threading.Thread(target=self._be_thread, name=self._name, daemon=True).start()

    def cancel(self) -> None:
        case, began = self.played.case, time.monotonic()
        runs = self._client.runs
        try:
            if case.task:
                cancelling = runs.cancel(self._name, reason="demo", timeout=case.timeout)
                self.played.receipt = self._loop.start(cancelling).result(case.timeout + 10.0)
            else:
                self.played.receipt = runs.cancel(self._name, reason="demo", timeout=case.timeout)
        except RunCancellationTimeoutError as error:
            self.played.receipt = error.receipt
        self._cancelled = True
        self.played.took = time.monotonic() - began

    @property
    def is_there(self) -> bool:
        """Whether it is where it is to be cancelled."""
        return self._seen >= 5 if self.played.case.streamed else self.done.is_set()

    def _note(self) -> None:
        self._seen += 1
        self.played.late += self._cancelled

    def _request(self) -> tuple[str, dict[str, Any]]:
        case = self.played.case
        path, body = _BODIES[case.kind]
        options: dict[str, Any] = {"body": {**body, "stream": True} if case.streamed else body, "cast_to": _JSON}
        if case.streamed:
            options.update(stream=True, stream_cls=self._client._default_stream_cls[_JSON])
        return path, options

    def _be_thread(self) -> None:
        try:
            path, options = self._request()
            with self._client.runs.open(self._name, policy=_POLICY):
                self.started.set()
                answer = self._client.post(path, **options)
                if self.played.case.streamed:
                    for _ in answer:
                        self._note()
        except BaseException as error:
            self.played.error = error
        self.done.set()

    async def _be_task(self) -> None:
        try:
            path, options = self._request()
            async with self._client.runs.open(self._name, policy=_POLICY):
                self.started.set()
                await self._client.post(path, **options)
        except BaseException as error:
            self.played.error = error
        self.done.set()


def play_remote(fake: FakeProcess, sync: Any, task: Any, cases: Sequence[RemoteCase], console: Console) -> list[Any]:
    """Play the cases, one after the other, against the fake server. `sync` and `task` are the clients."""
    loop, played = Loop(), []
    try:
        for number, case in enumerate(cases):
            if case.streamed and not _reads_named_events():
                console.print(f"[yellow]skipped[/yellow] {case.run}: this openai reads no events that have a name")
                continue
            fake.reset()
            client = task() if case.task else sync()
            player = _Player(case, client, f"remote-{number}", loop)
            if case.fault is not None:
                cancels = isinstance(case.fault, faults.Overloaded)
                fake.add(case.fault, path="/cancel" if cancels else None, times=case.times)
            try:
                _play(player, fake)
            except (TimeoutError, DeadstopError) as error:
                player.played.problems.append(str(error))
            player.played.problems += judge_remote(player.played)
            closing = client.close()
            if case.task:
                loop.start(closing).result(5.0)
            verdict = "[red]NO[/red]" if player.played.problems else "[green]yes[/green]"
            if not console.is_terminal:
                console.print(f"{verdict} {case.run}; {case.server}; {_told(player.played)}")
            played.append(player.played)
    finally:
        fake.reset()
        loop.stop()
    return played


def _reads_named_events() -> bool:
    """Whether the SDK's streams read events that have a name, as those of every remote run do."""
    major, minor = metadata.version("openai").split(".")[:2]
    return (int(major), int(minor)) >= (1, 20)


def _play(player: _Player, fake: FakeProcess) -> None:
    case = player.played.case
    player.start()
    if case.early:
        wait_until(lambda: bool(fake.runs()), "the server has the run")
    else:
        wait_until(lambda: player.is_there or player.done.is_set(), "the run has begun")
    player.cancel()
    player.done.wait(15.0)
    if isinstance(case.fault, faults.ComesBackToLife):
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: fake.runs()[0].truth == "cancelled", "it is cancelled again", 5.0)
        player.played.receipt = player._client.runs.get(player._name).receipt
    runs = fake.runs()
    player.played.truth = runs[0] if runs else None


def show_remote(played: Sequence[PlayedRemote], console: Console) -> None:
    """The table."""
    table = Table(expand=False, show_lines=False, header_style="bold", title="Remote runs", title_justify="left")
    for name in ("run", "server", "receipt", "server's own record", "took, ms", "agree"):
        table.add_column(name, justify="right" if name.startswith("took") else "left")
    for each in played:
        verdict = "[red]NO[/red]" if each.problems else "[green]yes[/green]"
        took = f"{each.took * 1000:.0f}"
        table.add_row(each.case.run, each.case.server, escape(_receipt(each)), _record(each), took, verdict)
    console.print(table)


def _receipt(played: PlayedRemote) -> str:
    child = played.child
    if child is None:
        return "none"
    words = [child.outcome.replace("_", " "), f"evidence {child.evidence}"]
    words += [f"status {child.status}"] if child.status else []
    words += [str(child.diagnosis.klass)] if child.diagnosis else []
    words += ["orphan suspect"] if child.orphan_suspect else []
    words += [f"then {child.revivals[-1][1]}, cancelled again"] if child.revivals else []
    return ", ".join(words)


def _record(played: PlayedRemote) -> str:
    truth = played.truth
    if truth is None:
        return "no run"
    return f"{truth.truth}, {truth.cancels} cancels, {truth.reads} reads, {truth.tokens_after_cancel} tokens after"


def _told(played: PlayedRemote) -> str:
    told = [f"receipt: {_receipt(played)}", f"record: {_record(played)}", f"took {played.took * 1000:.0f} ms"]
    return " | ".join([*told, *played.problems])
