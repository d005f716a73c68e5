"""A process of its own for the tests: ``python ledger_child.py WHAT URL [MORE]``. It answers on stdout, in lines."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
from collections import Counter

from deadstop.core.model import Attempt, CancelReceipt, Evidence, Intent, Outcome
from deadstop.errors import DeadstopError
from deadstop.ledger import connect
from deadstop.ledger.base import Ledger
from deadstop.ledger.facts import Opening, Process, RemoteRun

NOW = 1_700_000_000.0
ME = Process(f"child:{os.getpid()}", "child", os.getpid())
speaking = threading.Lock()


def say(*words: object) -> None:
    with speaking:
        os.write(1, (" ".join(map(str, words)) + "\n").encode())


def record(ledger: Ledger, run: str) -> None:
    ledger.record_intent(Intent(run, request_id=run, at=NOW), ME, opening=Opening(run, ME, NOW), now=NOW)


def acknowledge(ledger: Ledger, tag: str) -> None:
    """Record and settle cancels in four threads until killed; say each only once it is acknowledged."""

    def work(number: int) -> None:
        for count in itertools.count():
            run = f"{tag}-{number}-{count}"
            record(ledger, run)
            say("intent", run)
            remote = RemoteRun("response", (f"resp_{run}",), "https://x/v1", run, 1, ME.owner, NOW)
            ledger.record_remote(remote, now=NOW)
            say("remote", run)
            ledger.record_attempt(run, 1, Attempt(ledger.begin_attempt(run, 1, by=ME.owner, now=NOW), NOW), by=ME.owner)
            say("attempt", run)
            ledger.settle(CancelReceipt(run, Outcome.CANCELLED, evidence=Evidence.STATUS), 1, by=ME.owner, now=NOW)
            say("outcome", run)

    for number in range(4):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    threading.Event().wait(50)


def killed(url: str, more: str) -> None:
    """Fork workers that record, kill each at a random moment, and look for what it acknowledged. Says the counts."""
    kills, dice, said = int(more), random.Random(4), Counter[str]()
    for number in range(kills):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(writing, 1)
            acknowledge(connect(url), str(number))
        os.close(writing)
        with open(reading, "rb") as pipe:
            lines = [pipe.readline() for _ in range(dice.randrange(1, 120))]
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            lines += pipe.readlines()
        acknowledged = [line.decode().split() for line in lines if line.endswith(b"\n")]
        assert acknowledged
        with connect(url) as ledger:
            for what, run in acknowledged:
                said[what] += 1
                intent = ledger.intent(run)
                assert intent is not None
                assert what != "remote" or ledger.remotes(run, 1)
                assert what != "attempt" or ledger.attempts(run, 1)
                assert what != "outcome" or intent.outcome is not None
    for what, count in sorted(said.items()):
        say(what, count)


def many(ledger: Ledger, tag: str) -> None:
    """Sixteen threads, ten cancels each: five of runs of their own, five of runs that everybody cancels."""

    def work(number: int) -> None:
        for count in range(5):
            record(ledger, f"{tag}-{number}-{count}")
            shared = Intent(f"shared-{count}", at=NOW, reason=f"{tag}-{number}")
            if ledger.record_intent(shared, ME, park_until=NOW + 60, now=NOW).first:
                say("first", shared.run)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    say("done")


def fork(ledger: Ledger, tag: str) -> None:
    """Fork while threads write: parent and child both go on; the parent's claim does not outlive it in the child."""
    claim = ledger.claim("mine")
    assert claim is not None
    stop = threading.Event()

    def work(number: int) -> None:
        for count in itertools.count():
            if stop.is_set():
                return
            record(ledger, f"parent-{number}-{count}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    record(ledger, "before")
    go, gone = os.pipe()
    looked, look = os.pipe()
    child = os.fork()
    if child == 0:
        assert ledger.claim("mine") is None
        os.close(look)
        record(ledger, "child")
        say("child", ledger.intent("before") is not None)
        os.close(gone)
        os.read(go, 1)  # until the parent's end closes it
        took = ledger.claim("mine")
        say("claimed", took is not None)
        os._exit(0)
    stop.set()
    for each in threads:
        each.join()
    record(ledger, "after")
    os.close(look)
    os.read(looked, 1)  # until the child's end is closed, too
    claim.release()
    os.close(gone)
    say("parent", os.waitpid(child, 0)[1])


def claim(ledger: Ledger, tag: str) -> None:
    """Claim, say so, and keep it until stdin ends."""
    made = ledger.claim(tag)
    say("claimed" if made else "taken")
    sys.stdin.read()


def limited(url: str, more: str) -> None:
    """Write with a limit on the size of files, as on a disk that fills."""
    import resource

    with connect(url) as ledger:
        record(ledger, "before")
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(more), resource.RLIM_INFINITY))
        for count in itertools.count():
            try:
                record(ledger, f"run-{count}")
            except DeadstopError as error:
                say("error", type(error).__name__, error)
                break
            say("intent", f"run-{count}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        record(ledger, "room again")
        say("intent", "room again")


def nobody(url: str, more: str) -> None:
    """Open as a user who may not write there."""
    connect("memory:").close()  # imports what that user may not be able to read
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        with connect(url) as ledger:
            record(ledger, "run")
    except DeadstopError as error:
        say(type(error).__name__, error)
    else:
        say("fine")


def opened(ledger: Ledger, tag: str) -> None:
    say("open")


if __name__ == "__main__":
    what, url, more = sys.argv[1], sys.argv[2], (sys.argv[3:] or [""])[0]
    alone = {each.__name__: each for each in (limited, nobody, killed)}
    if what in alone:
        alone[what](url, more)
    else:
        with connect(url) as made:
            {each.__name__: each for each in (many, fork, claim, opened)}[what](made, more)
