"""What a type checker makes of a program that uses deadstop: checked by `make types`, and never run."""

from __future__ import annotations

from typing import Optional

import openai
from openai.types.chat import ChatCompletion
from typing_extensions import assert_type

import deadstop
from deadstop import (
    AsyncAzureOpenAI,
    AsyncOpenAI,
    AsyncRun,
    AsyncRuns,
    AzureOpenAI,
    CancelPolicy,
    CancelReceipt,
    OpenAI,
    Run,
    Runs,
)


def clients() -> None:
    """A client is of its class, with the SDK's own parameters and `runs_url`, and so is its copy."""
    assert_type(OpenAI(api_key="any", timeout=3), OpenAI)
    assert_type(OpenAI(api_key="any", runs_url="sqlite:"), OpenAI)
    assert_type(AsyncOpenAI(runs_url="sqlite:"), AsyncOpenAI)
    assert_type(AzureOpenAI(azure_endpoint="https://azure", api_version="1", runs_url="sqlite:"), AzureOpenAI)
    assert_type(AzureOpenAI(base_url="https://azure", api_version="1"), AzureOpenAI)
    assert_type(AsyncAzureOpenAI(azure_endpoint="https://azure", api_version="1"), AsyncAzureOpenAI)
    assert_type(OpenAI().with_options(timeout=3), OpenAI)
    assert_type(OpenAI().copy(runs_url="memory:"), OpenAI)
    assert_type(AsyncOpenAI().with_options(timeout=3), AsyncOpenAI)
    assert_type(AzureOpenAI(azure_endpoint="https://azure").with_options(timeout=3), AzureOpenAI)
    with OpenAI() as client:
        assert_type(client, OpenAI)
    OpenAI(api_key=3)  # type: ignore[call-overload]
    OpenAI(no_such_parameter=3)  # type: ignore[call-overload]


def runs(client: OpenAI, azure: AzureOpenAI) -> Optional[str]:
    """What is inside a scope has the SDK's types, and what comes of a cancel has ours."""
    assert_type(azure.runs, Runs)
    with client.runs.open("chat-42", timeout=60) as run:
        assert_type(run, Run)
        reply = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
        assert_type(reply, ChatCompletion)
    assert_type(client.runs.cancel("chat-42", wait="accepted"), CancelReceipt)
    return reply.choices[0].message.content


async def async_runs(client: AsyncOpenAI) -> None:
    """The same, awaited."""
    async with client.runs.open("chat-42") as run:
        assert_type(run, AsyncRun)
    assert_type(await client.runs.cancel("chat-42"), CancelReceipt)


def attached(client: openai.OpenAI, async_client: openai.AsyncOpenAI) -> None:
    """A client that somebody else built has runs of its own sort."""
    assert_type(deadstop.attach(client), Runs)
    assert_type(deadstop.attach(async_client), AsyncRuns)


def policies() -> None:
    """The words that a policy takes are those of its docs."""
    CancelPolicy(wait="sent", evidence="engine", on_timeout="return")
    CancelPolicy(wait="done")  # type: ignore[arg-type]
