"""A search by groups over all shards: the k groups with the nearest documents, and of each its nearest of all shards.

Invariant: an answer is made of one look at each shard. Where that does not prove that it is right, because a shard did
not say what it has of a group, all are asked again, for that group by name. So once, and once more if a group has
documents in several shards; more often only while documents change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from needle.base.filters.values import Mark, Value, marked, rank
from needle.base.model import HitBatch, SearchRequest
from needle.client.router.fan_out import Answers
from needle.client.router.merge import Merged, chosen, indices, of_shard, too_old
from needle.protocol import calls

Row = tuple[float, str, int, int]
"""Of a hit: its distance and id, by which hits are ordered; which batch, and its place in that."""


def merged_groups(answers: Answers, request: SearchRequest) -> Merged:
    """Each shard has answered alone. Raises ClusterTooOld for the answer of a node that knows no groups."""
    by_shard = {shard: of_shard(shard, calls.decode(body, HitBatch)) for shard, body in answers.by_shard.items()}
    for shard, batch in by_shard.items():
        if len(batch.groups) != len(batch.ids):
            raise too_old(shard, "group_by")
    batches = list(by_shard.values())
    held = [_rows(which, batch) for which, batch in enumerate(batches)]
    values = {marked(value): value for batch in batches for value in batch.groups}
    groups: dict[Mark, list[Row]] = {}
    for of_batch in held:
        for mark, rows in of_batch.items():
            groups.setdefault(mark, []).extend(rows)
    best = sorted(groups, key=lambda mark: (min(groups[mark])[:2], rank(values[mark])))[: request.k]
    whole = {mark: sorted(groups[mark])[: request.group_size] for mark in best}
    asked = {marked(value) for value in _named(request)}
    told = [_told(of_batch, request.k) for of_batch in held]
    lacking = [mark for mark in best if mark not in asked and not _proven(mark, whole[mark], told, request.group_size)]
    shown = [(mark, row) for mark in best[request.offset :] for row in whole[mark]]
    merged = chosen(batches, [(which, at) for _, (_, _, which, at) in shown])
    merged = msgspec.structs.replace(merged, groups=[values[mark] for mark, _ in shown])
    return Merged(indices(by_shard), merged, [values[mark] for mark in best] if lacking else [])


def asking(request: SearchRequest, groups: Sequence[Value]) -> SearchRequest:
    """The same search, and these groups by name."""
    return msgspec.structs.replace(request, groups=msgspec.json.encode(groups))


def _named(request: SearchRequest) -> list[Value]:
    found: list[Value] = msgspec.json.decode(request.groups) if request.groups else []
    return found


def _rows(which: int, batch: HitBatch) -> dict[Mark, list[Row]]:
    groups: dict[Mark, list[Row]] = {}
    for at, (distance, name, value) in enumerate(zip(batch.distances, batch.ids, batch.groups, strict=True)):
        groups.setdefault(marked(value), []).append((distance, name, which, at))
    return groups


class _Told(NamedTuple):
    """Of a shard. last: the distance and id of the first hit of its k-th group, None if it has told of all it has. By
    the mark of each of its groups the same of that one's first."""

    firsts: dict[Mark, tuple[float, str]]
    last: tuple[float, str] | None


def _told(groups: dict[Mark, list[Row]], k: int) -> _Told:
    """Once for each shard, and not for each of its groups: there may be ten thousand."""
    firsts = {mark: min(rows)[:2] for mark, rows in groups.items()}
    return _Told(firsts, sorted(firsts.values())[k - 1] if len(firsts) >= k else None)


def _proven(mark: Mark, rows: list[Row], told: Sequence[_Told], size: int) -> bool:
    """Whether no shard can have a document that belongs among these of a group. A shard has told of the k groups with
    its nearest documents; what it has of another one is no nearer than each of those groups' first."""
    for firsts, last in told:
        if last is None or (mark in firsts and firsts[mark] <= last):
            continue
        if len(rows) < size or rows[-1][:2] > last:
            return False
    return True
