"""How much callers had been given in a run and in all below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deadstop.core.model import Delivered

if TYPE_CHECKING:
    from deadstop.runs.run import BaseRun

__all__ = ["delivered_in"]


def delivered_in(run: BaseRun) -> Delivered:
    """By its calls that are over, by those that its cancel has hit, and by the same of its children.

    Each call is in one place only: who is hit stays with the cancel (see `BaseRun.remove`), and so do the children.
    """
    chunks, characters = run.chunks, run.characters
    below = {id(child): child for child in list(run.children.values())}
    cancelling = run.cancelling
    if cancelling is not None:
        for call in list(cancelling.calls.values()):
            chunks += call.chunks
            characters += call.characters
        below.update((id(each.run), each.run) for each in list(cancelling._children) if each.run.struck_by is run)
    for child in below.values():
        inside = delivered_in(child)
        chunks += inside.chunks
        characters += inside.characters
    return Delivered(chunks, characters)
