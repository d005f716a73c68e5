"""What the children of the nursery have in common with processes that were started on their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nursery import OWN, Born, nursery, popen
from worlds import until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="every child is started on its own here")

TESTS = str(Path(__file__).parent)
BOUND = 30.0
PIPES: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
FACTS = """
import json, os, signal, sys, threading, warnings

def facts():
    for each in (sys.stdin, sys.stdout, sys.stderr):
        yield from (each.name, each.mode, each.encoding, each.errors, type(each.buffer).__name__)
        yield from (each.line_buffering, each.write_through, each.closed)
    yield from (sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
    yield from (sys.argv, sys.path, os.getcwd(), dict(os.environ), sys.warnoptions, list(sys.flags)[:10])
    yield from (__name__, sorted(globals()), globals() is sys.modules["__main__"].__dict__, globals().get("__file__"))
    yield [str(signal.getsignal(each)) for each in sorted(signal.valid_signals())]
    yield from (signal.set_wakeup_fd(-1), list(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    yield from ([each.name for each in threading.enumerate()], threading.main_thread() is threading.current_thread())
    yield from (os.getsid(0), os.getpgid(0), sys.gettrace())
    if os.path.isdir("/proc/self/fd"):
        yield sorted(each for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("x", UserWarning)
    yield len(caught)

print(json.dumps(list(facts())))
"""


def ends(*arguments: str, given: str = "", **how: Any) -> tuple[str, str, int]:
    """What a child said on both streams, and how it ended."""
    with popen(list(arguments), **{**PIPES, **how}) as process:
        assert isinstance(process, Born)
        out, err = process.communicate(given, timeout=BOUND)
    return out, err, process.returncode


@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error,ignore::UserWarning"}])
@pytest.mark.parametrize("how", ["script", "-c", "-m"])
def test_it_begins_as_an_interpreter_does(tmp_path: Path, how: str, more: dict[str, str]) -> None:
    """Streams, arguments, path, environment, directory, signals, threads, descriptors, the main module: as there."""
    (tmp_path / "facts_told.py").write_text(FACTS)
    first = {"script": [str(tmp_path / "facts_told.py")], "-c": ["-c", FACTS], "-m": ["-m", "facts_told"]}
    arguments = [*first[how], "a", "-b"]
    env = {name: value for name, value in os.environ.items() if name not in OWN}
    env = {**env, "PYTHONPATH": f"{TESTS}{os.pathsep}nowhere", "SOME": "thing", **more}
    alone = subprocess.run(
        [sys.executable, *arguments], input="", capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert alone.stderr == ""
    out, err, code = ends(*arguments, cwd=tmp_path, env=env)
    assert (code, err) == (0, ""), err
    pairs = zip(json.loads(out), json.loads(alone.stdout))
    for mine, its in pairs:
        assert mine == its


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("pass", ("", "", 0)),
        ("import sys; sys.exit(3)", ("", "", 3)),
        ("import sys; sys.exit('no')", ("", "no\n", 1)),
        ("import os; os._exit(4)", ("", "", 4)),
        ("import sys; sys.stdout.write('kept'); sys.stderr.write(sys.stdin.read())", ("kept", "given", 0)),
        ("import atexit; atexit.register(print, 'last'); print('first')", ("first\nlast\n", "", 0)),
        (
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
            ("late\n", "", 0),
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ("", "", -signal.SIGKILL)),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", ("", "", -signal.SIGTERM)),
    ],
)
def test_it_ends_as_an_interpreter_does(code: str, said: tuple[str, str, int]) -> None:
    """Its exit code or its signal, what it still had to write, its threads and its exit handlers."""
    assert ends("-c", code, given="given") == said


@pytest.mark.parametrize(
    ("code", "error", "end"),
    [
        ("raise ValueError('wrong')", "ValueError: wrong", 1),
        ("import signal; signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt", -signal.SIGINT),
        ("wrong wrong", "SyntaxError", 1),
    ],
)
def test_an_error_is_told(code: str, error: str, end: int) -> None:
    """A traceback on standard error, and the exit of an interpreter that it came through."""
    out, err, how = ends("-c", code)
    assert (out, how) == ("", end)
    assert err.startswith(("Traceback", "  File"))
    assert error in err.splitlines()[-1]


def test_a_killed_one_is_gone() -> None:
    """Its end is known once it is reaped, by whoever waits for it and however often: a pid that is still there is a
    process that still lives."""
    with popen(["-c", "import time; print('on', flush=True); time.sleep(50)"], **PIPES) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        os.kill(process.pid, 0)
        process.kill()
        assert process.wait(BOUND) == process.poll() == process.wait() == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
        process.kill()  # of one that has ended nothing comes


def test_nothing_of_one_is_in_the_next() -> None:
    """What a child changes is its own, and so is what it draws."""
    change = "import os, sys, json, openai; os.environ['X'] = 'x'; json.x = 1; sys.path.append('x'); os.chdir('/')"
    assert ends("-c", change) == ("", "", 0)
    look = "import os, sys, json; print(os.environ.get('X'), hasattr(json, 'x'), 'x' in sys.path, os.getcwd())"
    assert ends("-c", look) == (f"None False False {os.getcwd()}\n", "", 0)
    draw = "import random, uuid, tempfile; print(random.random(), uuid.uuid4(), next(tempfile._get_candidate_names()))"
    drawn = [ends("-c", draw)[0].split() for _ in range(2)]
    assert not set(drawn[0]) & set(drawn[1])


def test_many_at_once() -> None:
    """Each gets its own streams and its own end, whoever asks for it."""
    code = "import sys; print(sys.argv[1]); sys.exit(int(sys.argv[1]))"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: ends("-c", code, str(number)), range(40)))
    assert found == [(f"{number}\n", "", number) for number in range(40)]


def test_what_it_can_t_be_is_started_on_its_own() -> None:
    """An interpreter that would begin otherwise: the nursery did not begin so."""
    with popen(
        ["-c", "import sys; print(sys.flags.dev_mode)"], **PIPES, env={**os.environ, "PYTHONDEVMODE": "1"}
    ) as one:
        assert one.communicate(timeout=BOUND)[0] == "True\n"
    assert not isinstance(one, Born)


LEAVES = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from nursery import nursery, popen
alive = popen(["-c", "import os, time; os.write(1, b'on'); time.sleep(50)"], stdout=subprocess.PIPE)
os.read(alive.stdout.fileno(), 2)
print(nursery().process.pid, alive.pid, flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
alive.returncode = 0  # no word about it
"""


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_nothing_is_left_after_the_session(how: str) -> None:
    """However it ends, the nursery and its children do, too: they have its standard error, which ends with the last."""
    with subprocess.Popen([sys.executable, "-c", LEAVES, TESTS, how], **PIPES) as session:
        assert session.stdout is not None
        assert session.stderr is not None
        pids = list(map(int, session.stdout.readline().split()))
        assert len(pids) == 2
        assert session.stderr.read() == ""
    assert session.returncode == (0 if how == "ended" else -signal.SIGKILL)


def test_it_has_no_threads_and_no_more_than_its_socket() -> None:
    """What a child would inherit."""
    assert ends("-c", "") == ("", "", 0)
    found = Path(f"/proc/{nursery().process.pid}")
    if not found.is_dir():
        pytest.skip("this system does not tell")
    assert len(list((found / "task").iterdir())) == 1

    def descriptors() -> list[str]:
        return [os.readlink(each).partition(":")[0] for each in (found / "fd").iterdir() if int(each.name) > 2]

    # Where it is asked, and the two ends of how it wakes itself. It says how a child ended before it forgets it.
    until(lambda: descriptors() == ["socket"] * 3, "the end of the child")
