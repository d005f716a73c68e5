"""`deadstop explain`: what each diagnosis means, which cause it belongs to, and its fix."""

from __future__ import annotations

from typing import Optional

from deadstop.cli.extras import Console, Table, escape
from deadstop.core.explanations import CAUSES, EXPLANATIONS
from deadstop.core.model import DiagnosisClass

__all__ = ["explain"]


def explain(name: Optional[str], console: Console, errors: Console) -> int:
    """Print one diagnosis class, or all of them. The exit code: 2 for a class that does not exist."""
    if name is None:
        _all(console)
        return 0
    try:
        klass = DiagnosisClass(name.strip().lower().replace("-", "_"))
    except ValueError:
        known = ", ".join(EXPLANATIONS)
        errors.print(f"There is no diagnosis class {escape(repr(name))}. There are: {known}.")
        return 2
    found = EXPLANATIONS[klass]
    cause = CAUSES[found.number]
    console.print(f"[bold]{klass}[/bold]\n{found.summary}\n")
    console.print(f"[bold]Cause {found.number}[/bold]: {cause.cause}")
    console.print(f"[bold]Fix[/bold]: {found.fix}")
    console.print(f"In general: {cause.fix}")
    return 0


def _all(console: Console) -> None:
    table = Table(show_lines=True)
    for column in ("class", "what it means", "cause", "fix"):
        table.add_column(column, no_wrap=column in ("class", "cause"))
    for klass, found in EXPLANATIONS.items():
        table.add_row(f"[bold]{klass}[/bold]", found.summary, str(found.number), found.fix)
    console.print("Why a cancel was not confirmed in time (`error.diagnosis`, `receipt.diagnosis`):")
    console.print(table)
    console.print("Causes of a RunCancellationTimeoutError:")
    for number, remedy in CAUSES.items():
        console.print(f"  {number}. {remedy.cause}\n     {remedy.fix}")
