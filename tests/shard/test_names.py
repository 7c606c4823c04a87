"""Ids and versions that are kept in memory: they are what is stored, within a bound, and spare SQLite."""

from __future__ import annotations

import random
from typing import Any

import pytest

from needle.base.model import SearchRequest
from needle.protocol.commands import CreateCollection, Delete
from needle.shard.documents.names import BLOCK, BLOCK_BYTES, IDLE_LOOKS, Names
from shard.replica_util import Log, floats, open_replica, put, spec


class Stored:
    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], tuple[str, int]] = {}
        self.reads = 0

    def between(self, collection_id: int, first: int, end: int) -> list[tuple[int, str, int]]:
        self.reads += 1
        keys = [(collection_id, at) for at in range(first, end)]
        return [(key[1], *self.rows[key]) for key in keys if key in self.rows]


def look(names: Names, stored: Stored, collection_id: int, ordinals: list[int]) -> int:
    """How many were known, all of which are what is stored."""
    found = names.find(collection_id, ordinals)
    for ordinal, document in found.items():
        assert (document.id, document.version) == stored.rows[collection_id, ordinal] and document.ordinal == ordinal
    names.missed(collection_id, [one for one in ordinals if one not in found])
    return len(found)


@pytest.mark.parametrize("blocks", [0, 1, 3, 100])
def test_what_is_kept_is_what_is_stored_while_rows_come_and_go(blocks: int) -> None:
    rng, stored = random.Random(blocks), Stored()
    room = blocks * (BLOCK_BYTES + 8 * BLOCK)
    names, ends, known = Names(stored.between, room), {1: 0, 2: 0}, 0
    for _ in range(2000):
        collection_id = rng.choice([1, 2])
        if rng.random() < 0.1:
            for _ in range(rng.randint(1, 90)):
                at = ends[collection_id]
                stored.rows[collection_id, at] = ("é" * rng.randrange(3) + str(at), rng.randrange(1 << 50))
                ends[collection_id] += 1
        mine = [at for one, at in stored.rows if one == collection_id]
        if mine and rng.random() < 0.02:
            del stored.rows[collection_id, rng.choice(mine)]
            mine = [at for one, at in stored.rows if one == collection_id]
        if mine:
            known += look(names, stored, collection_id, rng.sample(mine, min(5, len(mine))))
        assert names.used <= room
    assert (known > 0) == (blocks > 0)


def test_full_memory_is_not_filled_again_and_again_and_what_is_idle_makes_place() -> None:
    stored = Stored()
    stored.rows = {(1, at): ("x", 1) for at in range(50 * BLOCK)}
    names = Names(stored.between, 4 * (BLOCK_BYTES + BLOCK))
    for turn in range(20):
        for block in range(50):
            look(names, stored, 1, [block * BLOCK + turn])
    assert stored.reads < 10
    for _ in range(IDLE_LOOKS + 2):
        names.find(1, [49 * BLOCK])
    for _ in range(3):
        look(names, stored, 1, [49 * BLOCK])
    assert look(names, stored, 1, [49 * BLOCK]) == 1


def test_hits_of_which_only_ids_are_asked_for_are_found_without_sqlite(tmp_path: Any) -> None:
    log, replica = Log(), open_replica(tmp_path)
    ids = [f"d{n}" for n in range(40)]
    replica.apply(log.add(CreateCollection(spec()), put(ids, [[float(n), 0.0, 0.0] for n in range(40)])))
    replica.save()

    def search(**asked: Any) -> list[str]:
        asked = {"with_metadata": False, **asked}
        hits = replica.search(SearchRequest(collection="c", vector=floats([3.0, 0.0, 0.0]), k=5, **asked))
        assert set(hits.versions) <= {2, 4}
        return hits.ids

    wanted = ["d3", "d2", "d4", "d1", "d5"]
    assert [search() for _ in range(4)] == [wanted] * 4
    store = replica.view.store
    read = store._by_ordinal
    store._by_ordinal = None  # type: ignore[method-assign, assignment]
    assert search() == wanted
    replica.apply(log.add(Delete("c", ["d3"])))
    assert search() != wanted
    with pytest.raises(TypeError):
        search(with_metadata=True)
    store._by_ordinal = read  # type: ignore[method-assign]
    replica.apply(log.add(put(["d2"], [[3.0, 0.0, 0.0]])))
    assert search()[0] == "d2" and search(with_metadata=True) == search()
    replica.close()
