"""What is remembered of collections by their stored names is what the topology at hand says."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from needle.base.model import CollectionSpec, VectorSpec
from needle.routing.stored_collections import StoredCollections, StoredNames
from needle.routing.topology import AliasInfo, CollectionInfo, NamedVector, Topology, vector_id


def books(id_: int, ttl: float = 0.0) -> CollectionInfo:
    return CollectionInfo(id=id_, spec=CollectionSpec(name="books", dimensions=2, ttl=ttl))


def films(id_: int) -> CollectionInfo:
    return CollectionInfo(id=id_, spec=CollectionSpec(name="films", dimensions=2))


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


def test_what_callers_name_is_what_the_topology_at_hand_says() -> None:
    known, before = StoredCollections(), Topology(version=1, collections=(books(3), films(5)))
    assert known.named(before, "books") is before.collections[0] is known.named(before, "books")
    assert known.named(before, "novels") is None
    aliased = msgspec.structs.replace(before, version=2, aliases=(AliasInfo("novels", "books"),))
    assert known.named(aliased, "novels") is before.collections[0]
    turned = msgspec.structs.replace(aliased, version=3, aliases=(AliasInfo("novels", "films"),))
    assert known.named(turned, "novels") is before.collections[1] is known.named(turned, "novels")
    assert known.named(msgspec.structs.replace(turned, version=4, aliases=()), "novels") is None


def named(id_: int, name: str, *vectors: str) -> CollectionInfo:
    spec = CollectionSpec(name=name, dimensions=2)
    made = tuple(NamedVector(one, vector_id(id_, at), VectorSpec(dimensions=2)) for at, one in enumerate(vectors))
    return CollectionInfo(id=id_, spec=spec, vectors=made)


def test_names_in_shards_are_those_of_the_topology_at_hand() -> None:
    names = StoredNames()
    plain, rich = named(3, "books"), named(4, "films", "title", "plot")
    both = Topology(version=1, collections=(plain, rich))
    assert names.keys(both) == {*plain.stored_names, *rich.stored_names}
    for name, spec in {**plain.stored_specs(), **rich.stored_specs()}.items():
        assert names.spec(both, name) == spec
    without, again = named(4, "films", "plot"), named(9, "books")
    later = Topology(version=2, collections=(again, without))
    assert names.keys(later) == {*again.stored_names, *without.stored_names}
    assert names.spec(later, again.stored_name) == again.stored_spec
    assert names.keys(both) == {*plain.stored_names, *rich.stored_names}  # whoever has an older one still gets it
    assert not names.keys(Topology())


def test_a_change_of_one_collection_makes_the_names_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard's leader made those of all of them at each change of the catalog."""
    made, names = list[int](), StoredNames()
    told = CollectionInfo.stored_names.fget  # type: ignore[attr-defined]

    def counted(info: CollectionInfo) -> list[str]:
        made.append(info.id)
        return cast("list[str]", told(info))

    monkeypatch.setattr(CollectionInfo, "stored_names", property(counted))
    many = tuple(named(at + 1, f"c{at:03}") for at in range(200))
    names.keys(Topology(version=1, collections=many))
    assert len(made) == 200
    one_more = (*many[:150], named(900, "c149x", "v"), *many[150:])
    assert len(names.keys(Topology(version=2, collections=one_more))) == 202
    names.keys(Topology(version=3, collections=one_more[1:]))
    assert made[200:] == [900]
