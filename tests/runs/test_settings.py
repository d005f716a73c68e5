"""Settings that can't be used are refused before there is anything to cancel, and never stop a cancel."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import openai
import pytest
from remote_runs import begin, truth

import deadstop
from deadstop import CancelPolicy, Outcome, UsageError
from deadstop.testing import FakeOpenAI

BAD = {"DEADSTOP_TIMEOUT": "soon", "DEADSTOP_RESPONSE_POLL": "-1", "DEADSTOP_CONFIG": "/nowhere/at.toml"}


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rate=50, tokens=1000) as one:
        yield one


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("make", [deadstop.OpenAI, deadstop.AsyncOpenAI])
def test_a_client_is_not_made_with_a_bad_setting(monkeypatch: Any, name: str, make: Any) -> None:
    """The variable is named at once."""
    monkeypatch.setenv(name, BAD[name])
    with pytest.raises(UsageError, match=name):
        make(api_key="k", base_url="http://127.0.0.1:1/v1")


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("make", [openai.OpenAI, openai.AsyncOpenAI])
def test_a_client_is_not_attached_with_a_bad_setting(monkeypatch: Any, name: str, make: Any) -> None:
    """It stays as it was, and can be attached when the setting is mended."""
    client = make(api_key="k", base_url="http://127.0.0.1:1/v1")
    monkeypatch.setenv(name, BAD[name])
    with pytest.raises(UsageError, match=name):
        deadstop.attach(client)
    monkeypatch.delenv(name)
    deadstop.attach(client)


@pytest.mark.parametrize("bad", ['{"timeout": "soon"}', '{"timeot": 3}', '{"kinds": {"batch": {"poll": -1}}}'])
def test_what_is_wrong_in_the_file_is_said_with_its_name(monkeypatch: Any, tmp_path: Any, bad: str) -> None:
    """Who makes a client may not know that there is a file; and what is wrong in the environment is not its fault."""
    path = tmp_path / "deadstop.json"
    path.write_text(bad, encoding="utf-8")
    monkeypatch.setenv("DEADSTOP_CONFIG", str(path))
    with pytest.raises(UsageError, match=r"(soon|timeot|batch).* It is in '.*deadstop\.json', which DEADSTOP_CONFIG"):
        deadstop.OpenAI(api_key="k")
    path.write_text("{}", encoding="utf-8")
    monkeypatch.setenv("DEADSTOP_TIMEOUT", "soon")
    with pytest.raises(UsageError, match=r"^DEADSTOP_TIMEOUT"):
        deadstop.OpenAI(api_key="k")


@pytest.mark.parametrize("name", BAD)
def test_a_scope_is_not_opened_with_a_bad_setting(world: Any, server: FakeOpenAI, monkeypatch: Any, name: str) -> None:
    """What became bad after the client was made; a scope with a policy of its own has no use for it."""
    client = world.client(server.base_url)
    monkeypatch.setenv(name, BAD[name])
    with pytest.raises(UsageError, match=name):
        client.runs.open("x")
    assert client.runs.list() == []
    client.runs.open("x", policy=CancelPolicy())
    monkeypatch.delenv(name)
    client.runs.open("y")
    world.close(client)


def test_a_bad_setting_in_the_place_of_another_variable(world: Any, server: FakeOpenAI, monkeypatch: Any) -> None:
    """One variable gone and a bad setting come: as many as before, and the scope is refused all the same."""
    monkeypatch.setenv("OTHER_THAN_OURS", "1")
    client = world.client(server.base_url)
    client.runs.open("good")
    monkeypatch.delenv("OTHER_THAN_OURS")
    monkeypatch.setenv("DEADSTOP_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="DEADSTOP_TIMEOUT"):
        client.runs.open("bad")
    monkeypatch.delenv("DEADSTOP_TIMEOUT")
    monkeypatch.setenv("OTHER_THAN_OURS", "2")
    client.runs.open("good again")
    monkeypatch.delenv("OTHER_THAN_OURS")
    last = [(name, os.environ.pop(name)) for name in list(os.environ)[-2:]]
    monkeypatch.setenv("DEADSTOP_TIMEOUT", "soon")
    os.environ.update(last)
    with pytest.raises(UsageError, match="DEADSTOP_TIMEOUT"):
        client.runs.open("bad again")
    world.close(client)


def test_an_empty_environment(world: Any, server: FakeOpenAI, monkeypatch: Any) -> None:
    """It has no bad setting, however often a scope is opened, and one that comes is seen."""
    client = world.client(server.base_url)
    with mock.patch.dict(os.environ, {}, clear=True):
        for name in ("a", "b", "c"):
            client.runs.open(name)
        os.environ["DEADSTOP_TIMEOUT"] = "soon"
        with pytest.raises(UsageError, match="DEADSTOP_TIMEOUT"):
            client.runs.open("d")
    client.runs.open("e")
    world.close(client)


@pytest.mark.parametrize("name", BAD)
def test_a_setting_that_goes_bad_stops_no_cancel(
    world: Any, server: FakeOpenAI, monkeypatch: Any, caplog: Any, name: str
) -> None:
    """It is left out, which the log says once; the others count."""
    client = world.client(server.base_url)
    work = world.start(world.create, client, "x", stream=False)
    server.wait_for(lambda requests: any(each.state == "generating" for each in requests))
    monkeypatch.setenv(name, BAD[name])
    monkeypatch.setenv("DEADSTOP_GRACE", "0.5")
    monkeypatch.setattr("deadstop.runs.settings._complained", set())
    with caplog.at_level(logging.WARNING, "deadstop"):
        assert world.run(client.runs.cancel, "x").outcome is Outcome.CANCELLED
        world.run(client.runs.cancel, "x")
    assert isinstance(work.failure(), deadstop.RunCancelledError)
    said = [each.getMessage() for each in caplog.records if name in each.getMessage()]
    assert len(said) == (name != "DEADSTOP_RESPONSE_POLL")  # which is not of calls
    assert client.runs._registry.policy_for(None, None).grace == 0.5
    world.close(client)


@pytest.mark.parametrize("name", BAD)
def test_a_setting_that_goes_bad_stops_no_cancel_of_a_remote_run(
    world: Any, server: FakeOpenAI, monkeypatch: Any, name: str
) -> None:
    """The server is asked all the same."""
    client = world.client(server.base_url)
    begin(world, client, "x")
    monkeypatch.setenv(name, BAD[name])
    assert world.run(client.runs.cancel, "x").outcome is Outcome.CANCELLED
    assert (truth(server).truth, truth(server).cancels) == ("cancelled", 1)
    world.close(client)


def test_a_file_may_name_a_kind_that_is_registered_later(monkeypatch: Any, tmp_path: Any) -> None:
    """A client may be made before; a scope needs to know what the file means."""
    (tmp_path / "deadstop.json").write_text('{"kinds": {"later": {"timeout": 5}}}')
    monkeypatch.setenv("DEADSTOP_CONFIG", str(tmp_path / "deadstop.json"))
    client = deadstop.OpenAI(api_key="k", base_url="http://127.0.0.1:1/v1")
    with pytest.raises(UsageError, match="later"):
        client.runs.open()
    (tmp_path / "deadstop.json").write_text('{"kinds": {"response": {"timeout": 5}}}')
    client.runs.open()
    client.close()


def test_an_environment_that_is_put_in_place_of_the_other_counts(
    world: Any, server: FakeOpenAI, monkeypatch: Any
) -> None:
    """As tests do with `os.environ`: its settings are read, also when the one of before had none."""
    client = world.client(server.base_url)
    client.runs.open("x")
    monkeypatch.setattr(os, "environ", {**os.environ, "DEADSTOP_TIMEOUT": "soon"})
    with pytest.raises(UsageError, match="DEADSTOP_TIMEOUT"):
        client.runs.open("y")
    monkeypatch.undo()
    client.runs.open("y")
    world.close(client)
