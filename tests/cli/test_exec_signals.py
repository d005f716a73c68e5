"""`deadstop exec`: what becomes of a script's calls and of the script when a signal comes."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path

import pytest
from cli_child import command, key_and_url, seed, warm

from deadstop.testing import FakeOpenAI, RequestRecord, faults

ASK = 'model="gpt-4o", messages=[{"role": "user", "content": "Hello"}]'

FRAME = f"""
import atexit, functools, os, threading, time
from openai import AsyncOpenAI, OpenAI, RunCancelledError

atexit.register(print, "atexit")
if "OPENAI_BASE_URL" in os.environ:  # the first releases don't read it
    OpenAI = functools.partial(OpenAI, base_url=os.environ["OPENAI_BASE_URL"])
    AsyncOpenAI = functools.partial(AsyncOpenAI, base_url=os.environ["OPENAI_BASE_URL"])

def ask(client):
    return client.chat.completions.create({ASK})

try:
    BODY
finally:
    print("finally")
"""

OPAQUE = """
import runpy, sys, time
import openai

class Opaque:
    def handle_request(self, request):
        print("inside", flush=True)
        while True:
            time.sleep(60)

    def close(self):
        pass

class Client(openai.OpenAI):
    def __init__(self, **options):
        super().__init__(**options)
        self._client._transport = Opaque()

openai.OpenAI = Client
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def script(directory: Path, body: str) -> str:
    """A script with `body` in its `try`."""
    lines = body.strip("\n").splitlines()
    path = directory / "script.py"
    path.write_text(FRAME.replace("BODY", "\n    ".join(lines)), encoding="utf-8")
    return str(path)


def asked(records: list[RequestRecord]) -> bool:
    """Whether the server has a call to work on."""
    return bool(records) and records[-1].state == "generating"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_cancels_the_blocked_call_and_ends_the_script(
    tmp_path: Path, fake_openai: FakeOpenAI, number: int, code: int
) -> None:
    """The page's own script, blocked in its call, ends with the signal's code, a receipt and no traceback."""
    fake_openai.add(faults.LostHeaders())
    with command("exec", "--grace", "20", *seed(tmp_path), **key_and_url(fake_openai.base_url)) as child:
        fake_openai.wait_for(asked, 20)
        child.signal(number)
        assert child.end() == code
    assert "cancelled, in" in child.errors
    assert signal.Signals(number).name in child.errors
    assert "Traceback" not in child.errors
    fake_openai.wait_for(lambda records: records[0].state == "disconnected")
    assert len(fake_openai.requests) == 1


def test_the_pages_handler_fires_when_the_cancel_is_not_confirmed(tmp_path: Path) -> None:
    """On a transport that can't be interrupted `create()` raises the page's error, and the page's handler prints it."""
    opaque = tmp_path / "opaque.py"
    opaque.write_text(OPAQUE, encoding="utf-8")
    options = ("exec", "--grace", "0.2", str(opaque), seed(tmp_path)[-1])
    with command(*options, OPENAI_API_KEY="sk-test", OPENAI_BASE_URL="http://127.0.0.1:1/v1") as child:
        child.until("inside")
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    assert child.output[1:] == [
        "Cancellation timed out: Run cancellation timed out after waiting for the operation to abort.",
        "Request completed or cancelled",
    ]
    assert "unconfirmed" in child.errors
    assert "caller_blocked" in child.errors


