"""A pytest plugin: the SDK's own tests run on deadstop's clients. `compare.py` starts it.

`DEADSTOP_SDK_TESTS` says how: `plain` leaves everything as it is, `installed` calls `deadstop.install()` before the
tests import anything, `scoped` runs each test inside a run scope too, and `attached` attaches to every client that is
built. Every test's outcome goes to the file that `DEADSTOP_SDK_OUTCOMES` names.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, Optional

import openai
import pytest

HOW = os.environ.get("DEADSTOP_SDK_TESTS", "plain")


def _install() -> None:
    import deadstop

    deadstop.install()
    # The tests import the clients from the modules that define them, too.
    for module in ("openai._client", "openai.lib.azure"):
        for name in ("OpenAI", "AsyncOpenAI", "Client", "AsyncClient", "AzureOpenAI", "AsyncAzureOpenAI"):
            if hasattr(sys.modules[module], name):
                setattr(sys.modules[module], name, getattr(openai, name))


def _attach() -> None:
    import deadstop

    def attaching(init: Any) -> Any:
        @functools.wraps(init)
        def attached(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            deadstop.attach(self)

        return attached

    for cls in (openai.OpenAI, openai.AsyncOpenAI):
        cls.__init__ = attaching(cls.__init__)  # type: ignore[method-assign]


class _Everywhere:
    """Stands in for the context variable of the innermost scope: a fixture's context does not reach async tests."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self.scope: Optional[Any] = None

    def get(self) -> Any:
        return self._variable.get() or self.scope

    def __getattr__(self, name: str) -> Any:
        return getattr(self._variable, name)


if HOW in ("installed", "scoped"):
    _install()
elif HOW == "attached":
    _attach()

if HOW == "scoped":
    from deadstop.runs import registry, run
    from deadstop.runs.blocking import Run, Runs

    everywhere: Any = _Everywhere(run.current_run)
    registry.current_run = run.current_run = everywhere
    runs = Runs(registry.Registry(Run))

    @pytest.fixture(autouse=True)
    def scope() -> Iterator[None]:
        with runs.open() as everywhere.scope:
            yield
            everywhere.scope = None


class _Outcomes:
    def __init__(self) -> None:
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        tells = report.when == "call" or report.outcome != "passed"
        if tells and self._outcomes.get(report.nodeid, "passed") == "passed":
            self._outcomes[report.nodeid] = report.outcome

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._outcomes[f"collecting {report.nodeid}"] = "failed"

    def pytest_sessionfinish(self) -> None:
        with open(os.environ["DEADSTOP_SDK_OUTCOMES"], "w") as file:
            json.dump(self._outcomes, file)


def pytest_configure(config: Any) -> None:
    if not hasattr(config, "workerinput"):  # under xdist the controller sees every report
        config.pluginmanager.register(_Outcomes())
