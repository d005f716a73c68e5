"""Servers over plain sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

import pytest
from raw_kit import Server, open_clients


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(talk: Callable[..., Any]) -> Server:
        servers.append(Server(talk))
        return servers[-1]

    yield start
    while open_clients:
        open_clients.pop().close()
    for each in servers:
        each.close()
