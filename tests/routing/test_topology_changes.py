"""What changed of a topology makes, of what somebody knows, the topology that its sender has, or nothing."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
import xxhash

from catalog.catalog_util import spec, topology
from catalog.test_formats import _all, _line
from needle.base.access import ADMIN, READER, Identity, KeyInfo, Role
from needle.catalog.collections import alter, create, drop
from needle.protocol.catalog_commands import AlterCollection, CreateCollection, DropCollection
from needle.routing import topology_changes
from needle.routing.topology import AliasInfo, CollectionInfo, Topology
from needle.routing.topology_changes import (
    FORM,
    NAMES_MAX,
    ROWS_MAX,
    STEPS_MAX,
    Changes,
    History,
    Summed,
    changed,
    changes_between,
    differing,
    rows_sum,
)

_replace = msgspec.structs.replace


def founded(*names: str) -> Topology:
    return _replace(topology(), founding=77, collections=rows(*names))


def rows(*names: str) -> tuple[CollectionInfo, ...]:
    return tuple(CollectionInfo(id=n + 2, spec=spec(name)) for n, name in enumerate(sorted(names)))


def as_sent(changes: Changes | None) -> Changes:
    assert changes is not None
    return msgspec.msgpack.decode(msgspec.msgpack.encode(changes), type=Changes)


def as_known(one: Topology) -> Topology:
    """Of other objects, as who heard of it has it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Topology)


def step(now: Topology, rng: random.Random) -> Topology:
    """The topology after something has happened to it."""
    version, held = now.version + rng.randint(1, 3), {info.spec.name: info for info in now.collections}
    draw = rng.random()
    if draw < 0.5:
        made = [f"c{rng.randrange(10_000):04}" for _ in range(rng.choice([1, 1, 1, 3]))]
        held |= {name: CollectionInfo(id=version, spec=spec(name)) for name in made}
    elif draw < 0.7 and held:
        for name in rng.sample(sorted(held), min(len(held), rng.choice([1, 1, 2]))):
            del held[name]
    elif draw < 0.85 and held:
        name = rng.choice(sorted(held))
        held[name] = _replace(held[name], fields=(*held[name].fields, f"f{version}"))
    elif draw < 0.9:
        nodes = list(now.nodes)
        nodes[0] = _replace(nodes[0], weight=float(version))
        return _replace(now, version=version, nodes=tuple(nodes))
    elif now.map is not None:
        return _replace(now, version=version, map=_replace(now.map, epoch=now.map.epoch + 1))
    collections = tuple(held[name] for name in sorted(held))
    aliases = (AliasInfo("also", collections[0].spec.name),) if collections and rng.random() < 0.1 else ()
    return _replace(now, version=version, collections=collections, aliases=aliases)


def test_the_form_is_that_of_this_release() -> None:
    """FORM of needle/routing/topology_changes.py: who has another one is told the whole."""
    form = xxhash.xxh32_intdigest("\n".join(map(_line, _all(Topology))).encode())
    assert form == FORM, f"write FORM: Final = {form:#x}"


@pytest.mark.parametrize("seed", range(20))
def test_whoever_is_told_what_changed_has_what_the_sender_has(seed: int) -> None:
    rng = random.Random(seed)
    now, history = founded(*(f"c{n:04}" for n in range(rng.choice([0, 5, 300])))), History()
    history.follow(now)
    everyone = [Summed.of(as_known(now)) for _ in range(3)]
    shortened = 0
    for _ in range(120):
        now = step(now, rng)
        if rng.random() < 0.8:  # a node may hear of several versions at once
            history.follow(now)
        for n, known in enumerate(everyone):
            if rng.random() < 0.4 and history.now.topology.version > known.topology.version:
                told = history.now.topology
                changes = history.since(known.topology.version, 77, told)
                if changes is None:  # as much as the whole
                    everyone[n] = Summed.of(as_known(told))
                    continue
                shortened += 1
                made = changed(known, as_sent(changes))
                assert made is not None and made.topology == told
                assert made.sum == Summed.of(as_known(told)).sum == history.now.sum
                everyone[n] = made
    assert shortened > 20


