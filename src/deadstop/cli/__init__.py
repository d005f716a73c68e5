"""The command `deadstop`. It needs the extra `cli`: `pip install "deadstop[cli]"`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command that `sys.argv` holds. Returns, or exits with, its exit code: 2 for a wrong command line."""
    try:
        from deadstop.cli.app import run

        return run()
    except ImportError as error:
        if "deadstop[" not in str(error):
            raise
        print(error, file=sys.stderr)  # a missing extra, in a sentence that names it
        return 2
