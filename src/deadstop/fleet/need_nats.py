"""nats-py, or a sentence that says how to get it; and how it is used here."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from collections.abc import Awaitable
from typing import Any, Callable, Optional

from deadstop.errors import LedgerUrlError
from deadstop.fleet.addresses import BusAddress

try:
    from nats.aio.client import Client as NatsClient
except ImportError as error:
    message = 'A bus at a nats: address needs nats-py, which does not import here: pip install "deadstop[nats]".'
    raise ModuleNotFoundError(message, name="nats") from error

__all__ = ["CONNECT", "Client", "Loop", "Tap", "drained", "flushed", "is_nobody", "options", "written"]

CONNECT = 5.0
"""How long (seconds) one attempt to connect may take."""

TURNS = 100
"""So many turns of the loop the writing of what was published is waited for. It takes two if the server reads."""

PING = 5
"""How often (seconds) the server is asked for a sign of life; two that are missing end the connection."""


class Client(NatsClient):
    """nats-py writes a PING past what still waits to be written, so its answer says nothing of that. A subscription was
    taken for ended before the server had heard of its end, and what came for it meanwhile was thrown away."""

    async def _send_ping(self, future: Optional[asyncio.Future[Any]] = None) -> None:
        if future is not None:  # somebody waits for the answer
            await written(self, patient=True)
        await super()._send_ping(future)


class Loop(asyncio.SelectorEventLoop):
    """Not that of the policy, so it is the same whatever the application uses. It knows its socket, for forks."""

    socket: Any = None

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        made = await super().create_connection(*args, **kwargs)
        self.socket = made[0].get_extra_info("socket")
        return made


class Tap(asyncio.Future[Any]):
    """What nats-py gives messages to, one by one, without a task and a queue for each of a thousand subjects."""

    hear: Callable[[Any], None]

    def set_result(self, message: Any) -> None:
        self.hear(message)


def options(address: BusAddress) -> dict[str, Any]:
    """What nats-py is given. Raises LedgerUrlError for credentials that can't be used."""
    given: dict[str, Any] = {
        "name": "deadstop",
        "allow_reconnect": False,  # connections are made anew, with all that is held then
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.1,
        "connect_timeout": CONNECT,
        "ping_interval": PING,
        "max_outstanding_pings": 2,
        "no_echo": True,
    }
    if address.credentials is not None:
        try:
            importlib.import_module("nkeys")
        except ImportError as error:
            raise LedgerUrlError('A file of credentials needs nkeys: pip install "nats-py[nkeys]".') from error
        if not os.access(address.credentials, os.R_OK):
            raise LedgerUrlError(f"The file of credentials {address.credentials!r} can't be read.")
        given["user_credentials"] = address.credentials
    return given


async def drained(subscription: Any) -> None:
    with contextlib.suppress(Exception):  # the connection has ended, and all subscriptions with it
        await subscription.drain()


async def written(client: Any, patient: bool = False) -> None:
    """Until what was published is in the kernel's hands: whoever goes on from here may end the process. `patient`: for
    as long as the connection lives, and not for some turns of the loop alone."""
    before, turns = client.pending_data_size, 0
    while before and client.is_connected and (patient or turns < TURNS):
        await asyncio.sleep(0.0 if turns < TURNS else 0.01)
        waiting = client.pending_data_size
        if waiting < before:  # it was written, and what waits now came after
            return
        before, turns = waiting, turns + 1


def flushed(then: Callable[[], None]) -> Callable[[Any], Awaitable[None]]:
    """What does `then` once all is written that was published before."""

    async def work(client: Any) -> None:
        await written(client)
        then()

    return work


def is_nobody(message: Any) -> bool:
    """Whether that comes from the server itself: there is nobody to answer."""
    return bool((message.headers or {}).get("Status") == "503")
