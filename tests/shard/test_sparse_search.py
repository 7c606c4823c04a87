"""Searches by sparse vectors in one replica: what narrows them, who may see what, and what stays after a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from needle.base.errors import Forbidden, InvalidArgument
from needle.base.model import HitBatch, SearchRequest
from needle.base.sparse import query_of
from needle.protocol.commands import CreateCollection, Delete
from needle.protocol.move_commands import Freeze, Own, Release
from needle.shard.state_machine import Replica
from shard.replica_util import Log, open_replica, put, spec
from shard.test_moving import ALL, Shard, prepare

QUERY = query_of({"s": {"indices": [1, 2], "values": [1, 2]}})


def filled(directory: Path) -> tuple[Replica, Log]:
    replica, log = open_replica(directory), Log()
    replica.apply(log.add(CreateCollection(spec())))
    ids = [f"d{at}" for at in range(9, -1, -1)]
    rows = [{"s": {"indices": [1, 9], "values": [1, 5]}, "n": int(name[1:]) % 2} for name in ids]
    replica.apply(log.add(put(ids, [[1.0, 2.0, 3.0]] * 10, rows)))
    best: dict[str, Any] = {"s": {"indices": [2], "values": [3]}, "n": 0}
    replica.apply(log.add(put(["best", "gone"], [[1.0, 2.0, 3.0]] * 2, [best, best])))
    replica.apply(log.add(put(["none", "odd"], [[1.0, 2.0, 3.0]] * 2, [{"n": 0}, {"s": 3}])))
    replica.apply(log.add(Delete("c", ["gone"])))
    return replica, log


def asked(replica: Replica, **fields: Any) -> HitBatch:
    usual: dict[str, Any] = {"k": 4, "with_metadata": False, "sparse": QUERY}
    request = SearchRequest(collection="c", vector=b"", **usual | fields)
    return replica.reads().scored(request, None, lambda: None, None, lambda: 0.0)


def test_hits_are_the_best_and_of_those_with_one_score_the_first_ids(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path)
    found = asked(replica)
    assert found.ids == ["best", "d0", "d1", "d2"] and found.distances == [-6.0, -1.0, -1.0, -1.0]
    assert len(asked(replica, k=100).ids) == 11
    assert asked(replica, filter=b'{"n": 1}').ids == ["d1", "d3", "d5", "d7"]
    assert asked(replica, min_score=2.0).ids == ["best"]
    assert asked(replica, k=1, with_metadata=True, fields=("n",)).metadata == [b'{"n":0}']
    for wrong in ({"k": 0}, {"k": 100_000}, {"filter": b'{"n": {"$no": 1}}'}):
        with pytest.raises(InvalidArgument):
            asked(replica, **wrong)
    for name in ("", "a.b", "x" * 65, "x" * 10_000_000):  # the index of a field is kept by its name
        with pytest.raises(InvalidArgument, match="64 letters"):
            asked(replica, sparse=msgspec.structs.replace(QUERY, name=name))
    assert set(replica.reads().view().collections["c"].payload.indexed()) <= {"s", "n"}
    replica.close()


def test_a_key_that_is_bound_to_a_filter_sees_its_own_documents_only(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path)
    assert asked(replica, bound=b'{"n": 1}').ids == ["d1", "d3", "d5", "d7"]
    assert asked(replica, bound=b'{"n": 1}', filter=b'{"n": 0}').ids == []
    with pytest.raises(Forbidden):
        asked(replica, bound=b'{"n": 1}', explain=True)
    replica.close()


def test_what_is_written_later_and_after_a_restart_is_found(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    replica.held.declare_fields({}, {}, {"c": ["s"]})
    while replica.field_indexes.waits:
        replica.field_indexes.work()
    assert set(replica.reads().view().collections["c"].payload.declared()) == {"s (sparse-1)"}
    later = {"s": {"indices": [2], "values": [4]}}
    replica.apply(log.add(put(["later"], [[1.0, 2.0, 3.0]], [later])))
    assert asked(replica).ids == ["later", "best", "d0", "d1"]
    assert replica.held.save_fields(1)
    replica.close()
    again = open_replica(tmp_path)
    assert asked(again).ids == ["later", "best", "d0", "d1"]
    again.close()


def test_of_what_moves_a_document_is_found_in_one_shard(tmp_path: Path) -> None:
    source, target = Shard(tmp_path, "source"), Shard(tmp_path, "target")
    for shard in (source, target):
        shard.done(CreateCollection(spec()))
    source.done(put(["a", "m"], [[1.0, 2.0, 3.0]] * 2, [{"s": {"indices": [1], "values": [1]}}] * 2))

    def found() -> tuple[list[str], list[str]]:
        return asked(source.replica).ids, asked(target.replica).ids

    source.done(prepare(9, False, ALL))
    target.done(prepare(9, True, []))
    source.copy(target, 9, -1, 0)
    assert found() == (["a", "m"], [])
    floor = source.done(Freeze(9)).version
    source.done(Release(9))
    assert found() == (["a"], [])
    target.done(Own(9, 1, floor))
    assert found() == (["a"], ["m"])