@pytest.mark.parametrize("seed", range(200))
def test_rows_that_differ_are_found_wherever_they_are(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"n{n:03}" for n in range(100)]
    size = rng.choice([0, 1, 8, 40, 100])
    one = {name: CollectionInfo(id=rng.randint(1, 2), spec=spec(name)) for name in rng.sample(names, size)}
    other = dict(one)
    for name in rng.sample(names, rng.choice([0, 1, 2, 60])):
        other.pop(name, None)
        if rng.random() < 0.6:
            other[name] = CollectionInfo(id=rng.randint(1, 3), spec=spec(name))
    before, now = (tuple(each[name] for name in sorted(each)) for each in (one, other))
    gone, came = differing(before, now)
    assert sorted(gone, key=lambda info: info.spec.name) == [info for info in before if info not in now]
    assert sorted(came, key=lambda info: info.spec.name) == [info for info in now if info not in before]
    assert (rows_sum(before) - rows_sum(gone) + rows_sum(came) - rows_sum(now)) % 2**64 == 0


@pytest.mark.parametrize("names", [["a"] * 20, [f"c{99 - n}" for n in range(20)], ["b"] * 9 + ["a"] * 9])
def test_rows_that_are_not_by_name_are_compared_to_an_end(names: list[str]) -> None:
    """A node at fault told a client so, which put changes into that: it went on for good, with nothing else done."""
    before = tuple(CollectionInfo(id=n, spec=spec(name)) for n, name in enumerate(names))
    now = tuple(_replace(info, id=info.id + 100) for info in before)
    gone, came = differing(before, now)
    assert gone and came
    known = _replace(topology(), version=3, founding=77, collections=before)
    assert changed(Summed.of(known), Changes(3, 4, 1, {}, now)) is None


@pytest.mark.parametrize("seed", range(100))
def test_what_is_remembered_of_a_change_is_what_a_look_through_both_finds(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"n{n:03}" for n in range(30)]
    known = tuple(CollectionInfo(id=1, spec=spec(name)) for name in sorted(rng.sample(names, rng.choice([1, 9, 25]))))
    for _ in range(20):
        came = [CollectionInfo(id=rng.randint(1, 2), spec=spec(rng.choice(names))) for _ in range(rng.randrange(4))]
        now = topology_changes._with(known, came, [rng.choice(names) for _ in range(rng.randrange(3))])
        found, looked = differing(known, now), topology_changes._looked_through(known, now)
        assert [sorted(one, key=lambda info: info.spec.name) for one in found] == [
            sorted(one, key=lambda info: info.spec.name) for one in looked
        ]
        known = now or known


@pytest.mark.parametrize("seed", range(100))
def test_what_several_changes_come_to_is_what_a_look_through_both_ends_finds(seed: int) -> None:
    """Who adopts a catalog, or writes it down, may have missed some versions of it."""
    rng, index = random.Random(seed), 100
    names = [f"n{n:02}" for n in range(12)]
    seen = [founded(*rng.sample(names, rng.choice([1, 6, 12])))]
    for _ in range(40):
        now, name, index = seen[-1], rng.choice(names), index + 1
        found = now.named(name)
        if found is None:
            now = create(now, index, CreateCollection(spec(name), False, index))[0]
        elif rng.random() < 0.5:
            now = drop(now, index, DropCollection(name, found.id))[0]
        else:  # perhaps back to what it was
            now = alter(now, index, AlterCollection(name, found.id, rng.choice([50, 60])))[0]
        seen.append(now)
        before = rng.choice(seen[-9:]).collections
        found_now = [{*one} for one in differing(before, now.collections)]
        assert found_now == [{*one} for one in topology_changes._looked_through(before, now.collections)] or (
            before is now.collections or not before or not now.collections
        )


