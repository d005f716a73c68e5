"""Drawn schedules of remote runs over real HTTP: the same machine for threads, asyncio and trio.

Every step is a real request to the fake server, whose record is the truth that each receipt is held against.
`DEADSTOP_EXAMPLES=500` plays more of them.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from remote_runs import JSON, create
from worlds import WORLDS, Pending, open_world, until

from deadstop import CancelPolicy, RunCancellationTimeoutError
from deadstop.testing import FakeOpenAI, RunRecord, faults

KINDS = ["response", "thread_run", "batch", "fine_tuning_job", "eval_run", "vector_store_file_batch"]
FAULTS = [
    faults.CancelReplyLost(),
    faults.CancelReplySlow(0.05),
    faults.FalseConflict(409),
    faults.FalseConflict(400),
    faults.NotYetKnown(0.1),
    faults.StaysCancelling(0.1),
    faults.Overloaded(503, "0.05"),
    faults.Overloaded(429),
    faults.CompletesFirst(),
    faults.IgnoresCancel(),
    faults.WedgesOnDuplicate(),
]
ENDED = {"cancelled", "completed", "failed"}
SLACK = 3.0
"""Seconds past its timeout in which a cancel must have returned, on a machine where the server has the same cores."""


class Runs(RuleBasedStateMachine):
    """Runs are started, faults are laid, cancels are asked for in every way, some of them at once."""

    scopes = Bundle("scopes")

    def __init__(self, world: Any) -> None:
        super().__init__()
        self.world = world
        self.server = FakeOpenAI(rate=200, tokens=100_000).start()
        self.client = world.client(self.server.base_url, max_retries=0)
        self.client.runs.policy = CancelPolicy(timeout=1.0, attempt_timeout=0.3, recheck=0)
        self.asked: list[tuple[Pending, float, float]] = []
        self.creates: list[Pending] = []
        self.refs: dict[str, str] = {}  # of scopes whose run's address is known
        self.touched: set[str] = set()
        self.count = self.threads = self.laid = 0

    @initialize()
    def a_bystander(self) -> None:
        """Nobody asks for this one's cancel."""
        self.bystander = self.begin(None, "response")["id"]

    def begin(self, name: Optional[str], kind: str) -> Any:
        function, args, kwargs = self.create(kind)
        return self.world.run(self.world.call, self.client, name, function, *args, **kwargs)

    def create(self, kind: str) -> Any:
        if kind == "thread_run":  # a thread has one at a time
            self.threads += 1
            path = f"/threads/thread_{self.threads}/runs"
            return self.client.post, (path,), {"body": {"assistant_id": "asst_1"}, "cast_to": JSON}
        return create(self.client, kind)

    @rule(target=scopes, kind=st.sampled_from(KINDS))
    def start(self, kind: str) -> str:
        """A run that works."""
        self.count += 1
        name = f"scope {self.count}"
        begun = self.begin(name, kind)
        record = next(each for each in self.server.runs if each.id == begun["id"])  # one that comes slowly may be later
        self.refs[name] = f"{record.kind}:{'/'.join(record.ids)}"
        return name

    @rule(target=scopes, kind=st.sampled_from(KINDS), seconds=st.sampled_from([0.02, 0.1]))
    def start_slowly(self, kind: str, seconds: float) -> str:
        """A run whose id comes late: whoever cancels its scope before that is parked."""
        self.count += 1
        name = f"scope {self.count}"
        before = len(self.server.requests)
        self.server.add(faults.CreateReplySlow(seconds), times=1)
        function, args, kwargs = self.create(kind)
        self.creates.append(self.world.start(self.world.call, self.client, name, function, *args, **kwargs))
        self.server.wait_for(lambda requests: len(requests) > before)
        return name

    @rule(fault=st.sampled_from(FAULTS), times=st.integers(1, 2))
    def lay(self, fault: Any, times: int) -> None:
        """The next cancels go wrong."""
        if self.laid < 4:  # more than that are not over by the end of the test
            self.laid += 1
            self.server.add(fault, path="/cancel", times=times)

    @rule(scope=scopes, timeout=st.sampled_from([0.05, 0.3, 1.0]), callers=st.integers(1, 3))
    def cancel(self, scope: str, timeout: float, callers: int) -> None:
        """One or several at once want the same."""
        self.touched.add(scope)
        for _ in range(callers):
            self.ask(partial(self.client.runs.cancel, scope, timeout=timeout), timeout)

    @rule(scope=scopes, timeout=st.sampled_from([0.3, 1.0]))
    def cancel_by_address(self, scope: str, timeout: float) -> None:
        """The run itself is named, not the scope that it was started in."""
        if scope in self.refs:
            self.touched.add(scope)
            self.ask(partial(self.client.runs.cancel, self.refs[scope], timeout=timeout), timeout)

    @rule()
    def all_have_returned(self) -> None:
        """Wait for every cancel that was asked for, and look at what came of it."""
        for pending, began, timeout in self.asked:
            pending.wait()
            assert pending.ended is not None
            assert pending.ended - began <= timeout + SLACK, f"I1: {pending.ended - began:.2f} s for {timeout} s"
            if isinstance(pending.error, RunCancellationTimeoutError):
                receipt = pending.error.receipt
                assert receipt is not None
            elif pending.error is not None:
                raise pending.error
            else:
                receipt = pending.value
            for each in receipt.children or (receipt,):
                self.judge(each)
        self.asked.clear()

    @rule(scope=scopes)
    def again(self, scope: str) -> None:
        """A run that is known to be over is not asked about again."""
        self.all_have_returned()
        ref = self.refs.get(scope)
        if ref is None or scope not in self.touched:
            return
        before = self.record(ref)
        receipt = self.client.runs.get(scope).receipt
        if receipt is not None and receipt.ok and before.truth in ENDED:
            self.world.run(self.client.runs.cancel, ref, timeout=1.0)
            after = self.record(ref)
            assert (after.cancels, after.reads) == (before.cancels, before.reads), f"S8: {before} {after}"

    def ask(self, cancel: Any, timeout: float) -> None:
        self.asked.append((self.world.start(cancel), time.monotonic(), timeout))

    def record(self, ref: str) -> RunRecord:
        return next(each for each in self.server.runs if f"{each.kind}:{'/'.join(each.ids)}" == ref)

    def judge(self, receipt: Any) -> None:
        """A receipt against the truth."""
        if receipt.kind is None:
            return
        if receipt.outcome == "unconfirmed":
            assert receipt.diagnosis is not None, f"I17: {receipt}"
            assert receipt.diagnosis.klass, f"I17: {receipt}"
        if ":" not in receipt.run or receipt.outcome not in ("cancelled", "finished_first"):
            return
        record = self.record(receipt.run)
        if receipt.outcome == "cancelled":
            assert record.truth == "cancelled", f"I2: {receipt} {record}"
            assert receipt.evidence != "none", f"I2: {receipt}"
        else:
            assert record.truth in ("completed", "failed"), f"I18: {receipt} {record}"

    def teardown(self) -> None:
        try:
            self.all_have_returned()
            for create in self.creates:  # a client is closed when nobody uses it
                create.wait()
            self.server.clear()
            if self.count:
                # What was asked for goes on until it is done.
                until(self.over, "the end of every run whose cancel was asked for")
            for record in self.server.runs:
                assert record.most_cancels <= 1, f"I7: {record}"
                if record.id == self.bystander:
                    assert (record.truth, record.cancels) == ("active", 0), f"I9: {record}"
        finally:
            self.world.close(self.client)
            until(lambda: self.server.open_connections == 0, "the end of all connections")
            self.server.stop()

    def over(self) -> bool:
        wanted = {self.refs[scope] for scope in self.touched if scope in self.refs}
        return all(self.record(ref).truth in ENDED for ref in wanted)


@pytest.mark.parametrize("name", WORLDS)
def test_remote_runs_hold_every_invariant_over_http(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is started, laid and cancelled in whatever order, each receipt is true and each wait has its bound."""
    monkeypatch.setattr("deadstop.runs.reconciler.ASK_AGAIN", 0.5)
    often = settings(
        max_examples=int(os.environ.get("DEADSTOP_EXAMPLES", "15")),
        stateful_step_count=12,
        deadline=None,
        phases=[Phase.generate],  # it takes minutes to shrink what takes a second to play
        suppress_health_check=list(HealthCheck),
        derandomize="DEADSTOP_EXAMPLES" not in os.environ,
    )
    with open_world(name) as world:
        run_state_machine_as_test(partial(Runs, world), settings=often)
