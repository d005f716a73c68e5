"""Seconds that no system can wait for at a time: they mean "practically never", and break nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from remote_runs import begin, truth

from deadstop import CancelPolicy
from deadstop.cli.exec import Supervisor
from deadstop.testing import FakeOpenAI

huge = pytest.mark.parametrize("seconds", [3e6, 1e10, 1e18, 1e308])


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=200, tokens=10_000) as one:
        yield one


@huge
def test_a_cancel_by_a_policy_of_centuries(world: Any, server: FakeOpenAI, seconds: float) -> None:
    """Each of its times is as long as can be: the request goes out, and the cancel is confirmed."""
    client = world.client(server.base_url, max_retries=0)
    names = ("timeout", "attempt_timeout", "grace", "poll", "give_up", "recheck")
    client.runs.policy = CancelPolicy(**dict.fromkeys(names, seconds))
    begin(world, client, "chat-42", "response")
    receipt = world.run(client.runs.cancel, "chat-42")
    assert receipt.outcome == "cancelled"
    assert [each.error for child in receipt.children for each in child.attempts] == [None]
    assert truth(server).truth == "cancelled"
    world.close(client)


def test_a_call_whose_client_waits_for_weeks(world: Any, server: FakeOpenAI) -> None:
    """A timeout that the plain client can work with, ours can, too."""
    client = world.client(server.base_url, timeout=3e6, max_retries=0)
    assert world.run(world.create, client, "chat-42", max_tokens=3).choices
    world.close(client)


@huge
def test_a_script_that_may_take_centuries_to_end(seconds: float) -> None:
    """`deadstop exec --grace`: the thread that ends the script after that can wait for it."""
    assert Supervisor(seconds)._grace <= 3e6
