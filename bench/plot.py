"""The plot: an SVG drawn by hand, so that nothing has to be installed for it."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.report import Row

WIDTH, LEFT, RIGHT = 960, 400, 40
LINE, TOP = 18, 34
COLOURS = ("#6b7280", "#9ca3af", "#0f766e", "#2563eb", "#b45309")
OURS = "#c2410c"


def draw(rows: list[Row]) -> str:
    """A panel per section: a dot for the median, a line to the 99th percentile; the axes are logarithmic."""
    parts: list[str] = []
    y = TOP
    for section in dict.fromkeys(row.section for row in rows):
        y = _panel(section, [row for row in rows if row.section == section], parts, y)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" '
        'font-family="system-ui, sans-serif" font-size="11">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>', *parts, "</svg>", ""])


def _panel(section: str, rows: list[Row], parts: list[str], y: int) -> int:
    low = math.floor(math.log10(min(row.median for row in rows)) * 3 - 0.4) / 3
    high = math.ceil(math.log10(max(row.p99 for row in rows)) * 3 + 0.2) / 3

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts.append(f'<text x="12" y="{y}" font-size="14" font-weight="600">{escape(section)}</text>')
    y += 10
    measures = dict.fromkeys(row.measure for row in rows)
    bottom = y + LINE * (len(rows) + len(measures)) + 6
    for tick in _ticks(low, high):
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{y}" y2="{bottom}" stroke="#e5e7eb"/>')
        parts.append(_text(x(tick), bottom + 13, _label(tick), "#6b7280", "middle"))
    for measure in measures:
        y += LINE
        parts.append(_text(24, y, measure, "#111827"))
        for number, row in enumerate(row for row in rows if row.measure == measure):
            y += LINE
            ours = row.side.startswith("deadstop")
            colour = OURS if ours else COLOURS[number % len(COLOURS)]
            ratio = "" if row.ratio is None else f"  {row.ratio:.2f}x"
            parts.append(_text(LEFT - 12, y, row.side + ratio, colour, "end"))
            middle = y - 4
            parts.append(
                f'<line x1="{x(row.median):.1f}" x2="{x(row.p99):.1f}" y1="{middle}" y2="{middle}" '
                f'stroke="{colour}" stroke-width="2" stroke-opacity="0.45"/>'
            )
            parts.append(f'<circle cx="{x(row.median):.1f}" cy="{middle}" r="4.5" fill="{colour}"/>')
            parts.append(
                f'<line x1="{x(row.p99):.1f}" x2="{x(row.p99):.1f}" y1="{middle - 4}" y2="{middle + 4}" '
                f'stroke="{colour}" stroke-width="2" stroke-opacity="0.45"/>'
            )
    return bottom + 44


def _ticks(low: float, high: float) -> list[float]:
    ticks = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]


def _label(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms" if value >= 1e-3 else f"{value * 1e6:g} us"


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
