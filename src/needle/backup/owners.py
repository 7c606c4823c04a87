"""Who owns which keys at a place of all shards' logs: each key exactly one shard, or it is refused. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from needle.backup.replaying import Replayed
from needle.base.errors import StorageError
from needle.routing.ranges import difference, overlap, union
from needle.routing.shard_map import KeyRange, ShardMap, uncovered

MOVES_TOLD: Final = 20


def owners(found: Mapping[int, Replayed], shard_map: ShardMap) -> dict[int, list[KeyRange]]:
    """Which keys each shard is asked for. shard_map: of the catalog then, for shards that never took part in a move.
    Raises StorageError if a key would be nobody's, or of two."""
    owned = {
        shard: list(one.holdings.owned) if one.holdings is not None else shard_map.ranges(shard)
        for shard, one in found.items()
    }
    taken = {
        transfer.move
        for one in found.values() if one.holdings is not None
        for transfer in one.holdings.transfers if transfer.incoming and transfer.phase == "over"
    }  # fmt: skip
    awaited = {
        transfer.move
        for one in found.values() if one.holdings is not None
        for transfer in one.holdings.transfers if transfer.incoming
    }  # fmt: skip
    for shard, one in found.items():
        for transfer in one.holdings.transfers if one.holdings is not None else ():
            if transfer.incoming:
                continue
            if transfer.phase == "released" and transfer.move not in taken | one.forgotten:
                if transfer.move not in awaited:  # it took part before: what it wrote since would be missing
                    raise StorageError(
                        f"at this place shard {shard} had given a range of keys to a shard of which nothing is archived"
                        " there: it came and went while nothing was archived, or its leader's clock differs. Ask for "
                        "an instant before that, or after it"
                    )
                owned[shard] = union(owned[shard], transfer.ranges)
            elif transfer.phase in ("open", "frozen") and transfer.move in taken:
                owned[shard] = difference(owned[shard], list(transfer.ranges))
    shards = sorted(owned)
    twice = any(overlap(owned[a], owned[b]) for at, a in enumerate(shards) for b in shards[at + 1 :])
    if twice or uncovered(span for ranges in owned.values() for span in ranges):
        raise StorageError(
            "at this place a range of keys was on its way from one shard to another, and the clocks of their leaders "
            "disagree about when, or a shard that had it is not archived there: ask for an instant some seconds "
            f"earlier or later, before or after these moves ({_moves(found)})"
        )
    return owned


def _moves(found: Mapping[int, Replayed]) -> str:
    """How far the shards' logs are with moves, in words."""
    told = [
        f"shard {shard}, index {one.index}: {transfer.move} {'in' if transfer.incoming else 'out'}, {transfer.phase}"
        for shard, one in sorted(found.items()) if one.holdings is not None
        for transfer in one.holdings.transfers
    ]  # fmt: skip
    return "; ".join(told[:MOVES_TOLD]) or "none is known"
