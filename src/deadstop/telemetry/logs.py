"""Structured logs: one record for each settled cancel. Nothing of prompts, outputs or keys is in it."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlsplit

from deadstop.core.model import CancelReceipt
from deadstop.telemetry.events import CancelRefined, CancelSettled, Event

__all__ = ["facts", "path_of", "record", "wanted"]

log = logging.getLogger("deadstop.cancels")
# Whoever cancels is told anyway, by a receipt or an error: without a handler of the user's, nothing is printed.
log.addHandler(logging.NullHandler())


def wanted() -> bool:
    """Whether a cancel that goes well is logged."""
    return log.isEnabledFor(logging.INFO)


def record(event: Event) -> None:
    """Log the outcome: at INFO when the run is known to be over, at WARNING when it is not."""
    if not isinstance(event, (CancelSettled, CancelRefined)):
        return
    receipt = event.receipt
    level = logging.INFO if receipt.ok else logging.WARNING
    if log.isEnabledFor(level):
        log.log(
            level, "%s", receipt, extra={"deadstop": {**facts(receipt), "kind": event.kind, "server": event.server}}
        )


def facts(receipt: CancelReceipt) -> dict[str, Any]:
    """The receipt as JSON-ready data, the paths of its calls without their queries."""
    return _without_queries(receipt.to_dict())


def _without_queries(plain: dict[str, Any]) -> dict[str, Any]:
    for call in plain["calls"]:
        call["path"] = path_of(call["path"])
    for child in plain["children"]:
        _without_queries(child)
    return plain


def path_of(url: str) -> str:
    """The path of what the SDK was asked for, without what may be secret: a query, a user and a password."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""
