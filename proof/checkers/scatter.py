"""A search of a sharded collection against the logs of all its shards, merged.

Each shard answers from one prefix of its own log: the one the answer names, or, where a client is not told, some prefix
between what had committed when the search began and when it ended. Of that prefix a shard's hits must be all that is
nearer than the last hit of the merged answer (exact mode), or at least documents of it with their distances. So an
exact strong search misses nothing that was acknowledged before it began, and returns nothing twice and nothing that
was deleted before. Of a search by groups the same holds for each group; of hits that are chosen, or put in order,
shaping.py says the rest. A shard may be missing only if the caller asked for partial answers, and is named then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np

from needle.routing.shard_map import KeyRange, ShardMap, uncovered
from proof.checkers.replay import NAME, TOLERANCE, LogModel, ModelDocument, distances
from proof.checkers.shaping import GROUPED_BY, PLAIN, Shaped, Shaping, check_shaped
from proof.checkers.violation import Violation


class ScatterSeen(msgspec.Struct, kw_only=True):
    """One answered search of all shards. hits: (id, version, distance). applied: by shard the index that it answered
    from, None if the client is not told. required, latest: by shard, which indices it may have answered from. partial:
    whether the caller allows missing shards. gaps: of the key space, as the answer names them. epoch: of the map, 0 if
    the client is not told. shaping: which of the nearest are asked for, and in which order. groups: the value of each
    hit, where they are grouped."""

    mode: str
    vector: Any
    k: int
    keep: Callable[[Any], bool] | None
    exact: bool
    hits: list[tuple[str, int, float]]
    applied: dict[int, int] | None
    required: dict[int, int]
    latest: dict[int, int]
    partial: bool = False
    missing: tuple[int, ...] = ()
    gaps: Sequence[KeyRange] = ()
    epoch: int = 0
    label: str
    shaping: Shaping = PLAIN
    groups: Sequence[Any] = ()


class Difference(NamedTuple):
    """Why hits are not those of a state. key: of a document that shows it, "" if there is none."""

    text: str
    key: str = ""


Owned = Callable[[int, int], Sequence[KeyRange]]
"""What a shard owns after an index of its log."""


def check_by_maps(
    models: Mapping[int, LogModel],
    maps: Mapping[int, ShardMap],
    owned: Owned,
    key: Callable[[str], bytes],
    seen: ScatterSeen,
    metric: str,
) -> None:
    """As `check_scatter`, while ranges move: by the map of the answer's epoch, or by any if the client is not told."""
    if seen.partial and not (seen.hits or seen.applied or uncovered(seen.gaps)):
        return  # nobody answered in time, and it says so: its map is the one that it asked by, of whatever epoch
    if seen.epoch and seen.epoch not in maps:
        raise Violation("coverage", f"{seen.label} was answered by a map of epoch {seen.epoch}, which never was")
    problem: Violation | None = None
    for shard_map in [maps[seen.epoch]] if seen.epoch else list(maps.values())[::-1]:

        def owner(name: str, by: ShardMap = shard_map) -> int:
            return by.owner(key(name))

        try:
            check_scatter(models, shard_map, owner, seen, metric, owned)
        except Violation as violation:
            problem = problem or violation
        else:
            return
    if problem is not None:
        raise problem


def check_scatter(
    models: Mapping[int, LogModel],
    shard_map: ShardMap,
    owner: Callable[[str], int],
    seen: ScatterSeen,
    metric: str,
    owned: Owned | None = None,
) -> None:
    """Raises Violation when an answer is not that of the shards' logs. models: by shard, of the collection. owned: a
    shard must have answered from a state in which it owns what the map says."""
    _check_coverage(shard_map, seen)
    check_shape(seen)
    cutoff = cutoff_of(seen)
    by_shard: dict[int, list[tuple[str, int, float]]] = {}
    for hit in seen.hits:
        by_shard.setdefault(owner(hit[0]), []).append(hit)
    for shard in sorted(set(shard_map.owners)):
        if shard in seen.missing:
            if by_shard.get(shard):
                raise Violation(
                    NAME, f"{seen.label}: shard {shard} is named as missing, and has hits {by_shard[shard]}"
                )
            continue
        ranges = shard_map.ranges(shard)

        def fits(index: int, shard: int = shard, ranges: Sequence[KeyRange] = ranges) -> bool:
            return owned is None or list(owned(shard, index)) == list(ranges)

        problem = _explain(models[shard], shard, by_shard.get(shard, []), cutoff, seen, metric, fits)
        if problem:
            raise Violation(NAME, f"{seen.label} ({seen.mode}): shard {shard} {problem}")
    check_choice(models, models, owner, seen, metric)


