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
import json, sys, time
took = {}
for name in NAMES:
    cpu, began = time.process_time(), time.perf_counter()
    if name.endswith(".OpenAI"):
        client = sys.modules[name.partition(".")[0]].OpenAI(api_key="none")
        getattr(client, "runs", None)
    else:
        __import__(name)
    took[name] = [time.perf_counter() - began, time.process_time() - cpu]
print(json.dumps(took))
"""


OPENAI = "import openai"
BOTH = "import openai, deadstop"
ON_TOP = "of it, import deadstop"
CLIENT = "of it, the first deadstop.OpenAI(), and its runs"


def measure_imports(quick: bool) -> Iterator[Measure]:
    """Each sample is a process of its own; those with and those without deadstop take turns.

    What a module puts off until a client is made is counted too: every program makes one.
    """
    measure = Measure("Import", "and a first client of each, byte code cached", baseline=OPENAI)
    measure.notes.append("the aim is that `import deadstop` adds at most 30 ms (median)")
    alone = ("openai", "openai.OpenAI")
    names: dict[str, tuple[str, ...]] = {OPENAI: alone, BOTH: (*alone, "deadstop", "deadstop.OpenAI")}
    _import(*names[BOTH])  # writes the byte code
    rng = random.Random(SEED)
    for _ in range(10 if quick else 20):
        spent = {}
        for side in shuffled(names, rng):
            took = _import(*names[side])
            spent[side] = Spent(*map(sum, zip(*took.values())))
            if side == BOTH:
                spent[ON_TOP], spent[CLIENT] = took["deadstop"], took["deadstop.OpenAI"]
        measure.add({side: spent[side] for side in (OPENAI, BOTH, ON_TOP, CLIENT)})
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
