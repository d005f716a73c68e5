"""A cancel that is under way, as other hosts find it on the bus: enough to finish it should its process die.

No prompts, outputs or keys: who wants what cancelled, and where.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from deadstop.core.model import Cause, Intent, Level
from deadstop.ledger.facts import IntentRecord, Process, RemoteRun
from deadstop.ledger.rows import bare

__all__ = ["Job", "key_of", "server_of"]

VERSION = 1


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def key_of(record: IntentRecord) -> str:
    """What a cancel is known by on the bus: two ledgers may count the lives of one name, so not by its epoch."""
    intent = record.intent
    return _short("\0".join((intent.run, str(intent.request_id), repr(intent.at))))


def server_of(base_url: str) -> str:
    """What a server is known by in a subject."""
    return _short(bare(base_url))


@dataclass(frozen=True)
class Job:
    """`owner` is the process that held the run: until somebody has claimed the job, it is the one at work.

    `worker` is the token of the claim under which somebody else works on it; `tries`, how often that came to nothing.
    """

    key: str
    intent: Intent
    owner: Process
    targets: tuple[RemoteRun, ...]
    worker: str = ""
    tries: int = 0

    @property
    def server(self) -> str:
        """That of its remote runs. Those of several servers are nobody's job: a client is one server's."""
        return server_of(self.targets[0].base_url)

    @property
    def with_owner(self) -> bool:
        """Whether nobody has claimed it yet."""
        return not self.worker and not self.tries

    def given_back(self) -> Job:
        """As it is after it came to nothing."""
        return replace(self, worker="", tries=self.tries + 1)

    def dump(self) -> bytes:
        intent, owner = self.intent, self.owner
        told = {
            "v": VERSION,
            "key": self.key,
            "run": intent.run,
            "cause": intent.cause.value,
            "reason": intent.reason,
            "actor": intent.actor,
            "level": intent.level.value,
            "request": intent.request_id,
            "at": intent.at,
            "owner": [owner.owner, owner.host, owner.pid],
            "base_url": bare(self.targets[0].base_url),
            "targets": [[each.kind, list(each.ids), each.status, each.created_at] for each in self.targets],
            "worker": self.worker,
            "tries": self.tries,
        }
        return json.dumps(told).encode()

    @classmethod
    def load(cls, data: bytes) -> Job:
        """Raises ValueError, TypeError, KeyError for what is none, or one of a later version."""
        told: dict[str, Any] = json.loads(data)
        if told["v"] != VERSION or not told["targets"]:
            raise ValueError("a job of another version")
        intent = Intent(
            str(told["run"]),
            cause=Cause(told["cause"]),
            reason=told["reason"],
            actor=told["actor"],
            level=Level(told["level"]),
            request_id=str(told["request"]),
            at=float(told["at"]),
        )
        owner, host, pid = told["owner"]
        targets = tuple(
            RemoteRun(str(kind), tuple(map(str, ids)), told["base_url"], intent.run, 0, str(owner), float(made), status)
            for kind, ids, status, made in told["targets"]
        )
        who = Process(str(owner), str(host), int(pid))
        return cls(str(told["key"]), intent, who, targets, str(told["worker"]), int(told["tries"]))
