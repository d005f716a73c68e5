"""What the command line needs of typer and rich, or a sentence that says how to get them."""

from __future__ import annotations

try:
    import typer
    from rich.console import Console
    from rich.live import Live
    from rich.markup import escape
    from rich.table import Table
except ModuleNotFoundError as error:
    message = (
        f"The command deadstop needs typer and rich, and {error.name} is not installed: "
        'install deadstop[cli], as by pip install "deadstop[cli]".'
    )
    raise ModuleNotFoundError(message, name=error.name) from error

__all__ = ["Console", "Live", "Table", "escape", "typer"]
