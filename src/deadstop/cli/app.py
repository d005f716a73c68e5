"""The commands and their options."""

from __future__ import annotations

import importlib
import sys
from typing import Callable, Optional

from deadstop.cli.extras import Console, typer

__all__ = ["run"]

app = typer.Typer(
    name="deadstop",
    help='Makes "cancel" mean cancelled, for LLM runs.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Later = list[Callable[[], int]]

_Url = typer.Option(
    None, "--url", envvar="DEADSTOP_URL", help="The ledger, and a bus; sqlite: (this user's own) if not given."
)


def run() -> int:
    """Run the command in `sys.argv`; the exit code."""
    hook = sys.excepthook
    later: Later = []
    try:
        app(obj=later, prog_name="deadstop")
    except SystemExit:
        if not later:
            raise
    finally:
        sys.excepthook = hook
    # Out here a script meets no exception handling but its own.
    return later[0]()


@app.callback(invoke_without_command=True)
def _main(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        print(f"deadstop {importlib.import_module('deadstop').__version__}")
        raise typer.Exit


@app.command("exec", context_settings={"allow_interspersed_args": False})
def _exec(
    context: typer.Context,
    target: str = typer.Argument(..., metavar="SCRIPT", help="The script; with -m, the name of a module."),
    arguments: Optional[list[str]] = typer.Argument(None, metavar="ARGS", help="What the script gets."),  # noqa: B008
    module: bool = typer.Option(False, "-m", help="Run a module, as python -m does."),
    grace: float = typer.Option(2.0, min=0.0, help="Seconds for the cancels when a signal comes."),
    url: Optional[str] = _Url,
) -> None:
    """Run an unmodified script whose openai calls are cancelled on SIGINT and SIGTERM.

    The script finds deadstop's clients and errors under the names of the openai module. On a signal every live run is
    cancelled, each receipt is printed on standard error, and the exit code is 130 or 143. Other terminals see its runs
    with `deadstop ps`, and cancel them.
    """
    execute = importlib.import_module("deadstop.cli.exec").execute
    context.obj.append(lambda: execute(target, list(arguments or ()), module=module, grace=grace, url=url))


@app.command("demo")
def _demo(
    base_url: Optional[str] = typer.Option(None, help="A real server, instead of the fake one."),
    model: Optional[str] = typer.Option(None, help="The model to ask there."),
    api_key: Optional[str] = typer.Option(None, envvar="OPENAI_API_KEY", help="The key to use there."),
    only: Optional[str] = typer.Option(None, help="Only the calls whose description contains this."),
) -> None:
    """Cancel real calls in every phase, and compare the receipts with the server's own record.

    Without options no key is needed: the server is a fake one, in a process of its own. The exit code is 1 where a
    receipt and the record disagree.
    """
    if (base_url is None) != (model is None):
        raise typer.BadParameter("a real server takes both: --base-url and --model.")
    demo = importlib.import_module("deadstop.cli.demo").demo
    raise typer.Exit(demo(base_url, model, api_key, only))


@app.command("explain")
def _explain(name: Optional[str] = typer.Argument(None, metavar="CLASS", help="Such as caller_blocked.")) -> None:
    """Say what a diagnosis means, what causes it, and what to do about it."""
    explain = importlib.import_module("deadstop.cli.explain").explain
    raise typer.Exit(explain(name, _console(), Console(stderr=True, soft_wrap=True)))


@app.command("serve-fake")
def _serve_fake(
    port: int = typer.Option(0, min=0, max=65535, help="0 takes a free one."),
    rate: float = typer.Option(50.0, min=0.0, help="Tokens per second; 0 is as fast as possible."),
    tokens: int = typer.Option(500, min=0, help="Length of an answer."),
    fault: Optional[list[str]] = typer.Option(  # noqa: B008
        None, metavar="NAME[:ARG=VALUE,...]", help="A fault to play, such as StallAfter:tokens=3. Repeatable."
    ),
    cert: Optional[str] = typer.Option(None, help="A PEM certificate: speak HTTPS."),
    key: Optional[str] = typer.Option(None, help="Its PEM key, unless it is in the same file."),
) -> None:
    """Run the fake OpenAI server that misbehaves on demand, until Ctrl-C."""
    serve = importlib.import_module("deadstop.cli.serve_fake")
    try:
        faults = [serve.parse_fault(each) for each in fault or ()]
    except serve.BadFault as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from error
    try:
        serve.serve_fake(port, rate, tokens, faults, cert, key)
    except OSError as error:  # a port that is taken, a certificate that is none
        print(f"The server can't start: {error}.", file=sys.stderr)
        raise typer.Exit(1) from error


def _fleet(name: str) -> Callable[..., int]:
    """A function of `deadstop.cli.fleet`; its ledger errors end the command with a sentence."""
    function: Callable[..., int] = getattr(importlib.import_module("deadstop.cli.fleet"), name)
    errors = importlib.import_module("deadstop.errors")

    def call(*args: object, **kwargs: object) -> int:
        try:
            return function(*args, **kwargs)
        except errors.DeadstopError as error:
            print(f"deadstop: {error}", file=sys.stderr)
            return 2 if isinstance(error, errors.UsageError) else 1
        except errors.OpenAIError as error:  # no key
            print(f"deadstop: {error}", file=sys.stderr)
            return 2

    return call


@app.command("ps")
def _ps(
    all_: bool = typer.Option(False, "--all", help="Also those that have ended."),
    watch: bool = typer.Option(False, "--watch", help="Again and again, until Ctrl-C."),
    as_json: bool = typer.Option(False, "--json", help="For programs."),
    url: Optional[str] = _Url,
) -> None:
    """List the runs: those on record, and those that processes hold: of this host, with Postgres of every one."""
    raise typer.Exit(_fleet("ps")(url, ended=all_, watch=watch, as_json=as_json, console=_console()))


@app.command("cancel")
def _cancel(
    target: Optional[str] = typer.Argument(None, metavar="NAME|REF", help="Such as chat-42, or response:resp_123."),
    all_: bool = typer.Option(False, "--all", help="Every run that has a name or is on record."),
    reason: Optional[str] = typer.Option(None, help="Why; kept on record."),
    actor: Optional[str] = typer.Option(None, help="Who; this user if not given."),
    timeout: Optional[float] = typer.Option(None, min=0.001, help="Seconds to wait for the confirmation."),
    wait: str = typer.Option("confirmed", help="What to wait for: sent, accepted or confirmed."),
    url: Optional[str] = _Url,
) -> None:
    """Cancel a run of any process of this host, with Postgres of any, or what a dead one left behind.

    Exit codes: 0 confirmed, 3 unconfirmed (also: parked, since nobody holds it), 4 it had finished first, 2 usage.
    Cancels of remote runs whose process is gone need OPENAI_API_KEY and OPENAI_BASE_URL.
    """
    facts = {"every": all_, "reason": reason, "actor": actor, "timeout": timeout, "wait": wait}
    raise typer.Exit(_fleet("cancel")(url, target, **facts))


@app.command("receipts")
def _receipts(
    run: Optional[str] = typer.Argument(None, metavar="NAME", help="Of this run alone."),
    limit: int = typer.Option(20, min=1, help="How many at most."),
    as_json: bool = typer.Option(False, "--json", help="For programs."),
    url: Optional[str] = _Url,
) -> None:
    """Print what cancels came to, the newest first."""
    raise typer.Exit(_fleet("receipts")(url, run, limit=limit, as_json=as_json))


@app.command("reconcile")
def _reconcile(
    once: bool = typer.Option(False, "--once", help="End when there is nothing left to do."),
    url: Optional[str] = _Url,
) -> None:
    """Finish the cancels that dead processes left behind, until SIGTERM or Ctrl-C. With a bus that has JetStream
    (--url "sqlite: nats://bus:4222") also those of other hosts.

    Uses OPENAI_API_KEY and OPENAI_BASE_URL, and works on remote runs of that server alone. Several may run side by
    side. What ended more than 30 days ago is forgotten.
    """
    raise typer.Exit(_fleet("reconcile")(url, once=once))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=140)
