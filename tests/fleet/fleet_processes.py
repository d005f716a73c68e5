"""Processes that hold runs and do what a test tells them."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Optional

from fleet_homes import BOUND, HOLDER, Child


class Holder:
    """A process that holds runs, and does what it is told."""

    def __init__(self, child: Any, url: str, base_url: str, **env: str) -> None:
        self._child: Child = child(url, base_url, script=HOLDER, **env)

    def do(self, what: str, **facts: Any) -> Optional[dict[str, Any]]:
        """Its answer; None if it died of it."""
        self.tell(what, **facts)
        return self.answer()

    def tell(self, what: str, **facts: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._child.say(json.dumps({"do": what, **facts}))

    def answer(self) -> Optional[dict[str, Any]]:
        line = self._child.line(BOUND + 10.0)
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._child.end()
        return None

    def kill(self) -> None:
        self._child.kill()
