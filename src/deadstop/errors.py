"""Every exception deadstop raises.

::

    openai.OpenAIError
     +-- DeadstopError
          +-- RunCancelledError                            the run was cancelled; raised in its calls
          +-- RunCancellationTimeoutError (TimeoutError)   the cancel was not confirmed in time
          +-- CancelRefusedError (PermissionError)         who asked may not cancel this run
          +-- LedgerError                                  the durable record failed; nothing acknowledged is lost
          |    +-- LedgerUnavailable                       it can't be read or written now
          |    +-- LedgerSchemaError                       it is not ours, or a newer library's
          |    +-- LedgerUrlError (UsageError)             its address is wrong, or its extra is missing
          +-- UsageError (ValueError)                      bad input; the message says what to do
               +-- UnknownRunError (LookupError)
               +-- RunAlreadyOpenError
               +-- UnsupportedClientError (TypeError)

None of them derives from ``openai.APIError``: code that retries API errors must not retry a cancel.
All of them survive ``pickle`` and ``copy`` with their facts, and print as full sentences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from openai import OpenAIError

if TYPE_CHECKING:
    from deadstop.core.model import CancelReceipt, Cause, Diagnosis

__all__ = [
    "MESSAGE",
    "CancelRefusedError",
    "DeadstopError",
    "LedgerError",
    "LedgerSchemaError",
    "LedgerUnavailable",
    "LedgerUrlError",
    "RunAlreadyOpenError",
    "RunCancellationTimeoutError",
    "RunCancelledError",
    "UnknownRunError",
    "UnsupportedClientError",
    "UsageError",
]

MESSAGE = "Run cancellation timed out after waiting for the operation to abort."

_CAUSES = {
    "deadline": "its deadline passed",
    "parent": "the run it belongs to was cancelled",
    "signal": "the process received a signal",
    "shutdown": "the process is shutting down",
}


def _rebuild(cls: type[DeadstopError], args: tuple[Any, ...], facts: dict[str, Any]) -> DeadstopError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(facts)
    return error


class DeadstopError(OpenAIError):
    """The base of every error deadstop raises."""

    def __reduce__(self) -> tuple[Callable[..., DeadstopError], tuple[Any, ...]]:
        # The constructors take keywords, which BaseException's own __reduce__ would drop.
        facts = {key: list(value) if key == "__notes__" else value for key, value in self.__dict__.items()}
        return _rebuild, (type(self), self.args, facts)


class RunCancelledError(DeadstopError):
    """The run was cancelled. Raised by every call of the run, from the cancel on.

    ``receipt`` is the cancel's record, if the cancel had ended when the error was raised.
    """

    run: str
    reason: str | None
    actor: str | None
    receipt: CancelReceipt | None
    cause: Cause | None

    def __init__(
        self,
        *,
        run: str,
        reason: str | None = None,
        actor: str | None = None,
        receipt: CancelReceipt | None = None,
        cause: Cause | None = None,
    ) -> None:
        self.run = run
        self.reason = reason
        self.actor = actor
        self.receipt = receipt
        self.cause = cause
        why = " ".join(reason.split()).rstrip(".") if reason else ""
        why = why or _CAUSES.get(cause or "", "")
        super().__init__(f"Run {run!r} was cancelled{': ' + why if why else ''}{f' (by {actor})' if actor else ''}.")


class RunCancellationTimeoutError(DeadstopError, TimeoutError):
    """The cancel was not confirmed before its deadline.

    Raised by the cancel that timed out, and by the cancelled call when it comes back at last. ``receipt``
    holds the evidence. On Python 3.11 and later the traceback ends with a note: the run, the diagnosis and
    the fix.
    """

    receipt: CancelReceipt | None

    def __init__(self, message: str = MESSAGE, *, receipt: CancelReceipt | None = None) -> None:
        super().__init__(message)
        self.receipt = receipt
        add_note = getattr(self, "add_note", None)  # Python 3.11
        if add_note is not None and receipt is not None:
            add_note(_note(receipt))

    @property
    def run(self) -> str | None:
        """The name of the run whose cancel timed out, if known."""
        return self.receipt.run if self.receipt is not None else None

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Why it timed out, from evidence, with the fix."""
        return self.receipt.diagnosis if self.receipt is not None else None


def _note(receipt: CancelReceipt) -> str:
    found = receipt.diagnosis
    if found is None:
        return f"Run {receipt.run!r}: there is no diagnosis."
    return f"Run {receipt.run!r}: {found.klass} - {found.summary}\nFix: {found.fix}"


class UsageError(DeadstopError, ValueError):
    """deadstop was given something it can't work with. Nothing was changed."""


class UnknownRunError(UsageError, LookupError):
    """No such run is known here."""

    def __init__(self, message: str, *, run: str | None = None) -> None:
        super().__init__(message)
        self.run = run


class RunAlreadyOpenError(UsageError):
    """A run of that name is open already."""

    def __init__(self, message: str, *, run: str | None = None) -> None:
        super().__init__(message)
        self.run = run


class UnsupportedClientError(UsageError, TypeError):
    """The object is no client deadstop can attach to. ``client`` is the name of its type."""

    def __init__(self, message: str, *, client: str | None = None) -> None:
        super().__init__(message)
        self.client = client


class CancelRefusedError(DeadstopError, PermissionError):
    """The actor is not among those who may cancel this run. Nothing was changed; the try is on record."""

    def __init__(self, message: str, *, run: str | None = None, actor: str | None = None) -> None:
        super().__init__(message)
        self.run = run
        self.actor = actor


class LedgerError(DeadstopError):
    """The durable record could not do what was asked. What it acknowledged before is kept.

    ``url`` is its address, without any password.
    """

    def __init__(self, message: str, *, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class LedgerUnavailable(LedgerError):
    """The record can't be read or written now: down, locked, full or read-only. It may be, later; try again then."""


class LedgerSchemaError(LedgerError):
    """What is at that address is no record of ours, or one that a newer deadstop has written. Nothing was written."""


class LedgerUrlError(LedgerError, UsageError):
    """The record's address can't be used: it is malformed, or the extra that it needs is not installed."""
