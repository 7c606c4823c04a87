"""What is remembered of collections by their stored names is what the topology at hand says."""

from __future__ import annotations

import msgspec

from needle.base.model import CollectionSpec
from needle.routing.stored_collections import StoredCollections
from needle.routing.topology import CollectionInfo, Topology


def books(id_: int, ttl: float = 0.0) -> CollectionInfo:
    return CollectionInfo(id=id_, spec=CollectionSpec(name="books", dimensions=2, ttl=ttl))


def test_a_newer_catalog_is_asked_anew() -> None:
    known = StoredCollections()
    before = Topology(version=1, collections=(books(3),))
    stored = before.collections[0].stored_name
    assert known.find(before, stored) is before.collections[0] is known.find(before, stored)
    assert known.find(before, "films") is None
    altered = msgspec.structs.replace(before, collections=(books(3, ttl=5.0),))
    found = known.find(altered, stored)
    assert found is not None and found.spec.ttl == 5.0
    made_again = msgspec.structs.replace(before, collections=(books(4),))
    assert known.find(made_again, stored) is None
    assert known.find(made_again, made_again.collections[0].stored_name) is made_again.collections[0]
