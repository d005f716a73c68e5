"""A task looks a name up before it connects: both have one timeout, as with the plain client."""

from __future__ import annotations

import types
from typing import Any

import anyio
import pytest

from deadstop.calls import network_concurrent
from deadstop.core.model import Phase
from deadstop.testing import slow_dns


class Inner:
    """The package's backend, as far as it is asked for a connection."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.asked: list[tuple[Any, Any]] = []

    async def connect_tcp(self, host: str, port: int, timeout: Any, *more: Any) -> Any:
        self.asked.append((timeout, self.call.phase))
        raise ConnectionRefusedError


def connected(library: str, monkeypatch: pytest.MonkeyPatch, host: str, timeout: Any) -> tuple[Any, Any, Any]:
    """With what timeout it went on to connect, in which phase, and what it noted."""
    noted: dict[str, Any] = {}
    call: Any = types.SimpleNamespace(check=lambda: None, resolves_first=True, phase=None, note=noted.update)
    inner = Inner(call)
    monkeypatch.setattr(network_concurrent, "active_call", lambda: call)
    backend = network_concurrent.Backend(inner)

    async def connect() -> None:
        with pytest.raises(ConnectionRefusedError):
            await backend.connect_tcp(host, 80, timeout)

    anyio.run(connect, backend=library)
    (asked,) = inner.asked
    return (*asked, noted)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_lookup_that_took_all_the_time_leaves_none(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it hung at to the end was the name, so that is what a diagnosis has to say."""
    with slow_dns("slow.test", seconds=0.6):  # and no longer: the end of the loop waits for its thread
        timeout, phase, noted = connected(library, monkeypatch, "slow.test", 0.1)
    assert (timeout, phase) == (0.0, Phase.RESOLVING)
    assert noted["dns"] >= 0.09


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_connect_has_what_its_lookup_left(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name was found, late."""
    with slow_dns("slow.test", seconds=0.2):
        timeout, phase, _ = connected(library, monkeypatch, "slow.test", 30.0)
    assert 0 < timeout < 29.85
    assert phase == Phase.CONNECTING


@pytest.mark.parametrize("library", ["asyncio", "trio"])
@pytest.mark.parametrize("timeout", [None, 30.0])
def test_an_address_is_not_looked_up(library: str, timeout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing that could hang."""
    assert connected(library, monkeypatch, "127.0.0.1", timeout) == (timeout, Phase.CONNECTING, {})
