"""X.509 workload identity: the SDK sends by a client of its own making, past the one that it was given."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from remote_runs import begin, create, http_package, truth

import deadstop
from deadstop import CancelPolicy, RunCancelledError
from deadstop.testing import FakeOpenAI

auth = pytest.importorskip("openai.auth")
if not hasattr(auth, "x509_workload_identity"):
    pytest.skip("this SDK has no X.509 workload identity", allow_module_level=True)


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


class Front:
    """In the place of OpenAI's mTLS hosts: hands out tokens, and sends the rest to the fake server."""

    def __init__(self, world: Any, server: FakeOpenAI, lifetime: float) -> None:
        self.httpx = http_package(world)
        self.server = self.httpx.URL(server.base_url)
        self.lifetime = lifetime
        self.tokens = ""
        """The address of a server that hands out tokens, if not this."""
        self.seen: list[tuple[str, Any, bool]] = []
        """Of each request: its path, its key, and whether it went by the user's own transport."""

    def transport(self, is_async: bool) -> Any:
        front, httpx = self, self.httpx

        def answer(transport: Any, request: Any) -> Any:
            front.seen.append((request.url.path, request.headers.get("Authorization"), transport.mine is transport))
            to = front.server
            if request.url.host == "mtls.auth.openai.com":
                to = front.tokens and httpx.URL(front.tokens)
            if not to:
                token = f"t{len(front.seen)}"
                return httpx.Response(200, json={"access_token": token, "expires_in": front.lifetime})
            request.url = request.url.copy_with(scheme="http", host=to.host, port=to.port)
            return None

        class Sync(httpx.BaseTransport):
            def __init__(self) -> None:
                self.inner, self.mine = httpx.HTTPTransport(), self

            def handle_request(self, request: Any) -> Any:
                return answer(self, request) or self.inner.handle_request(request)

            def close(self) -> None:
                self.inner.close()

        class Async(httpx.AsyncBaseTransport):
            def __init__(self) -> None:
                self.inner, self.mine = httpx.AsyncHTTPTransport(), self

            async def handle_async_request(self, request: Any) -> Any:
                return answer(self, request) or await self.inner.handle_async_request(request)

            async def aclose(self) -> None:
                await self.inner.aclose()

        return Async() if is_async else Sync()


def client_of(world: Any, front: Front) -> Any:
    kind = front.httpx.AsyncClient if world.is_async else front.httpx.Client
    return (deadstop.AsyncOpenAI if world.is_async else deadstop.OpenAI)(
        workload_identity=auth.x509_workload_identity(identity_provider_id="p", service_account_id="s"),
        http_client=kind(transport=front.transport(world.is_async)),
        max_retries=0,
    )


def test_a_call_is_cancelled(world: Any, server: FakeOpenAI) -> None:
    """What the SDK sends by its own client is interrupted, and streamed inside, like any other call."""
    client = client_of(world, Front(world, server, 3600))
    work = world.start(world.create, client, "x")
    server.wait_for(lambda requests: any(each.state == "generating" for each in requests))
    receipt = world.run(client.runs.cancel, "x")
    assert isinstance(work.failure(), RunCancelledError)
    assert (receipt.outcome, receipt.calls[0].streamed) == ("cancelled", "inside")
    world.close(client)


@pytest.mark.parametrize("lifetime", [3600, 0.001])
def test_a_remote_run_is_cancelled_on_the_channel_s_own_connections(
    world: Any, server: FakeOpenAI, lifetime: float
) -> None:
    """The cancel is built, not sent, by the SDK; a token that has expired is renewed there, too (I16)."""
    front = Front(world, server, lifetime)
    client = client_of(world, front)
    begin(world, client, "x")
    before = len(front.seen)
    receipt = world.run(client.runs.cancel, "x", policy=CancelPolicy(timeout=5.0, recheck=0))
    assert receipt.outcome == "cancelled"
    assert (truth(server).truth, truth(server).cancels) == ("cancelled", 1)
    since = front.seen[before:]
    assert not any(mine for _, _, mine in since)
    assert all(key.startswith("Bearer t") for path, key, _ in since if path.startswith("/v1/responses"))
    assert any(path == "/oauth/token" for path, _, _ in since) is (lifetime < 1)
    world.close(client)


def test_a_cancel_while_a_token_is_fetched_leaves_no_orphan(world: Any, server: FakeOpenAI) -> None:
    """Nothing of the request has left, so nothing is submitted any more, and there is no run to look for (I12, I13)."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        front = Front(world, server, 3600)
        front.tokens = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = client_of(world, front)
        function, args, kwargs = create(client)
        work = world.start(world.call, client, "x", function, *args, **kwargs)
        with silent.accept()[0] as connection:
            assert connection.recv(65536)
            receipt = world.run(client.runs.cancel, "x", timeout=5.0)
        assert isinstance(work.failure(), RunCancelledError)
        assert (receipt.outcome, [each.orphan_suspect for each in receipt.children]) == ("cancelled", [None])
        assert receipt.elapsed < 1
        assert not server.requests
        world.close(client)
