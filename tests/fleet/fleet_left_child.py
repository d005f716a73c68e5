"""A process that leaves remote runs behind: ``python fleet_left_child.py URL BASE_URL COUNT``.

It starts one in each of the scopes ``chat-0`` and so on, says ``ready`` once all are on record, and waits to be killed.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict  # noqa: UP035

import deadstop

BACKGROUND: Any = {"model": "m", "input": "hi", "background": True}


def main(url: str, base_url: str, count: str) -> None:
    client = deadstop.OpenAI(api_key="k", base_url=base_url, runs_url=url, max_retries=0)

    def start(number: int) -> None:
        with client.runs.open(f"chat-{number}"):
            client.post("/responses", body=BACKGROUND, cast_to=Dict[str, object])  # noqa: UP006

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(int(count))))
    keeper: Any = client.runs._registry.keeper
    assert keeper.member.writes.drain(30.0)
    os.write(1, b"ready\n")
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