def check_choice(
    models: Mapping[int, LogModel],
    states: Mapping[int, LogModel],
    owner: Callable[[str], int],
    seen: ScatterSeen,
    metric: str,
    doubts: int = 0,
) -> None:
    """Whether hits that are in the logs are those to choose, in their order. states: by shard, what surely was there at
    the index that the shard was searched at. doubts: so many documents more may have been. Raises Violation."""
    if seen.shaping.by_distance():
        return
    others: dict[str, ModelDocument] | None = None
    if seen.exact and seen.applied is not None:
        others = {}
        for shard, index in seen.applied.items():
            others |= _documents(states[shard], index, seen)
    shaped = Shaped(
        label=f"{seen.label} ({seen.mode})",
        shaping=seen.shaping,
        vector=seen.vector,
        k=seen.k,
        metric=metric,
        hits=seen.hits,
        documents=[_of_version(models[owner(key)], key, version) for key, version, _ in seen.hits],
        others=others,
        doubts=doubts,
    )
    check_shaped(shaped)


def _of_version(model: LogModel, key: str, version: int) -> ModelDocument:
    return next(one for _, one in model.history(key) if one is not None and one.version == version)


def _check_coverage(shard_map: ShardMap, seen: ScatterSeen) -> None:
    name = "coverage"
    if seen.missing and not seen.partial:
        raise Violation(name, f"{seen.label} left out shards {seen.missing} without being asked to")
    answered = sorted(set(shard_map.owners) - set(seen.missing))
    if seen.applied is not None and sorted(seen.applied) != answered:
        raise Violation(name, f"{seen.label}: shards {sorted(seen.applied)} answered, {answered} should have")
    if not seen.partial:
        return
    true = uncovered([span for shard in answered for span in shard_map.ranges(shard)])
    if uncovered(seen.gaps) != uncovered(true):
        raise Violation(name, f"{seen.label} names the gaps {list(seen.gaps)}; truly {true}")


def check_shape(seen: ScatterSeen) -> None:
    """What the hits show by themselves. Raises Violation."""
    names = [key for key, _, _ in seen.hits]
    if seen.shaping.of_each:
        _check_groups(seen)
        if len(set(names)) != len(names):
            raise Violation(NAME, f"{seen.label} got {names}")
        return
    if len(names) > seen.k or len(set(names)) != len(names):
        raise Violation(NAME, f"{seen.label} asked for {seen.k} and got {names}")
    far = [distance for _, _, distance in seen.hits]
    if seen.shaping.by_distance() and any(after < before for before, after in pairwise(far)):
        raise Violation(NAME, f"{seen.label}: hits are not in order of distance: {far}")


def _check_groups(seen: ScatterSeen) -> None:
    groups = [(value, [hit[2] for hit in hits]) for value, hits in _groups(seen)]
    if len(dict(groups)) != len(groups) or any(len(far) > seen.shaping.of_each for _, far in groups):
        raise Violation(
            NAME, f"{seen.label}: of each {seen.shaping.of_each} are wanted, and there are {list(seen.groups)}"
        )
    firsts = [far[0] for _, far in groups]
    for far in (firsts, *(far for _, far in groups)):
        if any(after < before for before, after in pairwise(far)):
            raise Violation(NAME, f"{seen.label}: groups are not in order of distance: {groups}")


