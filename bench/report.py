"""The tables: on the screen, as Markdown, as JSON."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

from bench.plot import draw
from bench.sampling import Measure, interval, percentile, ratio
from bench.trial import Tally

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("deadstop", "openai", "httpx", "httpx2", "httpcore", "httpcore2", "anyio", "pydantic")
HEADER = ("measure", "side", "n", "median", "p99", "ratio", "95 %", "CPU", "CPU ratio", "aim")


@dataclass
class Row:
    """One side of one measure, summed up. Times in seconds; ratios are of medians, to the baseline."""

    section: str
    measure: str
    side: str
    n: int
    median: float
    p99: float
    ratio: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    cpu_median: Optional[float] = None
    cpu_ratio: Optional[float] = None
    aim: Optional[float] = None
    aim_p99: Optional[float] = None
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """How the aim was met, in a word or two."""
        if self.aim is None or self.ratio is None:
            return ""
        said = f"{'within' if self.ratio <= self.aim else 'OVER'} {self.aim:.2f}x"
        if self.aim_p99 is not None:
            said += f", p99 {'<' if self.p99 < self.aim_p99 else 'OVER'} {self.aim_p99 * 1e3:.0f} ms"
        return said


def environment() -> dict[str, str]:
    """What was measured with. Nothing that tells whose machine it was."""
    found = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.system(),
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "deadstop" not in found:
        found["deadstop"] = sys.modules["deadstop"].__version__
    return found


def rows_of(measure: Measure) -> list[Row]:
    """One row per side."""
    rows = []
    base = measure.sides[measure.baseline]
    for side, samples in measure.sides.items():
        row = Row(
            measure.section,
            measure.name,
            side,
            len(samples),
            statistics.median(samples),
            percentile(samples, 99),
        )
        if side != measure.baseline:
            row.ratio = ratio(samples, base)
            row.low, row.high = interval(samples, base)
        if side in measure.cpu:
            row.cpu_median = statistics.median(measure.cpu[side])
            if side != measure.baseline:
                row.cpu_ratio = ratio(measure.cpu[side], measure.cpu[measure.baseline])
        if side in measure.aimed:
            row.aim, row.aim_p99 = measure.aim, measure.aim_p99
        rows.append(row)
    order = [measure.baseline, *(side for side in measure.sides if side != measure.baseline)]
    rows.sort(key=lambda row: order.index(row.side))
    rows[0].notes = summed(measure.notes)
    return rows


def summed(notes: Iterable[str]) -> list[str]:
    """Each note once, with how often it came."""
    return [text if number == 1 else f"{text} ({number} times)" for text, number in Counter(notes).items()]


def seconds(value: float) -> str:
    """A time with three digits and a unit that fits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    return (
        row.measure,
        row.side,
        str(row.n),
        seconds(row.median),
        seconds(row.p99),
        "1" if row.ratio is None else f"{row.ratio:.3f}",
        "" if row.low is None or row.high is None else f"{row.low:.3f}-{row.high:.3f}",
        "" if row.cpu_median is None else seconds(row.cpu_median),
        "" if row.cpu_ratio is None else f"{row.cpu_ratio:.3f}",
        row.verdict,
    )


def table(rows: list[Row]) -> list[str]:
    """A section's rows as a Markdown table, aligned to be read as it is."""
    lines = [HEADER, *(cells(row) for row in rows)]
    keep = [column for column in range(len(HEADER)) if any(line[column] for line in lines[1:])]
    widths = {column: max(len(line[column]) for line in lines) for column in keep}
    text = ["| " + " | ".join(line[column].ljust(widths[column]) for column in keep) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (widths[column] + 2) for column in keep) + "|")
    return text


def section(name: str, rows: list[Row]) -> list[str]:
    """A section: its table and its notes."""
    notes = [f"- {row.measure}: {note}" for row in rows for note in row.notes]
    return ["", f"## {name}", "", *table(rows), *(["", *notes] if notes else [])]


def leak_section(tallies: dict[str, Tally]) -> list[str]:
    """What the cancels left behind: everything from the fourth line on must be 0."""
    columns = list(tallies)
    what: dict[str, list[str]] = {
        "calls": [str(tally.calls) for tally in tallies.values()],
        "cancels": [str(tally.cancels) for tally in tallies.values()],
        "calls of healthy neighbours": [str(tally.neighbours) for tally in tallies.values()],
    }
    for tally in tallies.values():
        for name in tally.violations():
            what.setdefault(name, [])
    for name in list(what)[3:]:
        what[name] = [str(tally.violations().get(name, "-")) for tally in tallies.values()]
    lines = ["", "## Left behind by cancels at random moments", ""]
    lines += [f"| what | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {name} | {' | '.join(numbers)} |" for name, numbers in what.items()]
    lines.append("")
    for column, tally in tallies.items():
        lines.append(f"- {column}: receipts: {_counts(tally.outcomes)}. Phases at the cancel: {_counts(tally.phases)}.")
        if any(number > 0 for number in tally.leaked.values()):
            left = ", ".join(f"{number} {what}" for what, number in tally.leaked_after_collection.items())
            lines.append(f"- {column}: after a garbage collection there were left {left}.")
        lines += [f"- {column}: {number} times {error}" for error, number in tally.surprises.items()]
    return lines


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counter.most_common()) or "none"


def write(rows: list[Row], tallies: dict[str, Tally], suffix: str, how: str) -> list[Path]:
    """Write Markdown, JSON and the plot under bench/results/. The files."""
    facts = environment()
    version = ".".join(platform.python_version_tuple()[:2])
    stem = f"python{version}-openai{facts['openai']}{suffix}"
    lines = [
        "# Side by side",
        "",
        how,
        "",
        ", ".join(f"{name} {value}" for name, value in facts.items()) + ".",
    ]
    if rows:
        lines += ["", f"![medians and 99th percentiles]({stem}.svg)"]
    for name in dict.fromkeys(row.section for row in rows):
        lines += section(name, [row for row in rows if row.section == name])
    if tallies:
        lines += leak_section(tallies)
    RESULTS.mkdir(exist_ok=True)
    files = {
        f"{stem}.md": "\n".join(lines) + "\n",
        f"{stem}.json": json.dumps(_data(facts, rows, tallies), indent=1) + "\n",
    }
    if rows:
        files[f"{stem}.svg"] = draw(rows)
    for name, text in files.items():
        (RESULTS / name).write_text(text, encoding="utf-8")
    return [RESULTS / name for name in files]


def _data(facts: dict[str, str], rows: list[Row], tallies: dict[str, Tally]) -> dict[str, Any]:
    return {
        "environment": facts,
        "rows": [{**row.__dict__, "verdict": row.verdict} for row in rows],
        "leaks": {
            name: {
                "calls": tally.calls,
                "cancels": tally.cancels,
                "neighbours": tally.neighbours,
                "violations": tally.violations(),
                "left_after_collection": tally.leaked_after_collection,
                "outcomes": dict(tally.outcomes),
                "phases": dict(tally.phases),
                "surprises": dict(tally.surprises),
            }
            for name, tally in tallies.items()
        },
    }
