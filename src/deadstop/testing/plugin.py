"""The pytest plugin: the fixture `fake_openai`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deadstop.testing.server import FakeOpenAI


@pytest.fixture
def fake_openai() -> Iterator[FakeOpenAI]:
    """A running FakeOpenAI, stopped after the test."""
    # Not above: this module is loaded by every pytest run, h11 only by those that use the fixture.
    from deadstop.testing import FakeOpenAI

    with FakeOpenAI() as server:
        yield server
