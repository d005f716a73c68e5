"""The kinds that are known: looking one up by name, by a request that passes, by an object, by an address."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Callable, NamedTuple, Optional
from urllib.parse import parse_qsl, urlsplit

from deadstop.errors import UsageError
from deadstop.kinds.base import Kind, Ref
from deadstop.kinds.batch import BATCH
from deadstop.kinds.chatkit_session import CHATKIT_SESSION
from deadstop.kinds.eval_run import EVAL_RUN
from deadstop.kinds.fine_tuning_job import FINE_TUNING_JOB
from deadstop.kinds.realtime_response import REALTIME_RESPONSE
from deadstop.kinds.response import BETA_RESPONSE, RESPONSE
from deadstop.kinds.thread_run import THREAD_RUN
from deadstop.kinds.upload import UPLOAD
from deadstop.kinds.vector_store_file_batch import VECTOR_STORE_FILE_BATCH

__all__ = [
    "Passing",
    "alike",
    "defaults",
    "kind",
    "kinds",
    "of_object",
    "parse",
    "passing",
    "register_kind",
    "unrelated",
]

_kinds: dict[str, Kind] = {
    each.name: each
    for each in (
        *(RESPONSE, BETA_RESPONSE, THREAD_RUN, BATCH, FINE_TUNING_JOB),
        *(VECTOR_STORE_FILE_BATCH, EVAL_RUN, UPLOAD, CHATKIT_SESSION, REALTIME_RESPONSE),
    )
}


def kinds() -> dict[str, Kind]:
    """Every kind by name. A copy."""
    return dict(_kinds)


def kind(name: str) -> Kind:
    """The kind of that name. Raises UsageError."""
    if name not in _kinds:
        raise UsageError(f"There is no kind {name!r}: the kinds are {', '.join(_kinds)}.")
    return _kinds[name]


def alike(name: str) -> list[str]:
    """The kinds whose ids are those of the same runs: one may be named as either."""
    objects = _kinds[name].objects
    return [each.name for each in _kinds.values() if each.name == name or (objects and each.objects == objects)]


def register_kind(new: Kind) -> Kind:
    """Make a kind known to the whole process, and return it. The same one twice is fine.

    Raises UsageError if another kind has that name.
    """
    if not isinstance(new, Kind):
        raise UsageError(f"register_kind() takes a Kind, and got {new!r}.")
    if _kinds.setdefault(new.name, new) != new:
        raise UsageError(f"There is a kind {new.name!r} already. Give yours another name.")
    _heads.cache_clear()
    unrelated.cache_clear()
    return new


def defaults() -> dict[str, Mapping[str, Any]]:
    """The CancelPolicy of each kind where it differs."""
    return {name: each.defaults for name, each in _kinds.items()}


def parse(text: str) -> Optional[Ref]:
    """The address that `text` is: ``response:resp_123``. None if it does not begin with a kind's name.

    Raises UsageError for one that begins so and can't be right.
    """
    name, colon, rest = text.partition(":")
    if not colon or name not in _kinds:
        return None
    ref = _kinds[name].ref(*rest.split("/"))
    _refuse_foreign(ref)
    return ref


def _refuse_foreign(ref: Ref) -> None:
    """An id that begins as those of another kind do is one of those: refused before anything is sent (I9)."""
    for own, each in zip(_kinds[ref.kind].prefixes, ref.ids):
        theirs = {p: k for k in _kinds.values() for p in k.prefixes if each.startswith(p) and not own.startswith(p)}
        if theirs and not each.startswith(own):
            belongs = theirs[max(theirs, key=len)].name
            raise UsageError(f"{each!r} is the id of a {belongs}, not of a {ref.kind}. Nothing was sent.")


def of_object(thing: Any) -> Optional[tuple[Ref, Optional[str]]]:
    """The address and status word of an SDK object or of its JSON; None if it is no remote run.

    Raises UsageError for a response that was made in the foreground: it has no cancel of its own.
    """
    data = thing if isinstance(thing, Mapping) else _fields_of(thing)
    if data is None:
        return None
    for each in _kinds.values():
        if data.get("object") in each.objects:
            if each.objects == RESPONSE.objects and data.get("background") is False:
                raise UsageError(
                    f"The response {data.get('id')!r} was made in the foreground: it is cancelled by its connection, "
                    "so cancel the run (or the stream) that its call belongs to. Nothing was sent."
                )
            return each.take(data)
    return None


def _fields_of(thing: Any) -> Optional[Mapping[str, Any]]:
    names = ("object", "id", "status", "background", *{each for k in _kinds.values() for each in k.fields})
    if not isinstance(getattr(thing, "object", None), str):
        return None
    return {name: getattr(thing, name, None) for name in names}


# What passes through a client


class Passing(NamedTuple):
    """A request that concerns remote runs of a kind.

    ``creates``: its answer brings a new one. ``within``: the ids that its path names, outermost first; the address
    of one run, if they are all there.
    """

    kind: Kind
    creates: bool
    within: tuple[str, ...]

    @property
    def ref(self) -> Optional[Ref]:
        whole = len(self.within) == len(self.kind.fields)
        return Ref(self.kind.name, self.within) if whole and not self.creates else None


class _Path(NamedTuple):
    kind: Kind
    pattern: re.Pattern[str]
    creates: bool


def passing(method: str, url: str, body: Callable[[], Any]) -> Optional[Passing]:
    """What a request of the SDK has to do with remote runs; None for most. ``url`` is relative to the base URL.

    ``body()`` is asked only where it matters: getting at it takes as long as all the rest of this.
    """
    others, heads = unrelated(), _heads()
    if url in others:
        return None
    head = url.split("/", 2)[1].partition("?")[0] if url.startswith("/") else url.split("/", 1)[0].partition("?")[0]
    paths = heads.get(head)
    if paths is None:
        if len(others) < 100:
            others.add(url)
        return None
    parts = urlsplit(url)
    query, path = dict(parse_qsl(parts.query)), "/" + parts.path.strip("/")
    for each in paths:
        if any(query.get(name) != value for name, value in each.kind.query.items()):
            continue
        match = each.pattern.fullmatch(path)
        if match is None:
            continue
        if each.creates:
            asked = body() if method.upper() == "POST" else None
            if method.upper() == "POST" and each.kind.starts(asked if isinstance(asked, Mapping) else {}):
                return Passing(each.kind, True, match.groups())
        else:
            return Passing(each.kind, False, match.groups())
    return None


@lru_cache(maxsize=1)
def unrelated() -> set[str]:
    """URLs for which `passing` said None. Nearly every call is to one of a few, so it is looked at first."""
    return set()


@lru_cache(maxsize=1)
def _heads() -> dict[str, list[_Path]]:
    """The paths of every kind by their first segment; those that ask for more (a query) first."""
    heads: dict[str, list[_Path]] = {}
    for each in sorted(_kinds.values(), key=lambda kind: -len(kind.query)):
        for path in _paths(each):
            heads.setdefault(path.kind.path.split("/")[1], []).append(path)
    return heads


_MORE = ("/submit_tool_outputs", "/complete", "/pause", "/resume")
"""What else is asked of a run by a POST, and answered with it."""


def _paths(each: Kind) -> Iterator[_Path]:
    if each.connected:
        return
    for create in each.create:
        yield _Path(each, _pattern(create), True)
    for path in {each.path, each.cancel or each.path + "/cancel", *(each.path + more for more in _MORE)}:
        yield _Path(each, _pattern(path), False)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", "([^/]+)", re.escape(path)))
