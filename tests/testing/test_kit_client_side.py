"""The helpers that make a client's own way hard: names, connects, proxies."""

from __future__ import annotations

import http.client
import socket
import threading

import pytest
from kit_client import KitClient

from deadstop.testing import FakeOpenAI, FakeProxy, faults, full_backlog, slow_dns


def test_slow_dns_blocks_one_name_until_it_is_left() -> None:
    """The name hangs for as long as the context lasts and then is 127.0.0.1; other names are not touched."""
    found: list[str] = []

    def resolve() -> None:
        found.append(str(socket.getaddrinfo("hangs.test", 80, type=socket.SOCK_STREAM)[0][4][0]))

    real = socket.getaddrinfo
    thread = threading.Thread(target=resolve)
    with slow_dns("hangs.test") as asked:
        thread.start()
        assert asked.wait(5)
        assert socket.getaddrinfo("127.0.0.1", 80)
        assert found == []
    thread.join(5)
    assert found == ["127.0.0.1"]
    assert socket.getaddrinfo is real


def test_slow_dns_may_end_by_itself() -> None:
    """After its seconds the name resolves inside the context, asked for as bytes too."""
    with slow_dns("hangs.test", seconds=0.01):
        assert socket.getaddrinfo(b"hangs.test", 80)[0][4][0] == "127.0.0.1"


def test_a_connect_to_a_full_backlog_hangs() -> None:
    """The connect gets no answer at all."""
    with full_backlog() as address:
        with pytest.raises(socket.timeout):
            socket.create_connection(address, timeout=0.2)


@pytest.mark.parametrize("tunnel", [True, False])
def test_the_proxy_passes_on_and_ends_both_sides_at_once(tunnel: bool) -> None:
    """A call goes through, by CONNECT or forwarded; when its client leaves, the server sees it."""
    with FakeOpenAI(rate=0, faults=[faults.StallAfter(2)]) as server, FakeProxy() as proxy:
        client = http.client.HTTPConnection("127.0.0.1", int(proxy.url.rsplit(":", 1)[1]), timeout=10)
        if tunnel:
            client.set_tunnel(server.host, server.port)
        target = "/v1/chat/completions" if tunnel else f"{server.base_url}/chat/completions"
        client.request("POST", target, '{"stream": true}')
        response = client.getresponse()
        assert response.status == 200
        server.wait_for(lambda requests: requests[0].tokens_sent == 2)
        response.close()
        client.close()
        server.wait_for(lambda requests: requests[0].state == "disconnected")
        assert (proxy.tunnels, proxy.forwards) == ((1, 0) if tunnel else (0, 1))


def test_the_proxy_leaves_nothing_behind() -> None:
    """With a tunnel open and idle, leaving the context ends every thread."""
    before = set(threading.enumerate())
    with FakeOpenAI() as server:
        with FakeProxy() as proxy:
            with socket.create_connection(("127.0.0.1", int(proxy.url.rsplit(":", 1)[1]))) as client:
                client.sendall(f"CONNECT {server.host}:{server.port} HTTP/1.1\r\n\r\n".encode())
                assert client.recv(100).startswith(b"HTTP/1.1 200")
        server.wait_for(lambda _: server.open_connections == 0)
    assert set(threading.enumerate()) == before


def test_a_proxy_whose_server_is_away_says_so() -> None:
    """A target that nobody listens at is a 502."""
    with FakeOpenAI() as gone:
        pass
    with FakeProxy() as proxy, FakeOpenAI() as server, KitClient(server) as client:
        client.sock.close()
        client.sock = socket.create_connection(("127.0.0.1", int(proxy.url.rsplit(":", 1)[1])), timeout=10)
        client.sock.sendall(f"CONNECT 127.0.0.1:{gone.port} HTTP/1.1\r\n\r\n".encode())
        assert client.read_all().startswith(b"HTTP/1.1 502")
