"""How large a collection is said to be is what it has, and costs nothing that grows with it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from needle.base.collection_sizes import CollectionSize, IndexProgress
from needle.base.config import Limits, SegmentConfig
from needle.base.model import Metric, SearchRequest, VectorSpec
from needle.client.document_calls import Held
from needle.client.naming import _description
from needle.multiraft.ports import Applied
from needle.protocol.commands import CreateCollection, Delete, Named, PublishSegment
from needle.routing.topology import CollectionInfo
from needle.shard.disk import ReplicaDisk
from needle.shard.documents.store import DocumentStore
from needle.shard.segments.sealed import SealedSegment
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec
from shard.vectors_util import seal

ROWS = 300


@pytest.fixture
def replica(tmp_path: Path):
    made = open_replica(tmp_path)
    log = Log()
    ids = [f"d{n:04}" for n in range(ROWS)]
    rows = [[n, 0, 0] for n in range(ROWS)]
    metadata = [{"n": n, "text": "x" * 1000} for n in range(ROWS)]
    made.apply(log.add(CreateCollection(spec()), CreateCollection(spec("empty")), put(ids, rows, metadata)))
    made.apply(log.add(Delete("c", ids[:100])))
    yield made
    made.close()


def sizes(replica: Replica) -> dict[str, CollectionSize]:
    return {spec.name: size for spec, size in replica.sizes()}


def test_counts_and_bytes(replica: Replica) -> None:
    found = sizes(replica)
    empty = found["empty"]
    assert empty == CollectionSize(index=empty.index) and empty.index.now == ["hnsw m=16 ef_construction=100"]
    size = found["c"]
    assert size.documents == 200 and size.vector_bytes == 200 * 3 * 4 and size.index_bytes == 0
    assert 200 * 1000 < size.document_bytes < 200 * 1400
    assert size.field_index_bytes == 0
    query = np.zeros(3, "<f4").tobytes()
    replica.search(SearchRequest(collection="c", vector=query, k=1, filter=b'{"n":{"$gte":150}}'))
    indexed = sizes(replica)["c"].field_index_bytes
    assert 0 < indexed <= replica.field_indexes.used


def test_what_waits_for_an_index_file_counts_where_it_is_enough_for_one(tmp_path: Path) -> None:
    """`needle restore` waits for it: what is too little for a file never gets one."""
    sealing = SegmentConfig(seal_rows=200, rows_max=1000)
    replica = Replica(str(tmp_path), limits=Limits(), segments=sealing, disk=ReplicaDisk())
    log, ids, rows = Log(), [f"d{n}" for n in range(250)], [[n, 0, 0] for n in range(250)]
    replica.apply(log.add(CreateCollection(spec()), put(ids[:199], rows[:199], [{}] * 199)))
    assert sizes(replica)["c"].index.waiting == 0
    replica.apply(log.add(put(ids[199:], rows[199:], [{}] * 51)))
    assert sizes(replica)["c"].index.waiting == 250
    replica.apply(log.add(Delete("c", ids[:51])))
    assert sizes(replica)["c"].index.waiting == 0
    two = CollectionSize(index=IndexProgress(waiting=3)) + CollectionSize(index=IndexProgress(waiting=4))
    assert two.index.waiting == 7
    replica.close()


def test_whoever_waits_for_the_index_waits_for_named_vectors_too(tmp_path: Path) -> None:
    """`wait_indexed` and a restore said that all is indexed while a named vector had no file yet."""
    sealing = SegmentConfig(seal_rows=200, rows_max=1000)
    replica, log = Replica(str(tmp_path), limits=Limits(), segments=sealing, disk=ReplicaDisk()), Log()
    rows = [[n, 0, 0] for n in range(250)]
    named = [Named("c/title", list(range(250)), floats(*[row[:2] for row in rows]))]
    title = VectorSpec(dimensions=2, metric=Metric.L2).stored_as("c/title", "c")
    written = put([f"d{n}" for n in range(250)], rows, [{}] * 250, named=named)
    replica.apply(log.add(CreateCollection(spec()), CreateCollection(title), written))
    for name, waiting in (("c", 250), ("c/title", 0)):
        (vectors,) = [one for one in replica.held.collection_vectors() if one.spec.name == name]
        segment, path = seal(vectors, 0, 249)
        vectors.attach(SealedSegment(path, segment, vectors.spec))
        replica.apply(log.add(PublishSegment(**msgspec.structs.asdict(segment))))
        assert sizes(replica)["c"].index.waiting == waiting
    replica.close()


def test_index_files_count_as_they_are_on_disk(replica: Replica) -> None:
    (vectors,) = [one for one in replica.held.collection_vectors() if one.spec.name == "c"]
    segment, path = seal(vectors, 0, 199)
    vectors.attach(SealedSegment(path, segment, vectors.spec))
    log = Log()
    log.entries = [Applied(index=n + 1, term=1, data=b"", conf=None) for n in range(4)]
    replica.apply(log.add(PublishSegment(**msgspec.structs.asdict(segment))))
    assert sizes(replica)["c"].index_bytes == os.path.getsize(path) == segment.size > 0


def test_no_document_is_read(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("by_id", "by_ordinal", "scan", "metadata_between", "metadata_of"):
        monkeypatch.setattr(DocumentStore, name, None)
    assert sizes(replica)["c"].documents == 200


def test_of_all_shards() -> None:
    info = CollectionInfo(id=3, spec=spec())
    one = CollectionSize(documents=1, document_bytes=2, vector_bytes=3, index_bytes=4, field_index_bytes=5)
    found = _description(info, {"alias": "c", "other": "x"}, {"c": {0: Held(1, one), 4: Held(1, one)}})
    assert found.documents == 2 and found.shards == {0: 1, 4: 1} and found.aliases == ["alias"]
    assert found.size == CollectionSize(
        documents=2, document_bytes=4, vector_bytes=6, index_bytes=8, field_index_bytes=10
    )
    assert _description(info, {}, {}).size == CollectionSize()


def test_a_shard_that_does_not_say_leaves_the_sum_open() -> None:
    held = {0: Held(1, CollectionSize(documents=1)), 4: Held(7, None)}
    found = _description(CollectionInfo(id=3, spec=spec()), {}, {"c": held})
    assert found.documents == 8 and found.size is None and list(found.sizes) == [0]


def test_one_collection_is_told_of_alone(replica: Replica) -> None:
    """Who asks for one waited for all of thousands."""
    all_ = {spec.name: size for spec, size in replica.sizes()}
    assert len(all_) > 1
    for name, size in all_.items():
        assert [(spec.name, held) for spec, held in replica.sizes(only=name)] == [(name, size)]
        assert [(spec.name, count) for spec, count in replica.counts(only=name)] == [(name, size.documents)]
    assert replica.sizes(only="gone") == replica.counts(only="gone") == []