def test_a_script_that_handles_the_cancel_may_clean_up(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """A script that catches the error has the grace to end by itself, and its clean-up is not cut short."""
    fake_openai.add(faults.LostHeaders())
    body = """
    try:
        ask(OpenAI())
    except RunCancelledError as error:
        time.sleep(0.3)
        print(error)
    """
    with warm("exec", "--grace", "20", script(tmp_path, body), **key_and_url(fake_openai.base_url)) as child:
        fake_openai.wait_for(asked, 20)
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    assert child.output[0].endswith("was cancelled: the process received SIGTERM.")
    assert child.output[1:] == ["finally", "atexit"]


def test_a_script_that_goes_on_is_left_after_the_grace(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """A loop that swallows every Exception is left all the same, its clean-up runs, and its new calls are cancelled."""
    fake_openai.add(faults.LostHeaders())
    body = """
    while True:
        try:
            ask(OpenAI())
        except Exception as error:
            print(type(error).__name__ + "\\n", end="")  # in one piece: it is left in the middle of anything
    """
    with warm("exec", "--grace", "0.3", script(tmp_path, body), **key_and_url(fake_openai.base_url)) as child:
        fake_openai.wait_for(asked, 20)
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    assert set(child.output[:-2]) == {"RunCancelledError"}
    assert child.output[-2:] == ["finally", "atexit"]
    assert child.errors.count("Run ") == 1


def test_a_script_that_never_leaves_is_ended(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """A script that swallows even SystemExit is ended soon after the grace, with the signal's code."""
    fake_openai.add(faults.LostHeaders())
    body = """
    client = OpenAI()
    while True:
        try:
            ask(client)
        except BaseException as error:
            pass
    """
    with warm("exec", "--grace", "0.2", script(tmp_path, body), **key_and_url(fake_openai.base_url)) as child:
        fake_openai.wait_for(asked, 20)
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    assert "was ended" in child.errors


def test_a_second_signal_exits_at_once(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """Who presses Ctrl-C twice does not wait for the grace."""
    fake_openai.add(faults.LostHeaders())
    body = """
    try:
        ask(OpenAI())
    except RunCancelledError:
        print("cancelled", flush=True)
        time.sleep(60)
    """
    with warm("exec", "--grace", "60", script(tmp_path, body), **key_and_url(fake_openai.base_url)) as child:
        fake_openai.wait_for(asked, 20)
        child.signal(signal.SIGINT)
        child.until("cancelled")
        child.signal(signal.SIGINT)
        assert child.end() == 130
    assert child.output == ["cancelled"]


def test_a_signal_that_interrupts_nothing_is_handled_at_once(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """One that another thread is given, or that comes just before the main thread begins to wait, is seen to, too."""
    fake_openai.add(faults.LostHeaders())
    body = """
    import signal

    def signals():
        for line in iter(os.sys.stdin.readline, ""):
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # in this thread: the main one sleeps on

    threading.Thread(target=signals, daemon=True).start()
    try:
        ask(OpenAI())
    except RunCancelledError:
        print("cancelled", flush=True)
        time.sleep(60)
    """
    with warm("exec", "--grace", "60", script(tmp_path, body), **key_and_url(fake_openai.base_url)) as child:
        fake_openai.wait_for(asked, 20)
        child.say("now")
        child.until("cancelled")
        child.say("and again")
        assert child.end() == 143
    assert child.output == ["cancelled"]


def test_without_a_live_run_the_script_is_left_at_once(tmp_path: Path) -> None:
    """Where there is nothing to cancel nobody waits for the grace, and Ctrl-C is a KeyboardInterrupt to the script."""
    body = """
    try:
        print("asleep", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted")
        raise
    """
    with warm("exec", "--grace", "60", script(tmp_path, body)) as child:
        child.until("asleep")
        child.signal(signal.SIGINT)
        assert child.end() == 130
    assert child.output[1:] == ["interrupted", "finally", "atexit"]
    assert child.errors == ""


def test_a_stream_between_two_events_is_cancelled(tmp_path: Path, fake_openai: FakeOpenAI) -> None:
    """A script that is busy with one event of a stream does not get the next."""
    body = f"""
    for number, event in enumerate(OpenAI().chat.completions.create({ASK}, stream=True)):
        print(number, flush=True)
        if number == 2:
            time.sleep(0.2)
    """
    fake_openai.rate = 20
    with warm("exec", "--grace", "20", script(tmp_path, body), **key_and_url(fake_openai.base_url)) as child:
        child.until("2")
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    assert child.output == ["0", "1", "2", "finally", "atexit"]
    fake_openai.wait_for(lambda records: records[0].state == "disconnected")


@pytest.mark.parametrize(
    "end", ["await call", "await asyncio.gather(call, return_exceptions=True); await asyncio.sleep(60)"]
)
def test_an_asyncio_script_ends_too(tmp_path: Path, fake_openai: FakeOpenAI, end: str) -> None:
    """The waiting task gets RunCancelledError; a program that then goes on is left after the grace."""
    fake_openai.add(faults.LostHeaders())
    body = f"""
    import asyncio

    async def work():
        try:
            await AsyncOpenAI().chat.completions.create({ASK})
        except RunCancelledError:
            print("cancelled")
            raise

    async def main():
        call = asyncio.ensure_future(work())
        try:
            {end}
        finally:
            print("left")

    asyncio.run(main())
    """
    with warm("exec", "--grace", "0.5", script(tmp_path, body), **key_and_url(fake_openai.base_url)) as child:
        fake_openai.wait_for(asked, 20)
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    assert child.output == ["cancelled", "left", "finally", "atexit"]
    assert "Traceback" not in child.errors


@pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="trio is not installed")
@pytest.mark.parametrize("then", ["raise", "await trio.sleep(60)"])
def test_a_trio_script_ends_too(tmp_path: Path, fake_openai: FakeOpenAI, then: str) -> None:
    """Under trio as under asyncio, without a traceback of the signal's making."""
    fake_openai.add(faults.LostHeaders())
    body = f"""
    import trio

    async def main():
        try:
            await AsyncOpenAI().chat.completions.create({ASK})
        except RunCancelledError:
            print("cancelled")
            {then}

    trio.run(main)
    """
    with warm("exec", "--grace", "0.5", script(tmp_path, body), **key_and_url(fake_openai.base_url)) as child:
        fake_openai.wait_for(asked, 20)
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    assert child.output == ["cancelled", "finally", "atexit"]
    assert "Traceback" not in child.errors
    assert "Warning" not in child.errors


@pytest.mark.parametrize("main", ["for each in workers: each.join()", "pass"])
def test_calls_of_worker_threads_are_cancelled(tmp_path: Path, fake_openai: FakeOpenAI, main: str) -> None:
    """Calls in other threads are cancelled, whether the main thread waits for them or is done."""
    fake_openai.add(faults.LostHeaders())
    body = f"""
    client = OpenAI()
    client.chat.completions  # imported here: Python lets no thread import much once the main thread is done
    workers = [threading.Thread(target=ask, args=(client,)) for _ in range(3)]
    for each in workers: each.start()
    {main}
    """
    with warm("exec", "--grace", "20", script(tmp_path, body), **key_and_url(fake_openai.base_url)) as child:
        fake_openai.wait_for(lambda records: sum(each.state == "generating" for each in records) == 3, 20)
        child.signal(signal.SIGTERM)
        assert child.end() == 143
    assert child.errors.count("cancelled, in") == 3
    assert "Traceback" not in child.errors
    fake_openai.wait_for(lambda records: all(each.state == "disconnected" for each in records))


def test_a_scripts_own_handler_is_kept(tmp_path: Path) -> None:
    """A handler that the script installs is the one that runs."""
    body = """
    import signal

    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append("its own"))
    print("ready", flush=True)
    while not came:
        time.sleep(0.01)
    print(*came)
    """
    with warm("exec", script(tmp_path, body)) as child:
        child.until("ready")
        child.signal(signal.SIGTERM)
        assert child.end() == 0
    assert child.output[1:] == ["its own", "finally", "atexit"]


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """What was started with SIGINT ignored, as by nohup or a shell's &, does not begin to listen to it."""
    body = """
    import signal
    print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with command("exec", script(tmp_path, body)) as child:
            assert child.end() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.output[0] == "True"
