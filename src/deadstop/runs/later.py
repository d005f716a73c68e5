"""Attributes that are made when they are asked for first."""

from __future__ import annotations

from typing import Any, Callable, Generic, Optional, TypeVar

__all__ = ["Later"]

Made = TypeVar("Made")


class Later(Generic[Made]):
    """An attribute that `make()` gives when it is asked for first, by whatever thread; the same one to all.

    A descriptor and no `__getattr__`, with which every other attribute of the class would be slower, too.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, one: Any, owner: Optional[type] = None) -> Made:
        return one.__dict__.setdefault(self._name, self._make())  # type: ignore[no-any-return]
