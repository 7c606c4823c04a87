"""A consistent scan against the logs of all its shards: each shard's documents are those of one index, all of them, as
they were there.

The scan says which index each shard has. The ranges that the shards owned there by their logs cover the key space once,
each index is later than all that was committed before the scan began, and the documents of all pages are what the logs
say of those ranges there: ids, versions and metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from needle.routing.ranges import KeySet
from needle.routing.shard_map import KeyRange, uncovered
from proof.checkers.replay import LogModel
from proof.checkers.violation import Violation

NAME = "consistent scans"


class PinnedSeen(msgspec.Struct, kw_only=True):
    """One scan that was read to its end. pins: (shard, index). before: by shard, what was committed when it began.
    found: (id, version, metadata) in the order of the pages."""

    label: str
    pins: Sequence[tuple[int, int]]
    before: Mapping[int, int]
    found: list[tuple[str, int, Any]]


def check_pinned(
    models: Mapping[int, LogModel],
    owned: Callable[[int, int], Sequence[KeyRange]],
    key: Callable[[str], bytes],
    seen: PinnedSeen,
) -> None:
    """Raises Violation. models: by shard, of the collection. owned: what a shard owns after an index of its log."""
    _check_pins(owned, seen)
    true: dict[str, tuple[int, Any]] = {}
    for shard, index in seen.pins:
        mine = KeySet(owned(shard, index))
        documents = models[shard].at(index)
        true.update((name, (one.version, one.metadata)) for name, one in documents.items() if key(name) in mine)
    ids = [name for name, _, _ in seen.found]
    if sorted(set(ids)) != ids:
        raise Violation(NAME, f"{seen.label}: {ids} are not in order, or one is there twice")
    found = {name: (version, metadata) for name, version, metadata in seen.found}
    for name in sorted(found.keys() | true.keys()):
        if found.get(name) != true.get(name):
            raise Violation(
                NAME,
                f"{seen.label} at {list(seen.pins)}: {name} is {found.get(name)}, the logs: {true.get(name)}",
                name,
            )


def _check_pins(owned: Callable[[int, int], Sequence[KeyRange]], seen: PinnedSeen) -> None:
    spans = sorted(span for shard, index in seen.pins for span in owned(shard, index))
    if uncovered(spans) or any(one[1] is None or one[1] > other[0] for one, other in pairwise(spans)):
        raise Violation(NAME, f"{seen.label}: {list(seen.pins)} own {spans}, which is not every key once")
    for shard, index in seen.pins:
        if index <= seen.before.get(shard, 0):
            raise Violation(
                NAME, f"{seen.label}: shard {shard} is read at {index}; {seen.before[shard]} was committed before"
            )
