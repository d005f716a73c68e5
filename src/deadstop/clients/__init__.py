"""The SDK's clients with runs: drop-in subclasses, `attach()` for a client built elsewhere, `install()`."""

from __future__ import annotations

from deadstop.clients.attach import attach
from deadstop.clients.drop_in import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from deadstop.clients.install import install, uninstall

__all__ = ["AsyncAzureOpenAI", "AsyncOpenAI", "AzureOpenAI", "OpenAI", "attach", "install", "uninstall"]
