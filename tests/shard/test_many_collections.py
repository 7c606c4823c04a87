"""What a replica is asked for while it has many collections costs no look at each of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from needle.base.errors import InvalidArgument
from needle.base.model import CollectionSpec, Metric
from needle.protocol.commands import CreateCollection, DropCollection
from needle.shard.documents import digest
from needle.shard.documents.digest import DigestParts
from needle.shard.documents.records import CollectionRecord
from needle.shard.live_collection import digest_of
from shard.replica_util import Log, open_replica, put

MANY = 40


def spec(name: str, of: str = "") -> CollectionSpec:
    return CollectionSpec(name=name, dimensions=3, metric=Metric.L2, of=of)


def test_collections_are_counted_without_those_of_named_vectors(tmp_path: Path) -> None:
    """To validate each creation all of them were put in order."""
    replica, log = open_replica(tmp_path), Log()
    replica.apply([entry for at in range(MANY) for entry in log.add(CreateCollection(spec(f"c{at}"), False))])
    replica.apply(log.add(CreateCollection(spec("c1/v@9", "c1"), False)))
    replica.apply(log.add(CreateCollection(spec("c2/v@9", "c2"), False)))
    view = replica.view
    assert (view.collection_count, view.vector_count) == (MANY, 2) == (len(view.named()), len(view.vectors))
    replica.apply(log.add(DropCollection("c2"), DropCollection("c3")))
    assert (replica.view.collection_count, replica.view.vector_count) == (MANY - 2, 1)
    replica.close()
    replica = open_replica(tmp_path)
    assert (replica.view.collection_count, replica.view.vector_count) == (MANY - 2, 1)
    replica.limits = msgspec.structs.replace(replica.limits, collections_max=MANY - 2)
    with pytest.raises(InvalidArgument, match="collections"):
        replica.validate(CreateCollection(spec("more"), False))
    replica.close()


def test_a_digest_is_made_of_what_changed_since_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas are compared by it on the event loop, where it took four microseconds a collection: 12 ms for 3,000."""
    replica, log = open_replica(tmp_path), Log()
    replica.apply([entry for at in range(MANY) for entry in log.add(CreateCollection(spec(f"c{at}"), False))])
    made, true = list[int](), digest._part

    def part(record: digest.Counted) -> bytes:
        made.append(record.id)
        return true(record)

    monkeypatch.setattr(digest, "_part", part)
    before = replica.digest()
    made.clear()
    assert replica.digest() == before and not made
    replica.apply(log.add(put(["a"], [[1.0, 2.0, 3.0]], collection="c7")))
    replica.apply(log.add(DropCollection("c3")))
    after = replica.digest()
    assert after != before and made == [replica.view.collections["c7"].record.id]
    assert after == digest_of([one.record for one in replica.view.collections.values()], None)
    replica.close()
    replica = open_replica(tmp_path)
    made.clear()
    assert replica.digest() == after and not made, "they were made when it was opened, in a thread"
    replica.close()


def test_digests_are_those_of_the_release_before() -> None:
    """Nodes of two releases compare their replicas."""
    records = [CollectionRecord(id=9, spec=spec("b"), next_ordinal=4, documents=2, total=77)]
    records.append(CollectionRecord(id=2, spec=spec("a"), next_ordinal=1, documents=1, total=(1 << 128) - 1))
    assert DigestParts().digest(records, b"owned") == DigestParts().digest(records[::-1], b"owned") == RELEASED


RELEASED = "ec5382a2dc5c2f17e837730e80643a66"