def test_a_change_is_looked_for_once_by_whoever_asks_and_not_by_who_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight parts of each node looked through all collections at each change."""
    looks, true = list[int](), topology_changes._looked_through

    def looked(before: Any, now: Any) -> Any:
        looks.append(len(now))
        return true(before, now)

    monkeypatch.setattr(topology_changes, "_looked_through", looked)
    before = founded("a", "b", "c")
    made = CreateCollection(spec("bb"), False, 5)
    after = _replace(create(before, 109, made)[0], version=before.version + 1)
    history, summed = History(), Summed.of(before)
    history.follow(before)
    assert differing(before.collections, after.collections) == ((), (after.named("bb"),))
    history.follow(after)
    known = changed(summed, as_sent(changes_between(summed, after)[1]))
    assert known is not None and known.topology == after and not looks
    dropped = drop(after, 110, DropCollection("bb", after.named("bb").id))[0]  # type: ignore[union-attr]
    assert differing(after.collections, dropped.collections) == ((after.named("bb"),), ())
    altered = alter(dropped, 111, AlterCollection("a", dropped.collections[0].id, 77))[0]
    assert differing(dropped.collections, altered.collections) == (dropped.collections[:1], altered.collections[:1])
    assert not looks
    other = rows("a", "c")
    for _ in range(3):
        assert differing(altered.collections, other) == true(altered.collections, other)
    assert looks == [2]


def test_who_asks_from_where_does_not_hide_the_way_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts of a node that had seen different versions put each other's way to the newest one out of sight: each
    question was a look through all collections."""
    looks, true = list[int](), topology_changes._looked_through

    def looked(before: Any, now: Any) -> Any:
        looks.append(len(now))
        return true(before, now)

    monkeypatch.setattr(topology_changes, "_looked_through", looked)
    seen = [founded("a", "b", "c")]
    for index, name in enumerate(("d", "e", "f", "g")):
        seen.append(create(seen[-1], 200 + index, CreateCollection(spec(name), False, index))[0])
    *earlier, last = [one.collections for one in seen]
    for _ in range(3):
        for at, before in enumerate(earlier):
            assert differing(before, last) == ((), last[3 + at :])
    assert not looks
    differing(rows("other"), last)
    assert looks == [7] and differing(earlier[2], last) == ((), last[5:]) and len(looks) == 1


def test_what_is_put_into_another_topology_makes_nothing() -> None:
    before, history = founded("a", "b", "c"), History()
    history.follow(before)
    now = _replace(before, version=9, collections=rows("a", "b", "c", "d"))
    history.follow(now)
    changes = as_sent(history.since(1, 77, now))
    made = changed(Summed.of(as_known(before)), changes)
    assert made is not None and made.topology == now
    assert before.map is not None
    others: dict[str, dict[str, Any]] = {
        "has a collection less": {"collections": before.collections[1:]},
        "has another row": {"collections": rows("b", "c", "x")},
        "has another map": {"map": _replace(before.map, epoch=5)},
        "has other keys": {"keys": (KeyInfo("k", b"x" * 32, Role.READER),)},
        "is of another cluster": {"founding": 78},
        "is older": {"version": 0},
        "is as new": {"version": 9},
    }
    for what, fields in others.items():
        assert changed(Summed.of(_replace(before, **fields)), changes) is None, what
    nameless = _replace(changes, fields={**changes.fields, "of-another-release": msgspec.Raw(b"\x01")})
    assert changed(Summed.of(before), nameless) is None
    broken = _replace(changes, fields={**changes.fields, "nodes": msgspec.Raw(b"\x01")})
    assert changed(Summed.of(before), broken) is None


