"""An address in two parts: where the record is, and after a space the bus that carries signals between hosts."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional
from urllib.parse import parse_qsl, urlsplit

from deadstop.errors import LedgerUrlError

__all__ = ["OVER_BUS", "BusAddress", "split"]

OVER_BUS = "nats:"
"""What a reply address on the bus begins with; a socket's is a path."""

FORMS = "Give nats://host:4222, tls://user:password@host/space, or several of them with commas between."

_PARTS = re.compile(r"(?:(?P<ledger>.*\S)\s+)?(?P<bus>(?:nats|tls|wss?)://\S+)\s*", re.DOTALL)
_SPACE = re.compile(r"[A-Za-z0-9_-]{0,64}")


class BusAddress(NamedTuple):
    """Servers to try in turn; the space that separates the runs of one application from those of others."""

    servers: tuple[str, ...]
    space: str
    credentials: Optional[str]
    shown: str
    """Without names and passwords."""


def split(url: str) -> tuple[str, Optional[BusAddress]]:
    """The ledger's address, and the bus's if there is one: ``postgresql://db/app nats://bus:4222``.

    A bus alone has a ledger in memory. Several servers of one cluster are separated by commas; the path is the space
    (``nats://bus:4222/staging``), and ``?creds=/path`` a file of credentials. Raises LedgerUrlError.
    """
    found = _PARTS.fullmatch(str(url))
    if found is None:
        return url, None
    return found["ledger"] or "memory:", _bus(found["bus"])


def _bus(text: str) -> BusAddress:
    servers, shown, spaces, credentials = [], [], set[str](), None
    for each in text.split(","):
        try:
            parts = urlsplit(each)
            host, port = parts.hostname, parts.port or 4222
        except ValueError:
            host, port, parts = None, 0, urlsplit("")
        query = dict(parse_qsl(parts.query))
        space = parts.path.strip("/")
        if parts.scheme not in ("nats", "tls", "ws", "wss") or not host or set(query) - {"creds"} or parts.fragment:
            raise LedgerUrlError(f"This is no address of a bus: {_hidden(text)}. {FORMS}")
        if not _SPACE.fullmatch(space):
            raise LedgerUrlError(f"A space on a bus is up to 64 letters, digits, - and _, and not {space!r}.")
        login, at, _ = parts.netloc.rpartition("@")
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        servers.append(f"{parts.scheme}://{login}{at}{where}")
        shown.append(f"{parts.scheme}://{where}")
        spaces |= {space} - {""}
        credentials = query.get("creds", credentials)
    if len(spaces) > 1:
        raise LedgerUrlError(f"The servers of a bus have one space, and not {' and '.join(sorted(spaces))}.")
    space = next(iter(spaces), "")
    return BusAddress(tuple(servers), space or "default", credentials, ",".join(shown) + (f"/{space}" if space else ""))


def _hidden(text: str) -> str:
    return repr(text) if "@" not in text else f"one that begins with {text.partition(':')[0] + ':'!r}"
