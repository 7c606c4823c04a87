"""What a replica says its documents weigh: kept with each batch, equal to what a fresh look at them gives."""

from __future__ import annotations

from pathlib import Path

from needle.protocol.commands import CreateCollection, Delete, DropCollection
from needle.shard.state_machine import Replica
from needle.shard.weights import FORGETS, ROW_BYTES, Weights
from shard.replica_util import Log, open_replica, put, spec


def _fresh(replica: Replica) -> int:
    return sum(view.visible * view.document_bytes for view in replica.view.collections.values())


def test_what_documents_weigh_follows_each_batch(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    assert replica.live_bytes == 0
    replica.apply(log.add(CreateCollection(spec("a"), False), CreateCollection(spec("b", 100), False)))
    assert replica.live_bytes == 0
    ids = [f"doc-{n}" for n in range(10)]
    replica.apply(log.add(put(ids, [[1.0, 2.0, 3.0]] * 10, [{"text": "x" * 100}] * 10, collection="a")))
    one = 2 * 4 * 3 + ROW_BYTES + len("doc-0") + len('{"text": ""}') + 100
    assert replica.live_bytes == _fresh(replica) == 10 * one
    replica.apply(log.add(put(["doc-0"], [[1.0] * 100], collection="b")))
    assert replica.live_bytes == _fresh(replica) == 10 * one + 2 * 4 * 100 + ROW_BYTES + len("doc-0")
    replica.apply(log.add(Delete("a", ids[:4]), put(ids[4:5], [[0.0] * 3], [{"text": "y" * 100}], collection="a")))
    assert replica.live_bytes == _fresh(replica)
    before = replica.live_bytes
    replica.checkpoint()
    replica.close()
    again = open_replica(tmp_path)
    assert again.live_bytes == _fresh(again) == before
    again.apply(log.add(DropCollection("a")))
    assert again.live_bytes == _fresh(again) == 2 * 4 * 100 + ROW_BYTES + len("doc-0")
    again.close()


def test_what_was_written_long_ago_counts_less() -> None:
    weights = Weights(4)
    for _ in range(4):
        weights.note([("", b"x" * 1000)] * FORGETS)
    for _ in range(16):
        weights.note([("", b"")] * FORGETS)
    assert weights.document_bytes < 8 + ROW_BYTES + 10
