"""Write docs/states.md from the transition table, or with --check say whether it is stale (exit code 1)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "states.md"
sys.path.insert(0, str(ROOT / "src"))

from deadstop.core import events  # noqa: E402
from deadstop.core.machine import ACTIVE, ENDED, EVENTS, TRANSITIONS, Effect, State  # noqa: E402

INTRODUCTION = """\
# The life of a cancellation

<!-- Written by scripts/states.py from deadstop.core.transitions: change the table, then run the script. -->

A cancellation is a state machine: `step(cancellation, event)` looks the event up in one table, and returns
the next cancellation and the effects to perform. The machine does no I/O; a shell tells it what happened and
does what it says. The table is total: every state has a cell for every event, and the cell of a late or
repeated event ignores it.

An in-flight call (an HTTP request of this process) goes straight from `none` to `sending`: its cancel is the
interruption itself, confirmed when the call has left the transport and its socket is closed. A remote run (an
object on the server) goes through `intent`, which is recorded before anything is sent; its cancel request is
believed only when a status that says so has been read back.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *diagram(), *vocabulary(), *tables()])


def diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> none"
    yield "    state active {"
    yield from (f"        {state}" for state in ACTIVE)
    yield "    }"
    for (source, to), labels in edges().items():
        yield f"    {source} --> {to} : {'<br>'.join(labels)}"
    yield from (f"    {state} --> [*]" for state in ENDED if state is not State.UNCONFIRMED)
    yield "```"
    yield ""


def edges() -> dict[tuple[str, str], list[str]]:
    """The moves, each with its labels; one that all active states share is drawn once, from the group."""
    sources: dict[tuple[str, str], list[State]] = {}
    for (state, event), cell in TRANSITIONS.items():
        for rule in cell:
            if rule.to is not None and rule.to is not state:
                guard = spoken(rule.when)
                label = f"{event.__name__}{f' [{guard}]' if guard else ''}"
                sources.setdefault((label, rule.to.value), []).append(state)
    found: dict[tuple[str, str], list[str]] = {}
    for (label, to), states in sources.items():
        everywhere = set(states) >= {state for state in ACTIVE if state.value != to}
        drawn = [state.value for state in states if not (everywhere and state in ACTIVE)]
        for source in (["active"] if everywhere else []) + drawn:
            found.setdefault((source, to), []).append(label)
    return found


def vocabulary() -> Iterator[str]:
    for title, kinds in (("Events", EVENTS), ("Effects", tuple(effects()))):
        yield f"## {title}\n"
        yield f"| {title[:-1]} | Meaning |"
        yield "|---|---|"
        for kind in kinds:
            sentence = " ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
            yield f"| `{kind.__name__}` | {sentence} |"
        yield ""


def effects() -> Iterator[type[Effect]]:
    for each in vars(events).values():
        if isinstance(each, type) and issubclass(each, Effect) and each is not Effect:
            yield each


def tables() -> Iterator[str]:
    yield "## The table\n"
    yield "Rules are tried from top to bottom; if none applies, the event is ignored.\n"
    for state in State:
        yield f"### {state}\n"
        yield "| Event | When | Goes to | Does |"
        yield "|---|---|---|---|"
        for event in EVENTS:
            for rule in TRANSITIONS[state, event]:
                to = f"`{rule.to}`" if rule.to is not None else "stays"
                does = ", ".join(spoken(action) for action in rule.actions) or "nothing"
                yield f"| `{event.__name__}` | {spoken(rule.when) or 'always'} | {to} | {does} |"
        yield ""
        ignored = [f"`{event.__name__}`" for event in EVENTS if not TRANSITIONS[state, event]]
        yield f"Ignored: {', '.join(ignored)}.\n" if ignored else "Nothing is ignored.\n"


def spoken(function: object) -> str:
    name = getattr(function, "__name__", "")
    return "" if name == "always" else name.replace("_", " ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    check = parser.parse_args().check
    text = page().rstrip("\n") + "\n"
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    if check:
        print(f"{PAGE.relative_to(ROOT)} is stale: run `python scripts/states.py`.", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
