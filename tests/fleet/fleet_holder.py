"""A process that holds runs and does what it is told: ``python fleet_holder.py URL BASE_URL``.

It takes commands on standard input and answers them on standard output, in lines of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any, Dict  # noqa: UP035

from fleet_sweep_child import Trial

import deadstop
from deadstop.errors import CancelRefusedError


class Held:
    """A scope with a remote run in it, in a thread of its own."""

    def __init__(self, client: Any, name: str, cancellers: Any) -> None:
        self.answer: dict[str, Any] = {}
        self.known, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(client, name, cancellers), daemon=True)
        self._thread.start()
        self.known.wait(20.0)

    def _hold(self, client: Any, name: str, cancellers: Any) -> None:
        body: Any = {"model": "m", "input": "hi", "background": True}
        try:
            with client.runs.open(name, cancellers=cancellers):
                begun = client.post("/responses", body=body, cast_to=Dict[str, object])  # noqa: UP006
                client.runs._registry.keeper.member.writes.drain(20.0)
                self.answer = {"said": "open", "id": begun["id"]}
                self.known.set()
                self._leave.wait()
        except deadstop.RunCancelledError as error:
            if not self.answer:
                self.answer = {"said": "born cancelled", "reason": error.reason, "actor": error.actor}
        finally:
            self.known.set()

    def leave(self) -> None:
        self._leave.set()
        self._thread.join(20.0)


class Holder:
    def __init__(self, url: str, base_url: str) -> None:
        self._trial = Trial("")
        self._trial.watch()
        self._client = deadstop.OpenAI(api_key="k", base_url=base_url, runs_url=url, max_retries=0)
        self._held: dict[str, Held] = {}

    def open(self, run: str, cancellers: Any) -> dict[str, Any]:
        held = Held(self._client, run, cancellers)
        if held.answer.get("said") == "open":
            self._held[run] = held
        return held.answer

    def leave(self, run: str) -> dict[str, Any]:
        self._held.pop(run).leave()
        return {"said": "left"}

    def cancel_all(self) -> dict[str, Any]:
        """Every run that is held here, at once."""
        receipts = self._client.runs.cancel_all(reason="all of them")
        return {"said": sorted(str(each.outcome.value) for each in receipts)}

    def cancel(self, run: str, actor: Any, reason: str, dying: str) -> dict[str, Any]:
        """``dying``: at the next time of that point."""
        if dying:
            self._trial.at = f"{dying}:{self._trial.seen[dying] + 1}"
        try:
            receipt = self._client.runs.cancel(run, actor=actor, reason=reason, timeout=20.0)
        except CancelRefusedError:
            # What this process refuses itself is put on record just after.
            self._client.runs._registry.keeper.member.writes.drain(20.0)
            return {"said": "refused"}
        except deadstop.DeadstopError as error:
            return {"said": "failed", "error": repr(error)}
        finally:
            self._trial.at = ""
        return {"said": str(receipt.outcome.value), "reason": receipt.reason, "note": receipt.note}


def main(url: str, base_url: str) -> None:
    holder = Holder(url, base_url)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(holder, command.pop("do"))(**command)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
