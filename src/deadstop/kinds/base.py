"""What a kind of remote run is: where it lives, what its statuses mean, how its id is learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional

from deadstop.core.model import RunStatus
from deadstop.errors import UsageError

__all__ = ["Kind", "Ref", "Request"]

_PLACE = re.compile(r"\{(\w+)\}")
_ID = re.compile(r"[A-Za-z0-9_~=@+:,\-][A-Za-z0-9_~=@+:,.\-]*")  # no slash, no dots alone, nothing to escape in a URL

Body = Mapping[str, Any]


class Ref(NamedTuple):
    """The address of one remote run: its kind and its ids, outermost first. Prints as ``kind:id/id``."""

    kind: str
    ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}:{'/'.join(self.ids)}"


class Request(NamedTuple):
    """An HTTP request to the server, relative to the client's base URL."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


def _always(body: Body) -> bool:
    return True


@dataclass(frozen=True)
class Kind:
    """A kind of remote run. Pure data, one small file each.

    - ``name``: what its addresses begin with: ``thread_run:thread_123/run_456``.
    - ``path``: where its status is read (GET), with a place for each id, outermost first.
    - ``create``: the paths whose POST starts one, and ``starts(body)``: whether a POST with that JSON does.
    - ``active``, ``cancelling``, ``cancelled``, ``finished``: the provider's words. A word that is in none of them
      counts as unknown: the run is not taken to be over.
    - ``objects``: the values of the ``object`` field by which its objects are known.
    - ``fields``: which fields of such an object hold the ids. ``prefixes``: what those ids begin with, so that an
      id of another kind is refused; an id without any known prefix is allowed, since servers differ.
    - ``cancel``: the path of the cancel (POST); ``path`` + ``/cancel`` unless given.
    - ``readable``: whether ``path`` can be read. If not, the truth is what the cancel answers.
    - ``connected``: it lives on a connection that its user holds, and can be reached over that one only.
    - ``headers`` and ``query`` go with every request.
    - ``lists``: a path that lists such runs, to look for one whose id was lost.
    - ``defaults``: its CancelPolicy where it differs, in seconds: ``{"timeout": 30.0}``.

    Raises UsageError for a kind that contradicts itself.
    """

    name: str
    path: str
    active: frozenset[str]
    cancelled: frozenset[str]
    finished: frozenset[str]
    cancelling: frozenset[str] = frozenset()
    create: tuple[str, ...] = ()
    starts: Callable[[Body], bool] = _always
    objects: tuple[str, ...] = ()
    fields: tuple[str, ...] = ("id",)
    prefixes: tuple[str, ...] = ()
    cancel: str = ""
    readable: bool = True
    connected: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    lists: Optional[str] = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UsageError(f"A kind's name is lower case letters, digits and underscores; this is {self.name!r}.")
        places = _PLACE.findall(self.path)
        if not places or not self.path.startswith("/"):
            raise UsageError(
                f"The path of kind {self.name!r} is {self.path!r}: give one such as '/batches/{{batch_id}}'."
            )
        for what, given in (("fields", self.fields), ("prefixes", self.prefixes or places)):
            if len(given) != len(places):
                raise UsageError(f"Kind {self.name!r} has {len(places)} ids in its path, and {len(given)} {what}.")
        words = [*self.active, *self.cancelling, *self.cancelled, *self.finished]
        if len(words) != len(set(words)):
            raise UsageError(f"A status of kind {self.name!r} stands in two groups; each means one thing.")
        if not self.cancelled:
            raise UsageError(f"Kind {self.name!r} has no status that means cancelled, so no cancel could be confirmed.")

    @property
    def example(self) -> str:
        """An address of this kind, for messages."""
        prefixes = self.prefixes or ("",) * len(self.fields)
        return f"{self.name}:{'/'.join(prefix + '123' for prefix in prefixes)}"

    # Addresses

    def ref(self, *ids: Any) -> Ref:
        """The address of the run with these ids. Raises UsageError for one that can't be right (I9)."""
        if len(ids) != len(self.fields):
            raise UsageError(
                f"A {self.name} is named by {len(self.fields)} id{'s' * (len(self.fields) > 1)}, and this has "
                f"{len(ids)}: {'/'.join(map(str, ids))!r}. Give it as {self.example!r}."
            )
        for number, each in enumerate(ids):
            wrong = self._wrong(number, each)
            if wrong:
                raise UsageError(f"{each!r} {wrong}, so it is no id of a {self.name}. Nothing was sent.")
        return Ref(self.name, tuple(ids))

    def _wrong(self, number: int, each: Any) -> Optional[str]:
        if not isinstance(each, str) or not each:
            return "is not a string" if not isinstance(each, str) else "is empty"
        if not _ID.fullmatch(each) or len(each) > 512:
            return "has characters that no id has" if len(each) <= 512 else "is longer than any id"
        if self.prefixes and each.rstrip("_-") == self.prefixes[number].rstrip("_-"):
            return "is only the beginning of an id"
        return None

    def to_cancel(self, ref: Ref) -> Request:
        """The request that cancels it."""
        return Request("POST", self._at(self.cancel or self.path + "/cancel", ref), self.query, self.headers)

    def to_read(self, ref: Ref) -> Request:
        """The request that reads its status. For a kind that can't be read: the cancel once more."""
        return (
            Request("GET", self._at(self.path, ref), self.query, self.headers) if self.readable else self.to_cancel(ref)
        )

    def _at(self, path: str, ref: Ref) -> str:
        ids = iter(ref.ids)
        return _PLACE.sub(lambda _: next(ids), path)

    # What passes by

    def read(self, word: Optional[str]) -> RunStatus:
        """What the provider's status word means."""
        for status, words in (
            (RunStatus.ACTIVE, self.active),
            (RunStatus.CANCELLING, self.cancelling),
            (RunStatus.CANCELLED, self.cancelled),
            (RunStatus.FINISHED, self.finished),
        ):
            if word in words:
                return status
        return RunStatus.UNKNOWN

    def find(self, data: Any, *, within: tuple[str, ...] = ()) -> Optional[tuple[Ref, Optional[str]]]:
        """The address and status word in an object of this kind, or in an event that carries one; else None.

        ``within``: ids known from the request's path, for objects that do not repeat them.
        """
        if not isinstance(data, Mapping):
            return None
        if data.get("object") not in self.objects:
            inner = next((each for each in data.values() if self._is_object(each)), None)
            if inner is None:
                return None
            data = inner
        return self.take(data, within=within)

    def take(self, data: Body, *, within: tuple[str, ...] = ()) -> Optional[tuple[Ref, Optional[str]]]:
        """As `find`, of a mapping that is known to be such an object: the answer to a create, say."""
        known = dict(zip(self.fields, within))
        ids = tuple(data.get(name) or known.get(name) for name in self.fields)
        if any(self._wrong(number, each) for number, each in enumerate(ids)):
            return None
        word = data.get("status")
        return Ref(self.name, ids), word if isinstance(word, str) else None  # type: ignore[arg-type]

    def _is_object(self, data: Any) -> bool:
        return isinstance(data, Mapping) and data.get("object") in self.objects
