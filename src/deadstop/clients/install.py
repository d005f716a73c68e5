"""`install()`: deadstop's clients and errors under the names of the `openai` module."""

from __future__ import annotations

from typing import Any

import openai

from deadstop.clients.attach import attach
from deadstop.clients.drop_in import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI, liken
from deadstop.errors import RunCancellationTimeoutError, RunCancelledError

__all__ = ["install", "uninstall"]

_ABSENT = object()

_NAMES: dict[str, Any] = {
    "OpenAI": OpenAI,
    "Client": OpenAI,
    "AsyncOpenAI": AsyncOpenAI,
    "AsyncClient": AsyncOpenAI,
    "AzureOpenAI": AzureOpenAI,
    "AsyncAzureOpenAI": AsyncAzureOpenAI,
    "RunCancelledError": RunCancelledError,
    "RunCancellationTimeoutError": RunCancellationTimeoutError,
}

_before: dict[str, Any] = {}


def install() -> None:
    """Put the clients and the errors into the `openai` module, for programs that are not to be changed.

    After it, `from openai import OpenAI, RunCancellationTimeoutError` gives deadstop's, and the module's own client
    (`openai.chat.completions.create(...)`) can be cancelled too. What was imported before keeps what it has.
    Calling it again does nothing. `uninstall()` undoes it.
    """
    if _before:
        return
    liken(True)
    for name, ours in _NAMES.items():
        _before[name] = getattr(openai, name, _ABSENT)
        setattr(openai, name, ours)
    load = getattr(openai, "_load_client", None)
    if load is not None:
        _before["_load_client"] = load
        openai._load_client = _attached(load)
        _patch_module_client(openai._load_client)


def uninstall() -> None:
    """Give the `openai` module its own names back. Clients made meanwhile stay as they are."""
    liken(False)
    for name, theirs in _before.items():
        if theirs is _ABSENT:
            delattr(openai, name)
        else:
            setattr(openai, name, theirs)
    if "_load_client" in _before:
        _patch_module_client(_before["_load_client"])
    _before.clear()


def _attached(load: Any) -> Any:
    def load_client() -> Any:
        client = load()
        attach(client)
        return client

    return load_client


def _patch_module_client(load: Any) -> None:
    module: Any = getattr(openai, "_module_client", None)
    if module is not None and hasattr(module, "_load_client"):
        module._load_client = load
