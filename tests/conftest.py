"""What every test shares. Async tests are marked `pytest.mark.anyio` and run on asyncio and on trio."""

from __future__ import annotations

import os

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


def pytest_configure(config: pytest.Config) -> None:
    """A hang's stacks are seen from the processes that run the tests, too: their standard output leads nowhere."""
    if hasattr(config, "workerinput"):
        writer = create_terminal_writer(config, os.fdopen(os.dup(2), "w", encoding="utf-8"))
        config.get_terminal_writer = lambda: writer  # what pytest-timeout writes to; pytest's own reporter does not


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop that an async test runs on."""
    return str(request.param)
