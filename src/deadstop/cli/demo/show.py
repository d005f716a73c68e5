"""The table, live on a terminal, and a line for each case elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Optional

from deadstop.cli.demo.cases import Case
from deadstop.cli.demo.judge import Played
from deadstop.cli.extras import Console, Live, Table, escape
from deadstop.core.model import CancelReceipt, Outcome

__all__ = ["Show", "of_receipt", "of_records"]


class Show:
    """What the audience sees."""

    def __init__(self, console: Console, cases: Sequence[Case], with_records: bool) -> None:
        self._console, self._cases, self._with_records = console, cases, with_records
        self._rows: dict[int, tuple[str, Optional[Played]]] = {}
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Show:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._live:
            self._live.stop()

    def tell(self, number: int, state: str, played: Optional[Played] = None) -> None:
        """A case's state has changed: `running`, `server runs on`, `done`."""
        self._rows[number] = (state, played)
        if self._live:
            self._live.update(self.table(), refresh=True)
        elif played is not None:
            case = self._cases[number]
            verdict = _verdict(state, played)
            self._console.print(f"{verdict} {number + 1:>2}. {case.call}; {case.moment.value}: {_told(played)}")

    def end(self) -> None:
        """The final table, where no live one stands already."""
        if not self._live:
            self._console.print(self.table())

    def table(self) -> Table:
        """All that is known."""
        table = Table(expand=False, show_lines=False, header_style="bold")
        table.add_column("#", justify="right", no_wrap=True)
        table.add_column("call")
        table.add_column("server")
        table.add_column("cancelled while")
        table.add_column("receipt")
        if self._with_records:
            table.add_column("server's own record")
        table.add_column("caller free, ms", justify="right")
        if self._with_records:
            table.add_column("server sees EOF, ms", justify="right")
        table.add_column("agree" if self._with_records else "", no_wrap=True)
        for number, (state, played) in sorted(self._rows.items()):
            case = self._cases[number]
            cells = [str(number + 1), case.call, case.server if self._with_records else "real", case.moment.value]
            if played is None or played.skipped:
                cells += [f"[dim]{escape(played.skipped or '')}[/dim]" if played else ""]
                cells += [""] * (3 if self._with_records else 1)
            else:
                cells += [escape(of_receipt(played.receipt))]
                cells += [of_records(played)] if self._with_records else []
                cells += [_ms(played.free_after)]
                cells += [_ms(played.gone_after)] if self._with_records else []
            table.add_row(*cells, _verdict(state, played))
        return table


def of_receipt(receipt: Optional[CancelReceipt]) -> str:
    """What a receipt says, in a few words."""
    if receipt is None:
        return "none"
    words = [receipt.outcome.replace("_", " ")]
    if receipt.diagnosis:
        words.append(str(receipt.diagnosis.klass))
    if receipt.outcome in (Outcome.CANCELLED, Outcome.UNCONFIRMED):
        for call in receipt.calls:
            words += [str(call.phase).replace("_", " "), f"server {str(call.server_work).replace('_', ' ')}"]
        if not receipt.calls:
            words.append("no call")
    if receipt.delivered.chunks:
        words.append(f"{receipt.delivered.chunks} events")
    return ", ".join(words)


def of_records(played: Played) -> str:
    """What the server's record says, in a few words."""
    if not played.final:
        return "no request"
    told = []
    for each in played.final:
        said = each.state if each.status in (None, 200) else f"answered {each.status}"
        told.append(f"{said}, {each.tokens_generated} tokens, {each.tokens_after_disconnect} after")
    return "; ".join(told)


def _told(played: Played) -> str:
    if played.skipped:
        return played.skipped
    parts = [f"receipt: {of_receipt(played.receipt)}"]
    if played.final or played.then:
        parts.append(f"record: {of_records(played)}" if played.final else "the server is still generating")
    if played.free_after is not None:
        parts.append(f"caller free in {_ms(played.free_after)} ms")
    return " | ".join([*parts, *played.problems])


def _verdict(state: str, played: Optional[Played]) -> str:
    if played is None or state != "done":
        return f"[dim]{state}[/dim]"
    if played.skipped:
        return "[yellow]skipped[/yellow]"
    return "[red]NO[/red]" if played.problems else "[green]yes[/green]"


def _ms(seconds: Optional[float]) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f}"
