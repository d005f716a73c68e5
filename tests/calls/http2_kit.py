"""What the tests of HTTP/2 have in common: a server, a client, and what they look at."""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from h2_server import H2Server
from worlds import until

import deadstop
from deadstop import RunCancelledError

PEM = Path(__file__).parent.parent / "testing" / "localhost.pem"
TRUST = ssl.create_default_context(cafile=str(PEM))
CANCEL = 8  # the error code of a stream that is not wanted any more (RFC 9113, 7)


@contextlib.contextmanager
def serving(tls: bool, **kwargs: Any) -> Iterator[H2Server]:
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(PEM))
        context.set_alpn_protocols(["h2"])
    with H2Server(ssl_context=context, **kwargs) as server:
        yield server
        assert server.errors == []


@functools.lru_cache
def http_class_of(client_class: type) -> Any:
    """The HTTP client of the package that the SDK in hand rides on."""
    client = client_class(api_key="k")
    return next(each for each in type(client._client).__mro__ if each.__name__ in ("Client", "AsyncClient"))


def http_class(world: Any) -> Any:
    return http_class_of(deadstop.AsyncOpenAI if world.is_async else deadstop.OpenAI)


@contextlib.contextmanager
def http2_client(world: Any, base_url: str, **kwargs: Any) -> Iterator[Any]:
    """An SDK client over an HTTP client that speaks HTTP/2; it never retries, so that nothing heals unseen."""
    tls = base_url.startswith("https")
    own = http_class(world)(http2=True, http1=tls, verify=TRUST, **kwargs)
    client = world.client(base_url, http_client=own, max_retries=0)
    try:
        yield client
    finally:
        world.close(client)


def settled(world: Any, client: Any) -> None:
    """The connection is made, and its settings are exchanged."""
    world.start(world.create, client, max_tokens=1).result()


def call_of(client: Any, name: str) -> Any:
    calls = [call for run in client.runs.list() if run.name == name for call in list(run.calls.values())]
    return calls[0] if calls else None


def reached(client: Any, name: str, phase: str) -> None:
    until(lambda: (call := call_of(client, name)) is not None and call.phase == phase, f"{name} {phase}")


def stop(world: Any, client: Any, pending: Any, name: str = "victim") -> Any:
    """Cancel the run, and look at what its caller gets and at what the receipt says of a shared connection."""
    receipt = world.run(client.runs.cancel, name, reason="stop", timeout=5)
    error = pending.failure()
    assert isinstance(error, RunCancelledError), repr(error)
    assert receipt.outcome == "cancelled", str(receipt)
    (call,) = receipt.calls
    assert call.released
    assert not call.socket_closed, "the socket is not the call's to close"
    return receipt


def untouched(world: Any, client: Any, server: H2Server, neighbour: Any = None) -> None:
    """The neighbour is still there and gets all of its answer, and the connection goes on serving."""
    if neighbour is not None:
        assert not neighbour.done
        server.finish()
        assert neighbour.result() == server.of("endless")[0].tokens + 1
    assert world.start(world.create, client, max_tokens=2).result().choices[0].message.content == "t0 t1 "
    assert server.connections == 1, "a second connection was needed"
    assert server.goaways == []
    (pool_connection,) = client._client._transport._pool.connections
    until(pool_connection.is_idle, "an idle connection")
    assert client._client._transport._pool._requests == []


def was_reset(server: H2Server, model: str) -> None:
    """The server was told that the answer is not wanted."""
    server.wait_for(lambda _: server.of(model)[-1].state == "reset")
    assert server.of(model)[-1].code == CANCEL


def chain(error: Any) -> str:
    """An error and what it came of."""
    causes = []
    while error is not None:
        causes.append(repr(error))
        error = error.__cause__ or error.__context__
    return " <- ".join(causes)
