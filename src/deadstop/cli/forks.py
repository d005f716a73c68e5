"""Signals to a process that the script forks, such as a worker of a pool, do what they would do without us.

The runs that such a process knows are its parent's, and go on. A handler of Python's would not do there either: it
only makes a mark, and runs when the main thread looks next (see ``wake.py``), while `terminate()` of a pool is to end
a worker that waits.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from typing import Any

from deadstop.calls.forks import in_each_child

__all__ = ["give_back"]


def give_back(handler: Any, before: Mapping[int, Any]) -> None:
    """From now on a forked child has what was there `before` (by signal) in place of `handler`.

    No signal is lost on the way: one that comes before the child has it is held back until then.
    """

    def restore() -> None:
        for number, what in before.items():
            if signal.getsignal(number) == handler:  # and not the script's own
                with contextlib.suppress(ValueError, TypeError):  # in an interpreter within; not made by Python
                    signal.signal(number, what)

    in_each_child(before, restore)
