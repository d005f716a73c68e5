"""`python -m bench`: measure everything in one run, print it, write it."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterator
from typing import Callable

from bench import report
from bench.imports import measure_imports
from bench.latency import measure_latency
from bench.latency_async import measure_latency_async
from bench.leaks import measure_leaks
from bench.ledger import measure_ledger
from bench.overhead import measure_calls, measure_events
from bench.remote import measure_remote
from bench.sampling import Measure
from bench.trial import Tally

TIMED: dict[str, Callable[[bool], Iterator[Measure]]] = {
    "calls": measure_calls,
    "events": measure_events,
    "cancel": measure_latency,
    "cancel-async": measure_latency_async,
    "remote": measure_remote,
    "ledger": measure_ledger,
    "import": measure_imports,
}
HOW = (
    "Measured by `python -m bench` in one run on loopback, against one fake server in a process of its own. "
    "In each round every side has one turn, in random order. `ratio` is that of the medians, to the side on "
    "the first line of the measure; `95 %` is its bootstrap interval over rounds; `CPU` the calling thread's "
    "processor time. `aim` is what the project wants to stay within; times never fail the run."
)


def main() -> int:
    """Run what was asked for. 1 if anything leaked, came late, was sent again or broke; times never fail."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples: under a minute")
    parser.add_argument("--only", choices=[*TIMED, "leaks"], help="one part")
    asked = parser.parse_args()
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # the server is on loopback

    rows: list[report.Row] = []
    tallies: dict[str, Tally] = {}
    for name, measure in TIMED.items():
        if asked.only in (None, name):
            rows += _timed(name, measure(asked.quick))
    if asked.only in (None, "leaks"):
        began = time.monotonic()
        tallies.update(measure_leaks(asked.quick))
        _print(report.leak_section(tallies))
        _print(["", f"(leaks: {time.monotonic() - began:.0f} s)"])
    suffix = ("-quick" if asked.quick else "") + (f"-{asked.only}" if asked.only else "")
    files = report.write(rows, tallies, suffix, HOW)
    _print(["", "Written: " + ", ".join(os.path.relpath(file) for file in files)])
    violations = {
        f"{what} ({name})": number
        for name, tally in tallies.items()
        for what, number in tally.violations().items()
        if number
    }
    if violations:
        _print(["", "VIOLATED: " + ", ".join(f"{what}: {number}" for what, number in violations.items())])
    return 1 if violations else 0


def _timed(name: str, measures: Iterator[Measure]) -> list[report.Row]:
    began = time.monotonic()
    gc.collect()
    gc.freeze()
    rows = [row for measure in measures for row in report.rows_of(measure)]
    for section in dict.fromkeys(row.section for row in rows):
        _print(report.section(section, [row for row in rows if row.section == section]))
    _print(["", f"({name}: {time.monotonic() - began:.0f} s)"])
    return rows


def _print(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
