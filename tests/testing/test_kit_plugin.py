"""The pytest plugin."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deadstop.testing import FakeOpenAI
from deadstop.testing.plugin import fake_openai as _fake_openai

fake_openai = _fake_openai

WITHOUT_H11 = """
import sys
import openai  # whose transport needs h11 too, and keeps its own
sys.modules["h11"] = None
import deadstop.testing.plugin, deadstop.testing
try:
    deadstop.testing.FakeOpenAI
except ImportError as error:
    print(error)
"""


def test_the_fixture_is_a_running_server(fake_openai: FakeOpenAI) -> None:
    """`fake_openai` is started and knows its URL."""
    assert fake_openai.port > 0
    assert fake_openai.requests == []


def test_a_missing_h11_is_said_clearly(pytestconfig: pytest.Config) -> None:
    """Without h11 the plugin still loads, and using the kit names what to install."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_H11],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(pytestconfig.rootpath / "src"), "PATH": ""},
    )
    assert 'pip install "deadstop[testing]"' in done.stdout
