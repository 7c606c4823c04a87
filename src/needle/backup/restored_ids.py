"""Whether a cluster can hold all documents of a backup as they are: under a shard key one id may be two documents, each
in a shard of its own, and inside a shard an id is one. Blocking. Memory: 8 bytes a document.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final

import msgspec
import numpy as np
import xxhash

from needle.backup.format import CollectionBackup, Manifest, Piece, PieceRef
from needle.backup.index_restoring import part_of
from needle.base.decoding import routed_metadata
from needle.base.errors import InvalidArgument
from needle.routing.strategy import ShardStrategy, routing_key
from needle.routing.topology import Topology

Read = Callable[[PieceRef], Piece]
IDS_SHOWN: Final = 5


def strategy_of(manifest: Manifest) -> ShardStrategy | None:
    """How the cluster of a backup placed its documents; None if it does not say so that it can be read."""
    try:
        return msgspec.convert(manifest.settings["strategy"], ShardStrategy)
    except (KeyError, TypeError, msgspec.ValidationError):  # it is for people to read
        return None


def each_id_once(piece: Piece) -> list[Piece]:
    """A piece in as many parts as it has documents of one id, in their order."""
    if len(set(piece.ids)) == len(piece.ids):  # as nearly all are
        return [piece]
    met, parts = Counter[str](), list[list[int]]()
    for at, name in enumerate(piece.ids):
        if met[name] == len(parts):
            parts.append([])
        parts[met[name]].append(at)
        met[name] += 1
    return [part_of(piece, rows) for rows in parts]


def check_ids(now: Topology, manifest: Manifest, read: Read) -> None:
    """Raises InvalidArgument for documents of one id that this cluster would keep in one shard, where the second would
    take the place of the first. Only a cluster with a shard key can have had them: of another one nothing is read, nor
    where the backup says that there are none."""
    strategy = strategy_of(manifest)
    if now.map is None or (strategy is not None and strategy.kind != "custom"):
        return
    for one in manifest.collections:
        twice = _twice(one, read) if one.repeats != 0 else ()
        if twice and (ids := _in_one_shard(now, one, read, twice)):
            shown, more = ", ".join(map(repr, ids[:IDS_SHOWN])), f" and {len(ids) - IDS_SHOWN} more"
            raise InvalidArgument(
                f"collection {one.spec.name} of the backup has several documents with the ids {shown}"
                f"{more if len(ids) > IDS_SHOWN else ''}, under other shard keys, and this cluster would keep them in "
                "one shard, where an id is one document. Restore into a cluster that places documents as that of the "
                "backup did, with as many shards; or delete these ids where they came from and make another backup. "
                "Nothing was changed",
                collection=one.spec.name,
                count=len(ids),
            )


def _rows(collection: CollectionBackup, read: Read) -> Iterator[tuple[str, bytes]]:
    for ref in collection.pieces:
        piece = read(ref)
        yield from zip(piece.ids, piece.metadata, strict=True)


def _twice(collection: CollectionBackup, read: Read) -> set[int]:
    """The hashes that several documents' ids have."""
    seen = array("Q", (xxhash.xxh3_64_intdigest(name.encode()) for name, _ in _rows(collection, read)))
    found = np.sort(np.frombuffer(seen, np.uint64)) if seen else np.empty(0, np.uint64)
    return {int(one) for one in found[1:][found[1:] == found[:-1]]}


def _in_one_shard(now: Topology, collection: CollectionBackup, read: Read, twice: Collection[int]) -> list[str]:
    """The ids of these hashes that several documents have which one shard would keep."""
    assert now.map is not None
    strategy, count = now.map.strategy, now.map.shard_count
    homes, met = set[tuple[str, int]](), dict[str, None]()
    for name, metadata in _rows(collection, read):
        if xxhash.xxh3_64_intdigest(name.encode()) in twice:
            said = routed_metadata(metadata) if strategy.kind == "custom" else None
            home = name, now.map.owner(routing_key(strategy, count, name, said))
            if home in homes:
                met[name] = None
            homes.add(home)
    return list(met)
