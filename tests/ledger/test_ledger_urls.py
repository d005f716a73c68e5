"""From a URL to a home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ledger_homes import cancel, opening

from deadstop.errors import LedgerError, LedgerUrlError, UsageError
from deadstop.ledger import connect
from deadstop.ledger.urls import state_file


@pytest.mark.parametrize(
    "url",
    [
        *("", "memory", "memory:x", "memory://", "sqlite", "sqlite://", "sqlite:///", "sqlite:x.db"),
        *("sqlite://host/x.db", "sqlite:///x/", "sqlite:///x.db?mode=ro", "mysql://host/x", "/tmp/x.db", 7, None),
    ],
)
def test_a_bad_url_is_an_error_that_says_which_are_good(url: str, tmp_path: Path) -> None:
    """It is a usage error and a ledger error, and nothing is made."""
    os.chdir(tmp_path)
    with pytest.raises(LedgerUrlError, match=r"sqlite:////absolute/path\.db") as raised:
        connect(url)
    assert isinstance(raised.value, UsageError)
    assert isinstance(raised.value, LedgerError)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_url_does_not_give_its_password_away() -> None:
    """Neither in the message nor in the facts."""
    with pytest.raises(LedgerUrlError) as raised:
        connect("mysql://user:hunter2@host/x")
    assert "hunter2" not in str(raised.value) + repr(vars(raised.value))


def test_a_path_may_be_relative_absolute_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes and a relative path, four slashes and an absolute one, or a tilde."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for url, path in (
        ("sqlite:///relative.db", tmp_path / "relative.db"),
        (f"sqlite:///{tmp_path}/absolute.db", tmp_path / "absolute.db"),
        ("sqlite:///~/deep/er/at-home.db", tmp_path / "home/deep/er/at-home.db"),
    ):
        with connect(url) as ledger:
            assert ledger.url == f"sqlite:///{path}"
        assert path.is_file()


def test_without_a_path_it_is_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``XDG_STATE_HOME`` if it is absolute, the platform's place otherwise."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with connect("sqlite:") as ledger:
        assert ledger.url == f"sqlite:///{tmp_path}/deadstop/ledger.db"
    monkeypatch.setenv("HOME", "/home/somebody")
    for relative in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", relative)
        monkeypatch.setattr("sys.platform", "linux")
        assert state_file() == Path("/home/somebody/.local/state/deadstop/ledger.db")
        monkeypatch.setattr("sys.platform", "darwin")
        assert state_file() == Path("/home/somebody/Library/Application Support/deadstop/ledger.db")


def test_each_memory_is_its_own() -> None:
    """Two ledgers in memory share nothing."""
    with connect("memory:") as one, connect("memory:") as other:
        cancel(one, opened=opening())
        assert other.intent("chat") is None


def test_a_ledger_in_memory_leaves_nothing_open() -> None:
    """One that nobody closed is closed when it is collected, without a warning."""
    connect("memory:")
