"""A copy of a collection, as a backup or an archive holds it, against the logs of all its shards: nothing lost, doubled
or invented.

The copy says at which index of each shard's log it is. A document belongs to the shard that owned its key there; its
id, vector, metadata and instant are what that shard's log says at that index. An archive is cut by clocks, so a range
may have been on its way: given up by one shard, and not taken yet by the other, or both, if their clocks differ. Then
the document is as one of these shards had it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from needle.routing.ranges import KeySet
from needle.routing.shard_map import KeyRange
from proof.checkers.replay import LogModel, ModelDocument
from proof.checkers.violation import Violation

NAME = "copies"


class Copied(NamedTuple):
    """A document of a copy. vector: float32. expires: microseconds since 1970, 0 for never."""

    id: str
    vector: Any
    metadata: Any
    expires: int


class Copy(msgspec.Struct, kw_only=True):
    """cuts: by shard, the index of its log. torn: a range may be on its way there."""

    label: str
    cuts: Mapping[int, int]
    documents: list[Copied]
    torn: bool = False


class Logs(NamedTuple):
    """What there is to compare with. models: by shard, of the collection. key: of a document. owned: what a shard owns
    after an index of its log. last_owned: the last index, up to another one, at which a shard owned a document, if
    there is one."""

    models: Mapping[int, LogModel]
    key: Callable[[str], bytes]
    owned: Callable[[int, int], Sequence[KeyRange]]
    last_owned: Callable[[int, str, int], int | None]


def check_copy(logs: Logs, copy: Copy, about: Callable[[str], bool] = lambda _: True) -> None:
    """Raises Violation. about: which documents are looked at."""
    found: dict[str, Copied] = {}
    for one in copy.documents:
        if one.id in found:
            raise Violation(NAME, f"{copy.label}: {one.id} is there twice", one.id)
        found[one.id] = one
    owned = {shard: KeySet(logs.owned(shard, index)) for shard, index in copy.cuts.items()}
    states = {shard: logs.models[shard].at(index) for shard, index in copy.cuts.items()}
    for name in sorted(filter(about, found.keys() | _ids(logs.models.values()))):
        key = logs.key(name)
        owners = [shard for shard in copy.cuts if key in owned[shard]]
        if len(owners) != 1 and not copy.torn:
            raise Violation(NAME, f"{copy.label} at {dict(copy.cuts)}: {name} is owned by shards {owners}", name)
        may = [states[shard].get(name) for shard in owners] or list(_before(logs, copy, name))
        here = found.get(name)
        if not any(is_same(here, one) for one in may):
            raise Violation(
                NAME, f"{copy.label} at {dict(copy.cuts)}: {name} is {_told(here)}, the logs: {_all(may)}", name
            )


def _ids(models: Iterable[LogModel]) -> set[str]:
    return {name for model in models for name in model.keys()}  # noqa: SIM118  # it is no dict


def _before(logs: Logs, copy: Copy, name: str) -> Iterator[ModelDocument | None]:
    """What shards had of it that gave its key up, and none has taken it."""
    for shard, index in copy.cuts.items():
        last = logs.last_owned(shard, name, index)
        if last is not None:
            yield logs.models[shard].at(last).get(name)


def is_same(here: Copied | None, one: ModelDocument | None) -> bool:
    """Whether a copy's document is that of a log; None is that there is none."""
    if here is None or one is None:
        return here is None and one is None
    same = (here.metadata, here.expires) == (one.metadata, one.expires)
    return same and bool(np.array_equal(here.vector, one.vector))


def _told(one: Copied | ModelDocument | None) -> str:
    return "not there" if one is None else f"{one.metadata} {np.asarray(one.vector).tolist()} until {one.expires}"


def _all(may: list[ModelDocument | None]) -> str:
    return " or ".join(map(_told, may)) or "of nobody"
