"""`deadstop serve-fake`: the fake server of the test kit, in the foreground."""

from __future__ import annotations

import dataclasses
import json
import signal
import ssl
import threading
from collections.abc import Sequence
from typing import Any, Callable, Optional

from deadstop.testing import FakeOpenAI, RequestRecord, RunRecord, faults
from deadstop.testing.faults.base import Fault

__all__ = ["BadFault", "parse_fault", "serve_fake"]


class BadFault(ValueError):
    """A fault can't be made of what was asked for; the message says why."""


def serve_fake(
    port: int, rate: float, tokens: int, played: Sequence[Fault], cert: Optional[str], key: Optional[str]
) -> None:
    """Serve until SIGINT or SIGTERM. Prints the base URL, an example, and each request and run when it has ended."""
    context = None
    if cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
    ends = {signal.SIGINT, signal.SIGTERM}
    # Blocked before any thread exists, and then waited for: no handler runs in the middle of anything.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with FakeOpenAI(rate, tokens, port, context, played) as server:
            _say(server.base_url)
            _say(f"Try: OPENAI_API_KEY=any OPENAI_BASE_URL={server.base_url} deadstop exec your_script.py")
            _say("Stop it with Ctrl-C.")
            threading.Thread(target=_log, args=(server,), daemon=True).start()
            threading.Thread(target=_log_runs, args=(server,), daemon=True).start()
            signal.sigwait(ends)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(line: str) -> None:
    print(line, flush=True)


def _log(server: FakeOpenAI) -> None:
    told: set[int] = set()

    def news(records: list[RequestRecord]) -> list[RequestRecord]:
        return [each for each in records if each.id not in told and each.state not in ("receiving", "generating")]

    while True:
        try:
            server.wait_for(lambda records: bool(news(records)), timeout=3600.0)
        except TimeoutError:
            continue
        for record in news(server.requests):
            told.add(record.id)
            _say(str(record))


def _log_runs(server: FakeOpenAI) -> None:
    """Tell of each remote run when it is over in truth, and again when it says something else after that."""
    told: dict[tuple[str, ...], str] = {}

    def news(runs: list[RunRecord]) -> list[RunRecord]:
        return [each for each in runs if each.truth != "active" and told.get(each.ids) != each.status]

    while True:
        try:
            server.wait_for_runs(lambda runs: bool(news(runs)), timeout=3600.0)
        except TimeoutError:
            continue
        for run in news(server.runs):
            told[run.ids] = run.status
            _say(str(run))


def parse_fault(text: str) -> Fault:
    """The fault that `NAME[:arg=value,...]` stands for. Raises `BadFault`."""
    name, _, rest = text.partition(":")
    kind = getattr(faults, name, None) if name in faults.__all__ and name != "Fault" else None
    if kind is None:
        known = ", ".join(sorted(set(faults.__all__) - {"Fault"}))
        raise BadFault(f"There is no fault {name!r}. There are: {known}.")
    fields = {each.name: str(each.type) for each in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or key not in fields:
            takes = ", ".join(f"{each}=..." for each in fields) or "nothing"
            raise BadFault(f"{name} can't make sense of {part!r}: it takes {takes}.")
        given[key] = _value(name, key, value.strip(), fields[key])
    try:
        fault: Fault = kind(**given)
    except (TypeError, ValueError) as error:
        takes = ", ".join(f"{each}=..." for each in fields)
        raise BadFault(f"{name} takes {takes}: {error}") from error
    return fault


_READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}


def _value(name: str, key: str, value: str, kind: str) -> Any:
    if value == "None" and "None" in kind:
        return None
    try:
        return _READERS.get(kind.partition(" ")[0], json.loads)(value)
    except ValueError as error:
        raise BadFault(f"{name}: {key} is of type {kind}, and {value!r} is not.") from error
