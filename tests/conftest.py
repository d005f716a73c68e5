"""What every test shares. Async tests are marked `pytest.mark.anyio` and run on asyncio and on trio."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from worlds import world

__all__ = ["anyio_backend", "world"]

# Examples are the same in every run, and a slow machine is no failure.
# HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop that an async test runs on."""
    return str(request.param)
