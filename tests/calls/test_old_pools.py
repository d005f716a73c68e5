"""httpcore of before: backends without socket options, modules under other names, pools of another make.

What a pool of httpcore 0.17 does is seen by all tests of a cell of the matrix. Here is what is older still.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from deadstop.calls import connect, fresh
from deadstop.calls.pool import renew
from deadstop.testing import FakeOpenAI


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=0, tokens=3) as one:
        yield one


class Backend:
    """A network backend as before httpcore 0.17.2."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, host: str, port: int, timeout: Any = None, local_address: Any = None) -> Any:
        return self._inner.connect_tcp(host, port, timeout, local_address)


def test_a_backend_without_socket_options_is_not_given_any(world: Any, server: FakeOpenAI) -> None:
    """It knows no such argument, and a call over it failed with "Connection error."."""
    client = world.client(server.base_url, max_retries=0)
    pool = client._client._transport._pool
    pool._network_backend = Backend(pool._network_backend)
    assert world.start(world.create, client, max_tokens=2).result().choices
    world.close(client)


def test_the_stream_of_an_old_httpcore_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module had another name, without which no thread could connect."""
    old, backends, module = (ModuleType(name) for name in ("oldcore", "oldcore.backends", "oldcore.backends.sync"))
    old.__path__ = []
    backends.__path__ = []
    module.SyncStream = lambda sock: ("stream of", sock)  # type: ignore[attr-defined]
    for each in (old, backends, module):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    with socket.socket() as sock:
        assert connect.stream_of(old, sock) == ("stream of", sock)


class OldPool:
    """The lists and the lock of a pool up to httpcore 1.0.2."""

    def __init__(self) -> None:
        self._network_backend = object()
        self._pool: list[Any] = ["a connection"]
        self._requests: list[Any] = ["a request"]
        self._pool_lock = SimpleNamespace()


@pytest.mark.parametrize("make", [renew, fresh.fresh_client], ids=["reset", "channel"])
def test_a_fresh_pool_shares_nothing_with_an_old_one(make: Any) -> None:
    """A cancel over it would wait where it is to relieve (I16), and its end would close the user's connections."""
    pool = OldPool()
    holder = SimpleNamespace(_transport=SimpleNamespace(_pool=pool))
    if make is renew:
        renew(holder._transport)
        found = holder._transport._pool
    else:
        found = make(holder)._transport._pool
    assert (found._pool, found._requests) == ([], [])
    assert found._pool_lock is not pool._pool_lock
    assert (pool._pool, pool._requests) == (["a connection"], ["a request"])
