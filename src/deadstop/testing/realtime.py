"""A realtime server over websockets, with a record of what it did. It needs `websockets`."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any


@dataclass
class RealtimeRecord:
    """One response of a connection: the ground truth. `status` is its end, or `in_progress`."""

    id: str
    status: str = "in_progress"
    deltas: int = 0
    cancels: int = 0


@dataclass
class FakeRealtime:
    """A server for `client.realtime.connect()` on 127.0.0.1, running inside `with`.

    A response sends `rate` deltas a second until it has sent `deltas`. `created_after` (seconds) holds its
    `response.created` back; a cancel that arrives before that is lost, as on the real API. `ignores_cancel` goes on
    after a cancel; `completes_first` ends a response at the moment its cancel arrives.
    """

    rate: float = 200.0
    deltas: int = 10_000
    created_after: float = 0.0
    ignores_cancel: bool = False
    completes_first: bool = False
    records: list[RealtimeRecord] = field(default_factory=list)
    lost_cancels: int = 0

    def __enter__(self) -> FakeRealtime:
        try:
            from websockets.sync.server import serve
        except ImportError as error:
            raise ImportError("FakeRealtime needs websockets: pip install websockets.") from error
        self._server = serve(self._serve, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(5.0)

    @property
    def base_url(self) -> str:
        """What goes into `OpenAI(base_url=...)`."""
        return f"http://127.0.0.1:{self._server.socket.getsockname()[1]}/v1"

    def _serve(self, peer: Any) -> None:
        threads = []
        cancelled: dict[str, threading.Event] = {}
        try:
            for message in peer:
                event = json.loads(message)
                if event["type"] == "response.create":
                    record = RealtimeRecord(f"resp_rt{len(self.records) + 1}")
                    self.records.append(record)
                    stop = threading.Event()
                    threads.append(threading.Thread(target=self._generate, args=(peer, record, stop, cancelled)))
                    threads[-1].start()
                elif event["type"] == "response.cancel":
                    self._cancel(peer, event.get("response_id"), cancelled)
        finally:
            for stop in cancelled.values():
                stop.set()
            for thread in threads:
                thread.join(5.0)

    def _cancel(self, peer: Any, name: Any, cancelled: dict[str, threading.Event]) -> None:
        stop = cancelled.get(name) if name else next(reversed(list(cancelled.values())), None)
        if stop is None:
            self.lost_cancels += 1
            told = {"type": "invalid_request_error", "code": "response_cancel_not_active", "message": "Nothing active."}
            _say(peer, type="error", error=told)
            return
        record = next(each for each in self.records if each.id == name or name is None)
        record.cancels += 1
        if self.completes_first:
            record.status = "completed"
        if not self.ignores_cancel:
            stop.set()

    def _generate(self, peer: Any, record: RealtimeRecord, stop: threading.Event, cancelled: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            time.sleep(self.created_after)
            cancelled[record.id] = stop
            _say(peer, type="response.created", response=_response(record))
            for number in range(self.deltas):
                if stop.wait(1 / self.rate):
                    break
                record.deltas += 1
                _say(peer, type="response.output_text.delta", response_id=record.id, delta=f"t{number} ", item_id="i1")
            if record.status == "in_progress":
                record.status = "cancelled" if stop.is_set() else "completed"
            _say(peer, type="response.done", response=_response(record))
        except ConnectionClosed:
            record.status = "cancelled"
        finally:
            cancelled.pop(record.id, None)


def _response(record: RealtimeRecord) -> dict[str, Any]:
    return {"object": "realtime.response", "id": record.id, "status": record.status, "output": []}


def _say(peer: Any, **event: Any) -> None:
    peer.send(json.dumps({"event_id": "event_1", **event}))
