"""What a node does on its event loop for all collections of the catalog, where few of them have named vectors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from needle.base.model import CollectionSpec, IndexKind, IndexParams, VectorSpec
from needle.routing.topology import CollectionInfo, NamedVector, Topology, vector_id
from needle.server.metrics.replica_state import ReplicaState
from needle.server.replica import HostedReplica

OTHER = IndexParams(kind=IndexKind.HNSW_SQ8)


def many() -> Topology:
    specs = [CollectionSpec(name=f"c{at:03}", dimensions=2) for at in range(200)]
    infos = [CollectionInfo(id=at + 1, spec=one) for at, one in enumerate(specs)]
    vectors = tuple(
        NamedVector(name, vector_id(900, at), VectorSpec(dimensions=2), OTHER if at else None)
        for at, name in enumerate(("plot", "title"))
    )
    infos[7] = msgspec.structs.replace(infos[7], vectors=vectors)
    infos[9] = msgspec.structs.replace(infos[9], made_index=OTHER)
    return Topology(version=1, collections=tuple(infos))


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    asked, true = list[int](), getattr(CollectionInfo, name).fget

    def told(info: CollectionInfo) -> list[str]:
        asked.append(info.id)
        return cast("list[str]", true(info))

    monkeypatch.setattr(CollectionInfo, name, property(told))
    return asked


def test_a_change_of_the_catalog_is_looked_at_for_those_that_may_be_altered(monkeypatch: pytest.MonkeyPatch) -> None:
    now, again = many(), list[int]()
    here = {name: SimpleNamespace(record=SimpleNamespace(id=at)) for at, name in enumerate(all_names(now))}
    hosted: Any = SimpleNamespace(
        _topology=lambda: now, keeper=SimpleNamespace(look_again=again.extend),
        replica=SimpleNamespace(view=SimpleNamespace(collections=here)),
    )  # fmt: skip
    asked = counted(monkeypatch, "altered")
    HostedReplica._look_at_altered(hosted, (), now.collections)
    wanted = [now.collections[7].stored_vector(now.collections[7].vectors[1]), now.collections[9].stored_name]
    assert [all_names(now)[at] for at in again] == wanted
    assert {8, 10} <= {*asked}
    asked.clear()
    again.clear()
    first, *others = now.collections
    changed = (msgspec.structs.replace(first, made_index=OTHER), *others)
    HostedReplica._look_at_altered(hosted, now.collections, changed)
    assert [all_names(now)[at] for at in again] == [first.stored_name] and asked == [1]


def test_a_scrape_names_those_that_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = many()
    rich = now.collections[7]
    title = rich.stored_vector(rich.vectors[1])
    asked = counted(monkeypatch, "stored_names")
    node: Any = SimpleNamespace(topology=now)
    shown = ReplicaState(node)._shown_names()
    assert [shown(one) for one in (rich.stored_name, title, "c003@4", "c003@99", "gone@5")] == [
        "c007", "c007/title", "c003", "c003@99", "gone@5",
    ]  # fmt: skip
    assert shown(title.replace("title", "titel")) == f"{rich.stored_name}/titel@{rich.vectors[1].id}"
    assert len(asked) < 10


def all_names(now: Topology) -> list[str]:
    return [name for info in now.collections for name in info.stored_names]