def _groups(seen: ScatterSeen) -> list[tuple[Any, list[tuple[str, int, float]]]]:
    if len(seen.groups) != len(seen.hits):
        raise Violation(NAME, f"{seen.label}: {len(seen.hits)} hits are in {len(seen.groups)} groups")
    by_value = groupby(zip(seen.groups, seen.hits, strict=True), key=lambda pair: pair[0])
    return [(value, [hit for _, hit in pairs]) for value, pairs in by_value]


def cutoff_of(seen: ScatterSeen) -> Callable[[Any], float]:
    """How far a document of this metadata may be and must be among the hits."""
    if not seen.shaping.of_each:
        far = [distance for _, _, distance in seen.hits]
        # The nearest is the first that is chosen; which others are, shaping.py knows.
        end = max if seen.shaping.diversify is None else min
        last = end(far) if len(far) == seen.k else np.inf
        return lambda _: last
    full = {value: hits[-1][2] for value, hits in _groups(seen) if len(hits) == seen.shaping.of_each}
    return lambda metadata: full.get(metadata[GROUPED_BY], np.inf)


def _explain(
    model: LogModel,
    shard: int,
    hits: list[tuple[str, int, float]],
    cutoff: Callable[[Any], float],
    seen: ScatterSeen,
    metric: str,
    fits: Callable[[int], bool],
) -> str:
    """Why no state of the shard gives these hits; "" if one does."""

    def at(index: int) -> str:
        found = differs(model, index, hits, cutoff, seen, metric)
        return f"at {index}: {found.text}" if found else ""

    if shard not in seen.latest:
        return "was not there yet"
    first, last = seen.required.get(shard, 0), seen.latest[shard]  # it may have come meanwhile
    if seen.applied is not None:
        if seen.applied[shard] < first:
            return f"ran at {seen.applied[shard]}, before {first} which it had to see"
        if not fits(seen.applied[shard]):
            return f"ran at {seen.applied[shard]}, where it does not own what the map says"
        return at(seen.applied[shard])
    problem = f"never owned what the map says between {first} and {last}"
    for index in model.states(first, last):
        if fits(index):
            problem = at(index)
            if not problem:
                break
    return problem


def _documents(model: LogModel, index: int, seen: ScatterSeen) -> dict[str, ModelDocument]:
    """Those that the filter lets through."""
    return {key: doc for key, doc in model.at(index).items() if seen.keep is None or seen.keep(doc.metadata)}


def differs(
    model: LogModel,
    index: int,
    hits: list[tuple[str, int, float]],
    cutoff: Callable[[Any], float],
    seen: ScatterSeen,
    metric: str,
) -> Difference | None:
    """Why these hits are not what one shard had at an index; None if they are. cutoff: see `cutoff_of`."""
    documents = _documents(model, index, seen)
    order = list(documents)
    vectors = np.array([documents[key].vector for key in order], np.float64)
    true = dict(zip(order, distances(seen.vector, vectors, metric), strict=True)) if order else {}
    for key, version, distance in hits:
        document = documents.get(key)
        if document is None or document.version != version:
            actual = document.version if document else "absent or filtered out"
            return Difference(f"hit {key} version {version}, the log: {actual}", key)
        if abs(true[key] - distance) > TOLERANCE * max(1.0, abs(distance)):
            return Difference(f"{key} at {distance}, truly {true[key]:.6f}", key)
    told = dict(zip([key for key, _, _ in seen.hits], seen.groups, strict=False))
    wrong = [key for key, _, _ in hits if seen.shaping.of_each and documents[key].metadata[GROUPED_BY] != told[key]]
    if wrong:
        return Difference(f"{wrong} are in groups of other values", wrong[0])
    if seen.exact:
        found = {key for key, _, _ in hits}
        ends = {key: cutoff(documents[key].metadata) - TOLERANCE * max(1.0, abs(far)) for key, far in true.items()}
        lost = [key for key, far in true.items() if key not in found and far < ends[key]]
        if lost:
            far = [round(float(true[key]), 6) for key in lost]
            return Difference(f"{lost} are missing, their distances {far}", lost[0])
    return None
