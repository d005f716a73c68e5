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
from bench.sampling import SEED, Measure, Spent, shuffled

_SCRIPT = """
import json, time
took = {}
for name in NAMES:
    cpu, began = time.process_time(), time.perf_counter()
    __import__(name)
    took[name] = [time.perf_counter() - began, time.process_time() - cpu]
print(json.dumps(took))
"""


OPENAI = "import openai"
BOTH = "import openai, deadstop"
ON_TOP = "of it, import deadstop"


def measure_imports(quick: bool) -> Iterator[Measure]:
    """Each sample is a process of its own; those with and those without deadstop take turns."""
    measure = Measure("Import", "in a fresh process, byte code cached", baseline=OPENAI)
    measure.notes.append("the aim is that `import deadstop` adds at most 30 ms (median)")
    _import("openai", "deadstop")  # writes the byte code
    rng = random.Random(SEED)
    for _ in range(10 if quick else 20):
        spent = {}
        for side in shuffled({OPENAI: None, BOTH: None}, rng):
            if side == OPENAI:
                spent[OPENAI] = _import("openai")["openai"]
            else:
                both = _import("openai", "deadstop")
                spent[ON_TOP] = both["deadstop"]
                spent[BOTH] = Spent(*map(sum, zip(both["openai"], both["deadstop"])))
        measure.add({side: spent[side] for side in (OPENAI, BOTH, ON_TOP)})
    yield measure


def _import(*names: str) -> dict[str, Spent]:
    home = str(Path(deadstop.__file__).parents[1])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.replace("NAMES", repr(names))],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name: Spent(*took) for name, took in json.loads(done.stdout).items()}
