"""Claims on Postgres: rows with an end, which their holder puts off all the time.

The database's clock says when a row may be taken. The holder goes by its own clock, counted from before it asked, so
it stops before anybody else may begin; and what it sends has to be over by then. A restart of the database, a lost
connection, a stopped process change nothing about that.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from typing import Optional

from deadstop.errors import LedgerError
from deadstop.ledger.base import Claim
from deadstop.ledger.engine import Engine

__all__ = ["LEASE", "Leases"]

LEASE = 2.5
"""How long (seconds) a claim stands without being renewed."""

RENEW = 0.6
"""How often (seconds) it is renewed."""

MARGIN = 0.1
"""How much sooner (seconds) the holder takes it for lost: clocks don't run equally fast."""

CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def elapsed() -> float:
    """Seconds that go on while the machine sleeps, where the system has them."""
    return time.monotonic() if CLOCK is None else time.clock_gettime(CLOCK)


class Lease(Claim):
    def __init__(self, leases: Leases, run: str, token: str, until: float) -> None:
        self.run = run
        self.token = token
        self.until = until
        self._leases = leases

    @property
    def held(self) -> bool:
        return self.left > 0.0

    @property
    def left(self) -> float:
        return max(self.until - MARGIN - elapsed(), 0.0)

    def release(self) -> None:
        self._leases.release([self])


class Leases:
    """The claims of this process on one ledger. A thread renews them; it is there only while there are any."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._held: dict[str, Lease] = {}
        self._changed = threading.Condition()
        self._renewing = False

    def claim(self, run: str) -> Optional[Claim]:
        """The claim on ``run``, or None if somebody has it."""
        token, asked_at = uuid.uuid4().hex, elapsed()
        values = {"run": run, "token": token, "holder": self._holder, "lease": LEASE}
        taken = self._engine.write(lambda tx: tx.one("take_claim", **values))
        if taken is None:
            return None
        made = Lease(self, run, token, asked_at + LEASE)
        with self._changed:
            self._held[token] = made
            if not self._renewing:
                self._renewing = True
                threading.Thread(target=self._renew, name="deadstop claims", daemon=True).start()
        return made

    def release(self, leases: list[Lease]) -> None:
        """Give them back. Never raises: what can't be given back ends by itself."""
        with self._changed:
            tokens = [each.token for each in leases if self._held.pop(each.token, None) is not None]
            for each in leases:
                each.until = 0.0
            self._changed.notify()
        if tokens:
            with suppress(LedgerError):
                self._engine.write(lambda tx: tx.do("release_claims", tokens=tokens))

    def _renew(self) -> None:
        with suppress(LedgerError):
            self._engine.write(lambda tx: tx.do("sweep_claims"))  # of processes that died, on runs of long ago
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._held, RENEW)
                for each in [each for each in self._held.values() if not each.held]:
                    del self._held[each.token]  # lost: it was too late once
                if not self._held:
                    self._renewing = False
                    return
                tokens = list(self._held)
            with suppress(LedgerError):  # in good time again, or they end
                self._put_off(tokens)

    def _put_off(self, tokens: list[str]) -> None:
        asked_at = elapsed()
        renewed = self._engine.write(lambda tx: tx.all("renew_claims", tokens=tokens, lease=LEASE))
        with self._changed:
            for row in renewed:
                lease = self._held.get(row["token"])
                if lease is not None and lease.held:
                    lease.until = asked_at + LEASE

    def disown(self) -> None:
        """In a forked child: they are the parent's, and the lock may be held by a thread that is not here."""
        for each in self._held.values():
            each.until = 0.0
        self._held, self._changed, self._renewing = {}, threading.Condition(), False

    def close(self) -> None:
        """Give all of them back."""
        with self._changed:
            mine = list(self._held.values())
        self.release(mine)
