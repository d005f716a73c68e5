"""Each fault leads to the class that names it, and to no other: the confusion matrix, which the docs publish."""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import anyio
import pytest
from remote_runs import begin, create
from worlds import open_world

from deadstop import CancelPolicy
from deadstop.calls import fresh
from deadstop.core.model import DiagnosisClass
from deadstop.testing import FakeOpenAI, faults, full_backlog, slow_dns

DOCS = Path(__file__).resolve().parents[2] / "docs" / "diagnosis.md"
PEM = Path(__file__).resolve().parents[1] / "testing" / "localhost.pem"
POLICY = CancelPolicy(timeout=1.2, attempt_timeout=0.4, give_up=0, recheck=0, on_timeout="return")
WORLDS = ("threads", "asyncio")
ROUNDS = 1
SHORT = POLICY.replace(timeout=0.5, attempt_timeout=3.0)
"""Over before its first attempt is."""


class Stage:
    """A world, a server, a client, and the cancel that goes wrong."""

    def __init__(self, world: Any, server: FakeOpenAI, clean: contextlib.ExitStack, policy: CancelPolicy) -> None:
        self.world, self.server, self.clean, self.policy = world, server, clean, policy
        self.client = self.client_at(server.base_url)

    def client_at(self, url: str, **options: Any) -> Any:
        client = self.world.client(url, max_retries=0, **options)
        client.runs.policy = self.policy
        self.clean.callback(self.world.close, client)
        return client

    def cancel(self, target: Any = "scope", client: Any = None, **options: Any) -> Any:
        return self.world.run((client or self.client).runs.cancel, target, **options).diagnosis

    def started(self, fault: Any, kind: str = "response", path: Any = None, **options: Any) -> Any:
        """The diagnosis of the cancel of a run that was started properly, on a server with this fault."""
        begin(self.world, self.client, "scope", kind)
        self.server.add(fault, path=path)
        return self.cancel(**options)


def dns(stage: Stage) -> Any:
    stage.clean.enter_context(slow_dns("slow.test"))
    client = stage.client_at(f"http://slow.test:{stage.server.port}/v1")
    return stage.cancel("response:resp_1", client)


def connect(stage: Stage) -> Any:
    host, port = stage.clean.enter_context(full_backlog())
    return stage.cancel("response:resp_1", stage.client_at(f"http://{host}:{port}/v1"))


def tls(stage: Stage) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    slow = FakeOpenAI(ssl_context=context, faults=[faults.SlowTLS(30.0)])
    server = stage.clean.enter_context(slow)
    return stage.cancel("response:resp_1", stage.client_at(server.base_url))


def pool_wait(stage: Stage) -> Any:
    patch = stage.clean.enter_context(pytest.MonkeyPatch.context())
    patch.setattr(fresh, "CONNECTIONS", 1)
    first, second = (begin(stage.world, stage.client, None) for _ in range(2))
    stage.server.add(faults.CancelReplySlow(None), path=f"/{first['id']}/cancel")
    patient = POLICY.replace(timeout=5.0, attempt_timeout=5.0)
    stage.world.start(stage.client.runs.cancel, f"response:{first['id']}", policy=patient)
    stage.server.wait_for_runs(lambda runs: runs[0].cancels == 1)
    return stage.cancel(f"response:{second['id']}")


def network_loss(stage: Stage, timeout: float = 0.5) -> Any:
    begin(stage.world, stage.client, "before")
    stage.cancel("before")  # leaves a connection open
    return stage.started(faults.LostHeaders(), timeout=timeout)


def slow_on_each(stage: Stage) -> Any:
    return network_loss(stage, timeout=2.0)  # which is for a second attempt of full length, on a new connection


def lost_create(stage: Stage) -> Any:
    stage.server.add(faults.CreateReplyLost())
    function, args, kwargs = create(stage.client)
    stage.world.start(stage.world.call, stage.client, "scope", function, *args, **kwargs).wait()
    return stage.cancel()


def not_sent(stage: Stage) -> Any:
    stage.server.add(faults.CreateReplySlow(30.0))
    function, args, kwargs = create(stage.client)
    stage.world.start(stage.world.call, stage.client, "scope", function, *args, **kwargs)
    stage.server.wait_for_runs(lambda runs: len(runs) == 1)
    return stage.cancel(timeout=0.2)


def wrong_target(stage: Stage) -> Any:
    return stage.cancel("response:resp_nobody")


def prefix(stage: Stage) -> Any:
    made = begin(stage.world, stage.client)
    stage.server.add(faults.PrefixMatch())
    return stage.cancel(f"response:{made['id'][:-1]}")


