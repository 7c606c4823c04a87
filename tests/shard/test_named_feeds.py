"""Change feeds with named vectors in one replica: each change comes with what the document had then (docs/adr/0118)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from needle.base.config import Limits
from needle.base.errors import CollectionNotFound
from needle.protocol.change_calls import Near
from needle.protocol.commands import Change, Delete, DropCollection, Patch, UpdateVectors
from needle.protocol.move_commands import Forget, Freeze, PrepareMove, Release
from needle.routing.strategy import RANGE
from needle.shard.documents.records import row_id
from needle.shard.documents.writer import Doomed
from needle.shard.effects import Position
from needle.shard.feeding import Fed, Told, Wanted, read_changes
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put
from shard.test_named_vectors import MOVED, THREE, TITLE, Shard, apply, made, many, stored, title

START = Position(1)
ROOM = 32 << 20


def page(replica: Replica, position: Position = START, limit: int = 100, **kw: Any) -> Fed | None:
    wanted = Wanted("c", position, limit, kw.pop("with_vectors", False), named=kw.pop("named", (TITLE,)), **kw)
    found: Fed | None = replica.look(read_changes, replica.effects, wanted, Limits())
    return found


def vector(told: Told) -> list[float] | None:
    return np.frombuffer(told.named[TITLE], "<f4").tolist() if TITLE in told.named else None


def all_told(replica: Replica, limit: int) -> list[Told]:
    position, found = START, list[Told]()
    while True:
        part = page(replica, position, limit)
        assert part is not None
        found += part.told
        if not part.told and not part.more:
            return found
        position = part.reached


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_each_change_has_the_vector_of_its_moment_also_when_it_is_read_late(tmp_path: Path, limit: int) -> None:
    """Rows that died meanwhile are purged, but for those that a feed may have to read."""
    log, replica = Log(), open_replica(tmp_path, feed_rows_bytes=ROOM)
    made(log, replica)
    many(log, np.random.default_rng(11))
    then: dict[tuple[str, int], list[float] | None] = {}
    names = [f"d{at}" for at in range(30)]
    for at, entry in enumerate(log.entries[2:]):
        replica.apply([entry])
        there = stored(replica, *names)
        then.update({(one.id, one.version): there.get(one.id) for one in replica.get("c", names, False)})
        if at % 20 == 0:
            replica.checkpoint()
            while replica.tidy(all_of_it=True):
                pass
    told = [one for one in all_told(replica, limit) if one.kind != "delete"]
    assert len(told) > 150
    assert {(one.document.id, one.document.version): vector(one) for one in told} == then
    assert sum(value is None for value in then.values()) > 20 < sum(value is not None for value in then.values())


def test_a_change_by_name_is_a_change_of_its_document(tmp_path: Path) -> None:
    log, replica = Log(), open_replica(tmp_path)
    made(log, replica)
    apply(log, replica, put(["a", "b"], THREE[:2], [{"n": 1}, {"n": 2}], named=title([1], [5, 5])))
    apply(log, replica, UpdateVectors("c", ["a"], floats([4, 4]), name=TITLE))
    apply(log, replica, Patch("c", ["b"], Change(set=[("n", b"3")])), put(["b"], THREE[2:]), Delete("c", ["a"]))
    found = page(replica, with_vectors=True)
    assert found is not None
    assert [(one.kind, one.document.id, vector(one), one.document.vector) for one in found.told] == [
        ("insert", "a", None, floats(THREE[0])), ("insert", "b", [5, 5], floats(THREE[1])),
        ("update", "a", [4, 4], floats(THREE[0])), ("update", "b", [5, 5], floats(THREE[1])),
        ("update", "b", None, floats(THREE[2])), ("delete", "a", None, b""),
    ]  # fmt: skip
    bare = page(replica, named=())
    assert bare is not None and [one.document.id for one in bare.told] == ["a", "b", "a", "b", "b", "a"]
    assert not any(one.named for one in bare.told)


def test_who_reads_late_with_a_filter_needs_no_rows_of_what_it_leaves_out(tmp_path: Path) -> None:
    """Documents that are for others, had a vector and were written again since: nothing of them is to be told."""
    log, replica = Log(), open_replica(tmp_path)
    made(log, replica)
    for n in (1, 2):
        apply(log, replica, put(["a", "b"], THREE[:2], [{"n": n}, {"n": 9}], named=title([0, 1], [5, 5], [6, 6])))
    found = page(replica, filter=b'{"n":{"$lt":9}}')
    assert found is not None
    assert [(one.kind, one.document.id, vector(one)) for one in found.told] == [
        ("insert", "a", [5, 5]), ("update", "a", [5, 5]),
    ]  # fmt: skip


def test_near_by_name_is_who_has_it_and_is_near(tmp_path: Path) -> None:
    log, replica = Log(), open_replica(tmp_path)
    made(log, replica)
    apply(log, replica, put(["a", "b", "x"], THREE, [{}, {}, {}], named=title([0, 2], [0, 0], [9, 9])))
    apply(log, replica, UpdateVectors("c", ["b"], floats([0, 0.5]), name=TITLE))
    apply(log, replica, UpdateVectors("c", ["x"], floats([0.5, 0]), name=TITLE))
    apply(log, replica, put(["a"], THREE[:1]), UpdateVectors("c", ["b"], floats([7, 7]), name=TITLE))
    near = Near(floats([0, 0]), max_distance=1.0, vector_name=TITLE)
    found = page(replica, near=near, named=(), with_vectors=True)
    assert found is not None
    assert [(one.kind, one.document.id, one.distance) for one in found.told] == [
        ("insert", "a", 0.0), ("insert", "b", 0.5), ("insert", "x", 0.5), ("delete", "a", 0.0), ("delete", "b", 0.0),
    ]  # fmt: skip
    assert found.told[1].document.vector == floats([0, 0.5])


def test_a_name_that_was_dropped_ends_who_tells_it_and_nobody_else(tmp_path: Path) -> None:
    log, replica = Log(), open_replica(tmp_path)
    made(log, replica)
    apply(log, replica, put(["a"], THREE[:1], named=title([0], [1, 1])), DropCollection(TITLE))
    with pytest.raises(CollectionNotFound) as error:
        page(replica)
    assert "vector" in error.value.details
    found = page(replica, named=())
    assert found is not None and [one.document.id for one in found.told] == ["a"]


def test_what_a_move_took_away_is_not_told_without_its_vector(tmp_path: Path) -> None:
    """The rows that a move lets die may be purged. Where the documents' rows are there and those of the name are not,
    nobody may be told that a document had no such vector."""
    source = Shard(tmp_path, True)
    whole = page(source.replica)
    assert whole is not None and {one.document.id for one in whole.told if vector(one)} >= {"m1", "m3"}
    source.done(PrepareMove(9, 9, False, MOVED, [(b"", None)], RANGE, 2))
    source.done(Freeze(9), Release(9))
    while source.done(Forget(9, 100)).count:
        pass
    assert page(source.replica) is not None
    view, writer = source.replica.view, source.replica._store.writer
    title_id = view.collections[TITLE].record.id
    doomed = writer.doomed(0, 1000)
    mine = Doomed([one for one in doomed.rows if one[0] >= row_id(title_id, 0)], [])
    assert mine
    while writer.purge(mine, 1000):
        pass
    assert page(source.replica, named=()) is not None  # the documents are there
    assert page(source.replica) is None


def test_what_a_move_took_away_is_told_with_its_vector_to_who_comes_back_later(tmp_path: Path) -> None:
    source = Shard(tmp_path, True)
    source.done(Patch("c", ["m1"], Change(set=[("n", b"7")])))
    whole = page(source.replica, with_vectors=True)
    assert whole is not None
    source.done(PrepareMove(9, 9, False, MOVED, [(b"", None)], RANGE, 2))
    source.done(Freeze(9), Release(9))
    while source.done(Forget(9, 3)).count:
        pass
    source.replica._upkeep._feed_rows_bytes = ROOM
    while source.replica.tidy(all_of_it=True):
        pass
    late = page(source.replica, with_vectors=True)
    assert late is not None and late.told == whole.told
    assert {one.document.id for one in late.told if vector(one)} >= {"m1", "m3"}
