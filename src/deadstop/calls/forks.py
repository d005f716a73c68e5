"""What is put right in a forked child before any signal's handler runs there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection
from typing import Any, Callable

__all__ = ["in_each_child"]


def in_each_child(numbers: Collection[Any], work: Callable[[], None]) -> None:
    """From now on `work()` is called in each forked child. None of these signals is handled there before, or lost."""
    if not hasattr(os, "register_at_fork"):  # Windows, where nothing forks
        return
    masks = threading.local()  # more than one thread may fork at a time

    def hold_back() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def go_on() -> None:
        before = vars(masks).pop("before", None)
        if before is not None:  # or this was asked for in the midst of a fork, by another thread
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def begin() -> None:
        try:
            work()
        finally:
            go_on()

    os.register_at_fork(before=hold_back, after_in_parent=go_on, after_in_child=begin)