def caller_blocked(stage: Stage) -> Any:
    entered, release = threading.Event(), threading.Event()
    stage.clean.callback(release.set)
    names = (cls.__module__.partition(".")[0] for cls in type(stage.client._client).__mro__)
    http = __import__(next(name for name in names if name.startswith("httpx")))

    def answer(request: Any) -> Any:
        entered.set()
        release.wait(20)
        return http.Response(500)

    async def answer_task(request: Any) -> Any:
        entered.set()
        with anyio.CancelScope(shield=True):
            while not release.is_set():  # noqa: ASYNC110 - it is set from another thread
                await anyio.sleep(0.01)
        return http.Response(500)

    kind, handler = (http.AsyncClient, answer_task) if stage.world.is_async else (http.Client, answer)
    client = stage.client_at("http://fake.test/v1", http_client=kind(transport=http.MockTransport(handler)))
    pending = stage.world.start(stage.world.create, client, "scope")
    assert entered.wait(10)
    found = stage.cancel("scope", client)
    release.set()
    pending.wait()
    return found


def with_fault(fault: Any, kind: str = "response", path: Any = None) -> Callable[[Stage], Any]:
    return lambda stage: stage.started(fault, kind, path)


slow = with_fault(faults.LostHeaders())
LASTING = (dns, connect, tls, pool_wait, network_loss, slow)
CASES: dict[str, tuple[str, Callable[[Stage], Any]]] = {
    "name resolution hangs": ("dns", dns),
    "full backlog": ("connect", connect),
    "TLS handshake stalls": ("tls", tls),
    "no connection free": ("pool_wait", pool_wait),
    "silent on an open connection": ("network_loss", network_loss),
    "silent on that, then on a new one": ("server_slow", slow_on_each),
    "the create's answer is lost": ("network_loss", lost_create),
    "429": ("rate_limited", with_fault(faults.Overloaded(429), path="/cancel")),
    "503": ("server_overloaded", with_fault(faults.Overloaded(503), path="/cancel")),
    "takes the connection, never answers": ("server_slow", slow),
    "cancelling for ever": ("server_slow", with_fault(faults.StaysCancelling(None), "thread_run")),
    "200, and goes on": ("server_ignored", with_fault(faults.IgnoresCancel())),
    "409, and goes on": ("server_ignored", with_fault(faults.FalseConflict(409))),
    "completed first": ("sent_too_late", with_fault(faults.CompletesFirst())),
    "an id that nobody has": ("wrong_target", wrong_target),
    "answers about another run": ("wrong_target", prefix),
    "401": ("wrong_target", with_fault(faults.Overloaded(401))),
    "the id is not known in time": ("not_sent", not_sent),
    "a transport that can't be interrupted": ("caller_blocked", caller_blocked),
}


@contextlib.contextmanager
def staged(world: str, policy: CancelPolicy = POLICY) -> Iterator[Stage]:
    with open_world(world) as one, FakeOpenAI(rate=200, tokens=10_000) as server, contextlib.ExitStack() as clean:
        yield Stage(one, server, clean, policy)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_fault_leads_to_its_class(world: str, name: str) -> None:
    """The diagnosis names the fault, each time, and says what cause it is and how to mend it."""
    expected, play = CASES[name]
    for _ in range(ROUNDS):
        with staged(world) as stage:
            found = play(stage)
        assert found is not None
        assert found.klass == expected, str(found.evidence)
        assert found.evidence
        assert found.cause
        assert found.fix


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1] in LASTING])
@pytest.mark.parametrize("world", WORLDS)
def test_a_cancel_that_is_over_before_its_first_attempt_is_diagnosed_by_that(world: str, name: str) -> None:
    """A timeout below the attempt's own, as of `cancel(timeout=2)`: the attempt counts, and the receipt has it."""
    expected, play = CASES[name]
    with staged(world, SHORT) as stage:
        found = play(stage)
        assert found is not None
        assert found.klass == expected, str(found.evidence)
        assert "Attempt 1: " in str(found.evidence)


def test_the_docs_publish_what_is_tested() -> None:
    """The table in the docs has a row for each fault, with its class and the number of trials."""
    if not DOCS.exists():
        pytest.skip("not a checkout")
    trials = len(WORLDS) * ROUNDS
    wanted = [f"| {name} | `{klass}` | {trials} of {trials} |" for name, (klass, _) in CASES.items()]
    assert re.findall(r"(?m)^\|.*\| `\w+` \| \d+ of \d+ \|$", DOCS.read_text(encoding="utf-8")) == wanted
    untested = set(DiagnosisClass) - {klass for klass, _ in CASES.values()}
    assert untested == {"unknown"}