def test_of_what_is_not_known_any_more_the_whole_is_told() -> None:
    now, history = founded(*(f"c{n:04}" for n in range(2 * ROWS_MAX + 10))), History()
    history.follow(_replace(now, version=5))
    history.follow(now := _replace(now, version=6, replicas=3))
    assert history.since(5, 77, now) is not None
    assert history.since(4, 77, now) is None, "nobody here has seen it"
    assert history.since(6, 77, now) is None, "it is the newest"
    assert history.since(5, 78, now) is None, "it is of another cluster"
    assert history.since(5, 0, now) is None, "who asks has none"
    assert history.since(5, 77, _replace(now, version=7)) is None, "it has not come here yet"
    others = tuple(_replace(info, nonce=1) for info in now.collections[: ROWS_MAX + 1])
    history.follow(now := _replace(now, version=7, collections=(*others, *now.collections[ROWS_MAX + 1 :])))
    assert history.since(5, 77, now) is history.since(6, 77, now) is None, "too many rows"
    for n in range(STEPS_MAX + 5):
        history.follow(now := _replace(now, version=now.version + 1, replicas=n % 2 + 1))
    assert len(history._steps) == STEPS_MAX
    assert history.since(7, 77, now) is None
    assert changed(history.now, as_sent(history.since(now.version - 1, 77, now))) is None
    for n in range(2 * NAMES_MAX // ROWS_MAX):
        others = tuple(_replace(info, nonce=n + 2) for info in now.collections[:ROWS_MAX])
        history.follow(
            now := _replace(now, version=now.version + 1, collections=(*others, *now.collections[ROWS_MAX:]))
        )
    assert history._names <= NAMES_MAX
    assert history._names == sum(len(one.names) for one in history._steps)
    assert history.since(now.version - 3, 77, now) is not None


def test_what_changed_and_changed_back_unseen_is_not_passed_over() -> None:
    """A node heard of versions 3 and 5, and asks for no 4: who has that is told the whole."""
    before, history = founded("a", "b", "c"), History()
    history.follow(before := _replace(before, version=3))
    between = _replace(before, version=4, replicas=5)
    history.follow(now := _replace(before, version=5))
    assert history.since(4, 77, now) is None
    assert changed(Summed.of(between), as_sent(history.since(3, 77, now))) is None
    history.follow(later := _replace(now, version=7, replicas=2))
    assert history.since(4, 77, later) is None and history.since(6, 77, later) is None
    for version in (3, 5):
        made = changed(Summed.of(_replace(before, version=version)), as_sent(history.since(version, 77, later)))
        assert made is not None and made.topology == later


def test_an_older_topology_than_the_last_changes_nothing() -> None:
    history = History()
    history.follow(now := _replace(founded("a"), version=5))
    history.follow(_replace(founded(), version=4))
    assert history.now.topology is now


def test_a_caller_hears_of_what_changed_only_what_it_may_hear() -> None:
    before, history = founded("a", "b", "c", "d"), History()
    history.follow(before)
    key = KeyInfo("k", b"x" * 32, Role.READER, since=9)
    now = _replace(before, version=9, keys=(key,), collections=rows("a", "b", "c", "d", "e"))
    history.follow(now)
    for caller in (Identity("k", READER), Identity("k", READER, None, b"{}", 9)):
        told = now.told_to(caller)
        changes = as_sent(history.since(1, 77, told))
        assert b"x" * 32 not in msgspec.msgpack.encode(changes)
        made = changed(Summed.of(as_known(before.told_to(caller))), changes)
        assert made is not None and made.topology == told
    assert history.since(1, 77, now.told_to(Identity("k", READER, frozenset({"a"})))) is None
    admins = as_sent(history.since(1, 77, now.told_to(Identity("k", ADMIN))))
    assert changed(Summed.of(before), admins).topology == now  # type: ignore[union-attr]


def test_who_may_hear_of_some_collections_hears_of_no_other_that_was_the_last_one() -> None:
    before, history = founded("secret"), History()
    history.follow(before)
    now = _replace(before, version=9, collections=())
    history.follow(now)
    for caller in (Identity("k", READER, frozenset({"a"})), Identity("k", READER, frozenset())):
        assert before.told_to(caller).collections == ()
        assert history.since(1, 77, now.told_to(caller)) is None
    later = _replace(now, version=10, replicas=2)
    history.follow(later)
    changes = as_sent(history.since(9, 77, later.told_to(Identity("k", READER, frozenset({"a"})))))
    assert (changes.rows, changes.gone) == ((), ())


def test_what_is_written_between_two_topologies_makes_the_second() -> None:
    before, now = founded("a", "b"), _replace(founded("b", "c"), version=4)
    made, changes = changes_between(Summed.of(before), now)
    assert made.topology is now
    again = changed(Summed.of(before), as_sent(changes))
    assert again is not None and again.topology == now
    many = _replace(before, version=4, collections=rows(*(f"c{n:04}" for n in range(ROWS_MAX + 1))))
    assert changes_between(Summed.of(before), many)[1] is None


def test_a_sum_is_that_of_what_is_sent() -> None:
    """Whatever order and objects it is made of."""
    some = rows("a", "b", "c")
    assert rows_sum(some) == rows_sum(some[::-1]) == topology_changes.bytes_sum(map(msgspec.msgpack.encode, some))
    assert rows_sum(some) != rows_sum(some[:2]) and rows_sum(()) == 0
