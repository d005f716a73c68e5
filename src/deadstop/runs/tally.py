"""How much callers had been given in a run and in all below it, also by what is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from deadstop.core.model import Delivered

if TYPE_CHECKING:
    from deadstop.runs.run import BaseRun

__all__ = ["count", "delivered_in", "part"]


def count(run: BaseRun, chunks: int, characters: int) -> None:
    """Callers had been given that much by something in the run that is over."""
    each: Optional[BaseRun] = run
    while each is not None:
        each.chunks += chunks
        each.characters += characters
        # A call may outlast its scope. What is still among its parent's children is counted there as such.
        parted = each.parent is not None and each.ended and id(each) not in each.parent.children
        each = each.parent if parted and each.struck_by is not each.parent else None


def part(run: BaseRun) -> None:
    """The run is none of its parent's children any more, and leaves it only the sum of what was delivered."""
    parent = run.parent
    if parent is not None and parent.children.pop(id(run), None) is not None and run.struck_by is not parent:
        inside = delivered_in(run)
        count(parent, inside.chunks, inside.characters)


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
