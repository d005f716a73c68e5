"""What `import deadstop` costs a program that imports `openai` anyway."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import deadstop
from bench.sampling import SEED, Measure

_SCRIPT = """
import json, time
took = {}
for name in NAMES:
    began = time.perf_counter()
    __import__(name)
    took[name] = time.perf_counter() - began
print(json.dumps(took))
"""


def measure_imports(quick: bool) -> Iterator[Measure]:
    """Each sample is a process of its own; those with and those without deadstop take turns."""
    measure = Measure("Import", "in a fresh process, byte code cached", baseline="import openai")
    measure.aim_p99 = None
    measure.notes.append("Aim: the median of `import deadstop`, on top of `import openai`, is at most 30 ms.")
    _import("openai", "deadstop")  # writes the byte code
    rng = random.Random(SEED)
    for _ in range(10 if quick else 20):
        alone_first = rng.random() < 0.5
        alone = _import("openai") if alone_first else {}
        both = _import("openai", "deadstop")
        alone = alone or _import("openai")
        measure.sides.setdefault("import openai", []).append(alone["openai"])
        measure.sides.setdefault("import openai, deadstop", []).append(both["openai"] + both["deadstop"])
        measure.sides.setdefault("import deadstop, on top", []).append(both["deadstop"])
    yield measure


def _import(*names: str) -> dict[str, float]:
    home = str(Path(deadstop.__file__).parents[1])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.replace("NAMES", repr(names))],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    took: dict[str, float] = json.loads(done.stdout)
    return took
