"""`deadstop demo`: real calls, cancelled in every phase, and what the server's own record says of it."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any, Optional

from deadstop.cli.demo.cases import CASES, Case
from deadstop.cli.demo.judge import Played
from deadstop.cli.demo.remote import REMOTE_CASES, RemoteCase, play_remote, show_remote
from deadstop.cli.demo.show import Show
from deadstop.cli.demo.stage import Stage, fake_stage
from deadstop.cli.extras import Console, escape
from deadstop.clients.drop_in import AsyncOpenAI, OpenAI

__all__ = ["demo"]


def demo(
    base_url: Optional[str] = None,
    model: Optional[str] = None,
    api_key: Optional[str] = None,
    only: Optional[str] = None,
) -> int:
    """Play the cases whose description contains `only`. The exit code: 1 where receipt and record disagree."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    cases = [each for each in CASES if only is None or only in f"{each.call}; {each.server}; {each.moment.value}"]
    remote = [each for each in REMOTE_CASES if only is None or only in f"{each.run}; {each.server}"]
    if not cases and not (remote and base_url is None):
        console.print(f"There is no call whose description contains {escape(repr(only))}.")
        return 2
    if base_url is None:
        with fake_stage() as stage:
            console.print(f"A fake server runs as process {stage.fake.pid if stage.fake else '?'}; no key is needed.")
            problems = _remotely(stage, console, remote)
            if not cases:
                return _sum_up(console, problems, f"{len(remote)} remote runs", "")
            return _beside_neighbours(stage, console, cases, problems, len(remote))
    if not api_key:
        console.print("A real server wants a key: give --api-key, or set OPENAI_API_KEY.")
        return 2
    cases = [each for each in cases if each.anywhere]
    with Stage(base_url, api_key, None, model) as stage:
        played = _play(stage, console, cases)
    reasons = [each.skipped for each in played if each.skipped]
    if not any(each.receipt and each.receipt.calls for each in played) and reasons:
        console.print(f"[red]Nothing could be played there[/red]: {escape(reasons[0])}")
        return 2
    return _close(console, played, [])


def _remotely(stage: Stage, console: Console, cases: Sequence[RemoteCase]) -> list[str]:
    """Play the remote runs. Where receipt and record disagree."""
    if stage.fake is None or not cases:
        return []
    options: dict[str, Any] = {"api_key": "none-needed", "base_url": stage.fake.base_url, "max_retries": 0}
    played = play_remote(stage.fake, lambda: OpenAI(**options), lambda: AsyncOpenAI(**options), cases, console)
    show_remote(played, console)
    return [f"{each.case.run}, {each.case.server}: {problem}" for each in played for problem in each.problems]


def _beside_neighbours(stage: Stage, console: Console, cases: Sequence[Case], so_far: list[str], remote: int) -> int:
    tokens = 100 + 30 * len(cases)  # for about as long as the show goes on
    with contextlib.ExitStack() as stack:
        neighbours = [
            stack.enter_context(stage.neighbour(task, f"neighbour-{name}", tokens))
            for task, name in ((False, "sync"), (True, "async"))
        ]
        played = _play(stage, console, cases)
        problems = so_far + [problem for each in neighbours for problem in each.problems()]
        for each in neighbours:
            console.print(f"Beside them, never cancelled: {each.model} {each.summary()}")
    return _close(console, played, problems, remote)


def _play(stage: Stage, console: Console, cases: Sequence[Case]) -> list[Played]:
    played: dict[int, Played] = {}
    waiting: list[int] = []
    with Show(console, cases, stage.fake is not None) as show:
        for number, case in enumerate(cases):
            show.tell(number, "running")
            played[number] = stage.play(case, number)
            if stage.fake is not None and case.most_after is None and not stage.is_over(number):
                waiting.append(number)  # the server works on alone; its record is read in the end
                show.tell(number, "server runs on", played[number])
            else:
                stage.finish(played[number], number)
                show.tell(number, "done", played[number])
        for number in waiting:
            stage.finish(played[number], number)
            show.tell(number, "done", played[number])
        show.end()
    return list(played.values())


def _close(console: Console, played: Sequence[Played], problems: Sequence[str], remote: int = 0) -> int:
    for number, each in enumerate(played, 1):
        problems = [*problems, *(f"{number}. {each.case.call}, {each.case.moment.value}: {p}" for p in each.problems)]
    done = [each for each in played if not each.skipped]
    for what, times in (
        ("caller free", [each.free_after for each in done if each.case.opaque is False]),
        ("server sees the end of file", [each.gone_after for each in done]),
    ):
        known = sorted(each * 1000 for each in times if each is not None)
        if known:
            middle = statistics.median(known)
            console.print(f"From the cancel to {what}: median {middle:.1f} ms, max {known[-1]:.1f} ms.")
    skipped = len(played) - len(done)
    what = f"{len(done)} calls" + (f", {remote} remote runs" if remote else "")
    return _sum_up(console, problems, what, f"; {skipped} skipped" if skipped else "")


def _sum_up(console: Console, problems: Sequence[str], what: str, tail: str) -> int:
    if problems:
        console.print(f"[red]{len(problems)} disagreements[/red] in {what}{tail}:")
        for problem in problems:
            console.print(f"  {escape(problem)}")
        return 1
    console.print(f"[green]All receipts hold[/green]: {what}{tail}.")
    return 0
