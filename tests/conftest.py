"""What every test shares. Async tests are marked `pytest.mark.anyio` and run on asyncio and on trio."""

from __future__ import annotations

import os
import weakref
from asyncio import selector_events
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.config import create_terminal_writer
from hypothesis import settings
from worlds import world

__all__ = ["anyio_backend", "world"]

# Examples are the same in every run, and a slow machine is no failure.
# HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# To read a system's certificates is most of what the making of a client takes: 40 ms, a few thousand times. No test
# needs one of them: where TLS is spoken, the test says whom to trust. This one is nobody's.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("nobody.pem"))


def pytest_configure(config: pytest.Config) -> None:
    """A hang's stacks are seen from the processes that run the tests, too: their standard output leads nowhere."""
    if hasattr(config, "workerinput"):
        writer = create_terminal_writer(config, os.fdopen(os.dup(2), "w", encoding="utf-8"))
        config.get_terminal_writer = lambda: writer  # what pytest-timeout writes to; pytest's own reporter does not


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop that an async test runs on."""
    return str(request.param)


_made: list[weakref.ref[Any]] = []
_init = selector_events._SelectorTransport.__init__


def _noting(self: Any, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    _made.append(weakref.ref(self))


selector_events._SelectorTransport.__init__ = _noting


@pytest.fixture(autouse=True)
def no_connection_outlives_its_loop() -> Iterator[None]:
    """The garbage collector finds a connection that nobody closed, but in another test. It is told here, and of this.

    Autouse fixtures come first, so every loop of the test is over by then.
    """
    _made.clear()
    yield
    found = [transport for transport in (each() for each in _made) if transport is not None]
    left = [each for each in found if each._sock is not None and each._loop is not None and each._loop.is_closed()]
    assert not left, f"left open on a closed loop: {left}"
