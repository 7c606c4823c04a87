"""How a shard's names differ from the catalog's is what a look at all of them finds, and costs what changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import immutables
import msgspec

from needle.base.model import CollectionSpec, VectorSpec
from needle.routing.stored_collections import StoredNames
from needle.routing.topology import CollectionInfo, NamedVector, Topology, vector_id
from needle.server.catalog.shard_names import ShardNames
from needle.shard.name_changes import KEPT_MAX, NameChanges


def info(number: int, id_: int, vectors: int = 0) -> CollectionInfo:
    named = tuple(NamedVector(f"v{at}", vector_id(id_, at), VectorSpec(dimensions=2)) for at in range(vectors))
    return CollectionInfo(id=id_, spec=CollectionSpec(name=f"c{number:03}", dimensions=2), vectors=named)


class Shard:
    """The names of a replica. Views are as apply would show them."""

    def __init__(self) -> None:
        self.names = NameChanges(of=object())
        self.held: Any = immutables.Map()

    def come_or_go(self, name: str) -> None:
        self.held = self.held.delete(name) if name in self.held else self.held.set(name, None)
        self.names = self.names.with_one(name)

    def opened_again(self) -> None:
        self.names = NameChanges(of=object())

    def view(self) -> Any:
        return SimpleNamespace(collections=self.held, names=self.names)


def looked_at_all(view: Any, topology: Topology) -> tuple[set[str], set[str]]:
    here, wanted = {*view.collections}, {name for one in topology.collections for name in one.stored_names}
    return here - wanted, wanted - here


def test_it_is_what_a_look_at_all_of_them_finds() -> None:
    rng, shard, names = random.Random(3), Shard(), ShardNames(StoredNames())
    catalog: dict[int, CollectionInfo] = {}
    views, topology = [shard.view()], Topology()
    for step in range(1500):
        number = rng.randrange(30)
        if rng.random() < 0.5:
            if number in catalog and rng.random() < 0.5:
                del catalog[number]
            else:  # made, made again under another id, or given other vectors
                catalog[number] = info(number, rng.choice((number, 100 + step)), rng.randrange(3))
            rows = tuple(sorted(catalog.values(), key=lambda one: one.spec.name))
            topology = msgspec.structs.replace(topology, version=step, collections=rows)
        for _ in range(rng.choice((0, 1, 1, 4, 2 * KEPT_MAX if not step % 100 else 1))):
            known = [name for one in catalog.values() for name in one.stored_names] or ["x"]
            shard.come_or_go(rng.choice([*known, "stray", *shard.held]))
        if rng.random() < 0.02:
            shard.opened_again()
        views = [*views[-3:], shard.view()]
        if rng.random() < 0.6:
            view = rng.choice(views) if rng.random() < 0.1 else views[-1]  # an older one is no reason for an error
            equal = names.compare(view, topology)
            assert (names.surplus, names.missing) == looked_at_all(view, topology)
            assert equal == (not names.surplus and not names.missing)


def test_of_another_state_or_of_too_long_ago_nothing_is_known() -> None:
    one = NameChanges(of=object())
    later = one
    for at in range(KEPT_MAX):
        later = later.with_one(f"c{at}")
    assert later.since(one) == tuple(f"c{at}" for at in range(KEPT_MAX)) and later.since(later) == ()
    assert later.with_one("more").since(one) is None and len(later.with_one("more").latest) == KEPT_MAX
    assert one.since(later) is None and later.since(NameChanges(of=object())) is None
    assert NameChanges().since(NameChanges()) is None


def test_a_change_of_one_costs_no_look_at_the_others() -> None:
    """Each shard's leader compared all names with the catalog's, twice for each change."""

    class Held(dict[str, None]):
        walked = 0

        def __iter__(self) -> Iterator[str]:
            Held.walked += 1
            return super().__iter__()

    rows = tuple(info(number, number + 1) for number in range(200))
    before, shard, names = Topology(version=1, collections=rows), NameChanges(of=object()), ShardNames(StoredNames())
    held = Held.fromkeys(one.stored_name for one in rows)
    assert names.compare(SimpleNamespace(collections=held, names=shard), before)  # type: ignore[arg-type]
    Held.walked, more = 0, info(300, 301)
    after = Topology(version=2, collections=(*rows, more))
    assert not names.compare(SimpleNamespace(collections=held, names=shard), after)  # type: ignore[arg-type]
    assert (names.surplus, names.missing) == (set(), {more.stored_name})
    held[more.stored_name] = None
    then = SimpleNamespace(collections=held, names=shard.with_one(more.stored_name))
    assert names.compare(then, after)  # type: ignore[arg-type]
    assert not Held.walked
