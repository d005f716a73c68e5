"""Whose turn it is on a connection that several calls share."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from worlds import WORLDS

from deadstop.calls.turns import TaskLock


@pytest.mark.parametrize("backend", [name for name in WORLDS if name != "threads"])
def test_a_waiter_that_is_cancelled_takes_nobodys_turn(backend: str) -> None:
    """Who asks for the lock after a cancelled waiter, before that one has run, gets it when the holder lets go."""

    async def schedule() -> list[str]:
        lock, log = TaskLock(), []

        async def take(name: str, scope: Any) -> None:
            with scope:
                async with lock:
                    log.append(name)

        async with anyio.create_task_group() as group:
            cancelled = anyio.CancelScope()
            await lock.__aenter__()
            group.start_soon(take, "cancelled", cancelled)
            await anyio.wait_all_tasks_blocked()
            # In one step of the loop, so that the waiter runs after all of it.
            cancelled.cancel()
            await lock.__aexit__()
            group.start_soon(take, "next", anyio.CancelScope())
            with anyio.fail_after(5):
                await lock.__aenter__()
                log.append("last")
                await lock.__aexit__()
        return log

    assert sorted(anyio.run(schedule, backend=backend)) == ["last", "next"]


@pytest.mark.parametrize("backend", [name for name in WORLDS if name != "threads"])
def test_turns_are_taken_in_the_order_in_which_they_were_asked_for(backend: str) -> None:
    """First come, first served, and one at a time."""

    async def schedule() -> tuple[list[int], int]:
        lock, order, within, most = TaskLock(), [], 0, 0

        async def take(number: int) -> None:
            nonlocal within, most
            async with lock:
                order.append(number)
                within += 1
                most = max(most, within)
                await anyio.lowlevel.checkpoint()
                within -= 1

        async with anyio.create_task_group() as group:
            await lock.__aenter__()
            for number in range(5):
                group.start_soon(take, number)
                await anyio.wait_all_tasks_blocked()
            await lock.__aexit__()
        return order, most

    assert anyio.run(schedule, backend=backend) == ([0, 1, 2, 3, 4], 1)
