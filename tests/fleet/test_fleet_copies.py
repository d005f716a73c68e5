"""What there is once and no more: of a client that is copied, and of a process that forks."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest

import deadstop
from deadstop.fleet.members import member_of
from deadstop.runs import keeper
from deadstop.runs.limits import Line

CLASSES: dict[str, dict[str, Any]] = {
    "OpenAI": {"base_url": "http://127.0.0.1:9/v1"},
    "AsyncOpenAI": {"base_url": "http://127.0.0.1:9/v1"},
    "AzureOpenAI": {"azure_endpoint": "http://127.0.0.1:9", "api_version": "1"},
    "AsyncAzureOpenAI": {"azure_endpoint": "http://127.0.0.1:9", "api_version": "1"},
}


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_copy_holds_nothing_of_its_own(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose ledger comes from the environment: a copy has the client's runs, and does not read the record itself."""
    monkeypatch.setenv("DEADSTOP_URL", url)
    monkeypatch.setenv("OPENAI_API_VERSION", "1")  # the first releases of the SDK do not hand it on to a copy
    client = getattr(deadstop, name)(api_key="k", **CLASSES[name])
    kept = client.runs._registry.keeper
    gc.disable()
    try:
        copies = [client.with_options(timeout=3) for _ in range(5)]
        assert list(member_of(url).holders) == [kept]
        assert {id(each.runs) for each in copies} == {id(client.runs)}
        assert client.runs._registry.keeper is kept
    finally:
        gc.enable()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_client_that_is_made_after_a_copy_keeps_its_own(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a copy that failed."""
    monkeypatch.setenv("DEADSTOP_URL", url)
    client = deadstop.OpenAI(api_key="k", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="mutually exclusive"):
        client.copy(default_headers={}, set_default_headers={})
    another = deadstop.OpenAI(api_key="k", base_url="http://127.0.0.1:9/v1")
    assert isinstance(another.runs._registry.keeper, keeper.Keeper)
    assert another.runs._registry.keeper is not client.runs._registry.keeper


class Place:
    """One that waits for a place among the requests to a server."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self) -> None:
        self.asked += 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_forked_child_waits_for_no_answer_to_its_parent(url: str) -> None:
    """Its parent asked for a place at the fork: the child's first cancel asks on its own, the parent's line goes on."""
    member, first, second, of_child = member_of(url), Place(), Place(), Place()
    line: Any = Line(member, "http://127.0.0.1:9/v1")
    line.join(first)
    line.join(second)
    pid = os.fork()
    if pid == 0:
        line.join(of_child)
        os._exit((of_child.asked, second.asked) != (1, 0))
    assert os.waitpid(pid, 0)[1] == 0
    assert (first.asked, second.asked) == (1, 0)
    line.answered()
    assert second.asked == 1
