"""What changes of metadata make of it, and that a document keeps its vector, its place in the index and its history."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from needle.base.errors import ConditionFailed, InvalidArgument, NeedleError, VersionMismatch
from needle.base.filters.builder import Filter
from needle.base.model import SearchRequest
from needle.protocol.commands import Change, ChangeWhere, CreateCollection, Delete, Patch
from needle.shard.apply.patching import changed
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.places import Places
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec


def patched(value: Any, **change: Any) -> Any:
    data = b"" if value is None else json.dumps(value).encode()
    return json.loads(changed("a", data, Change(**change)))


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        (None, {"set": [("a", b"1")]}, {"a": 1}),
        ({"a": 1, "b": 2}, {"set": [("a", b"null")]}, {"a": None, "b": 2}),
        ({"a": 1}, {"set": [("b.c.d", b"[1]")]}, {"a": 1, "b": {"c": {"d": [1]}}}),
        ({"b": {"x": 1}}, {"set": [("b.y", b"2")]}, {"b": {"x": 1, "y": 2}}),
        ({"b": None}, {"set": [("b.y", b"2")]}, {"b": {"y": 2}}),
        ({"a": 1, "b": 2}, {"unset": ["a", "c", "b.x"]}, {"b": 2}),
        ({"b": {"x": 1, "y": 2}}, {"unset": ["b.x"]}, {"b": {"y": 2}}),
        ({}, {"append": [("t", b'["x"]')]}, {"t": ["x"]}),
        ({"t": ["x"]}, {"append": [("t", b'["x", "y"]')]}, {"t": ["x", "x", "y"]}),
        ({"t": ["x", 1, True, 1.0]}, {"remove": [("t", b"[1]")]}, {"t": ["x", True]}),
        ({"t": [{"a": 1, "b": 2}, 3]}, {"remove": [("t", b'[{"b": 2, "a": 1}]')]}, {"t": [3]}),
        ({"a": 1}, {"remove": [("t", b"[1]")]}, {"a": 1}),
        ([1, 2], {"whole": b'{"a": 1}'}, {"a": 1}),
    ],
)
def test_what_a_change_makes(before: Any, change: dict[str, Any], after: Any) -> None:
    assert patched(before, **change) == after


def test_what_is_not_named_keeps_its_bytes() -> None:
    data = b'{"big": 123456789012345678901234567890, "f": 1.50, "n": {"deep": 1e2}}'
    made = changed("a", data, Change(set=[("x", b"1")]))
    assert b"123456789012345678901234567890" in made and b"1.50" in made and b"1e2" in made


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ([1], {"set": [("a", b"1")]}),
        ("text", {"unset": ["a"]}),
        ({"a": 1}, {"set": [("a.b", b"1")]}),
        ({"a": [{}]}, {"set": [("a.b", b"1")]}),
        ({"a": 1}, {"append": [("a", b"[1]")]}),
        ({"a": {}}, {"remove": [("a", b"[1]")]}),
        ({}, {"set": [("a", b'"' + b"x" * 100 + b'"')], "bytes_max": 100}),
        ({"a": 1}, {"set": [(".".join("k" * 70), b"1")]}),
    ],
)
def test_what_cannot_be_changed_is_refused_by_name(before: Any, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="document 'a' cannot be changed"):
        patched(before, **change)


# --- replicas ---
def filled(path: Path, rows: int = 40) -> tuple[Replica, Log]:
    replica, log = open_replica(path), Log()
    ids, vectors = [f"d{n}" for n in range(rows)], [[float(n), 0, 0] for n in range(rows)]
    metadata = [{"n": n, "keep": "x"} for n in range(rows)]
    replica.apply(log.add(CreateCollection(spec()), put(ids, vectors, metadata)))
    return replica, log


def found(replica: Replica, condition: dict[str, Any], k: int = 100) -> list[str]:
    request = SearchRequest(
        collection="c", vector=floats([0, 0, 0]), k=k, filter=Filter.parse(condition).to_json(), exact=True
    )
    return replica.search(request).ids


def stored(replica: Replica, id_: str) -> Any:
    return decode_metadata(replica.get("c", [id_], False)[0].metadata)


def test_a_patch_touches_no_vector_and_both_see_filters_right(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    view = replica.view.collection("c")
    growing = view.vectors.growing.chunks
    (result,) = replica.apply(log.add(Patch("c", ["d3", "d5", "absent", "d3"], Change(set=[("n", b"100")]))))
    assert (result.count, result.existed, result.version) == (2, True, 3)
    now = replica.view.collection("c")
    assert now.vectors.growing.chunks == growing  # the very same chunks
    assert found(replica, {"n": 100}) == ["d3", "d5"] and found(replica, {"n": 3}) == []
    assert found(replica, {"n": {"$lt": 7}}) == ["d0", "d1", "d2", "d4", "d6"]
    assert stored(replica, "d3") == {"n": 100, "keep": "x"}
    # Who searches on an older view sees what was there.
    assert sorted(view.live.bitmap()) == list(range(40)) and not view.places
    replica.verify()
    replica.close()
    replica = open_replica(tmp_path)
    assert found(replica, {"n": 100}) == ["d3", "d5"]
    assert replica.get("c", ["d3"], True)[0].vector == floats([3, 0, 0])
    replica.verify()


def test_what_is_patched_survives_purges_and_its_vector_goes_with_it(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    for n in range(5):
        replica.apply(log.add(Patch("c", ["d1", "d2"], Change(set=[("n", b"%d" % (200 + n))]))))
        replica.checkpoint()
        replica.verify()
        assert found(replica, {"n": {"$gte": 200}}) == ["d1", "d2"]
    replica.apply(log.add(Delete("c", ["d1"]), put(["d2"], [[7, 7, 7]])))
    while replica.tidy(all_of_it=True):
        pass
    replica.verify()
    with replica._store.reading() as connection:
        rows = [
            connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in ("documents", "vectors", "graves")
        ]
    assert rows == [39, 39, 0]


def test_conditions_of_writes(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    first, other = Filter.eq("n", 1).to_json(), Filter.eq("n", 2).to_json()
    before = replica.digest()
    refused = replica.apply(
        log.add(
            Patch("c", ["d1", "d2"], Change(unset=["n"]), matches=first),
            Patch("c", ["d1"], Change(unset=["n"]), expected=9),
            Delete("c", ["d1"], matches=other),
            put(["d1", "new"], [[1, 1, 1], [2, 2, 2]], matches=other),
            Patch("c", ["d1", "d2"], Change(append=[("n", b"[1]")])),
        )
    )
    assert [type(one) for one in refused] == [
        ConditionFailed,
        VersionMismatch,
        ConditionFailed,
        ConditionFailed,
        InvalidArgument,
    ]
    assert replica.digest() == before
    done = replica.apply(
        log.add(
            put(["new"], [[2, 2, 2]], matches=other),  # nothing is there that could contradict
            Patch("c", ["d1"], Change(set=[("seen", b"true")]), expected=2, matches=first),
            Delete("c", ["d2"], matches=other),
        )
    )
    assert [one.count for one in done] == [1, 1, 1]


def test_parts_of_a_change_touch_what_matched_at_the_first_and_did_not_change_since(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    wanted = Filter.gte("n", 10).to_json()
    part = ChangeWhere("c", wanted, None, limit=4, looks=15, return_ids=True)
    (first,) = replica.apply(log.add(part))
    assert (first.ids, first.reached, first.upto) == (["d10", "d11", "d12", "d13"], 13, 39)
    # Written meanwhile: one that will match no more, one that changes and still would, and a new one.
    replica.apply(
        log.add(
            Patch("c", ["d20"], Change(set=[("n", b"0")])),
            Patch("c", ["d21"], Change(set=[("other", b"0")])),
            put(["late"], [[1, 1, 1]], [{"n": 50}]),
        )
    )
    deleted, result = first.ids, first
    while result.reached >= 0:
        after = ChangeWhere(
            "c", wanted, None, after=result.reached, upto=result.upto, limit=4, looks=15, return_ids=True
        )
        (result,) = replica.apply(log.add(after))
        assert result.count <= 4
        deleted = deleted + result.ids
    assert deleted == [f"d{n}" for n in range(10, 40) if n not in (20, 21)]
    assert found(replica, {"n": {"$gte": 10}}) == ["late", "d21"]
    replica.verify()


def test_a_bounded_part_looks_at_no_more_than_it_may(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    (result,) = replica.apply(log.add(ChangeWhere("c", Filter.eq("n", 39).to_json(), None, looks=25)))
    assert (result.count, result.reached, result.upto) == (0, 24, 39)


def test_a_part_ends_when_it_has_read_enough(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    (result,) = replica.apply(log.add(ChangeWhere("c", b"{}", None, bytes_max=1)))
    assert (result.count, result.reached, result.upto) == (1, 0, 39)
    size = sum(len(one.metadata) for one in replica.get("c", [f"d{n}" for n in range(1, 6)], False))
    (result,) = replica.apply(log.add(ChangeWhere("c", b"{}", None, after=0, upto=39, bytes_max=size)))
    assert (result.count, result.reached) == (5, 5)


def test_a_version_is_not_asked_of_a_document_that_another_shard_may_have(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    (known,) = replica.get("c", ["d1"], False)
    change = Change(set=[("seen", b"true")])
    done = replica.apply(
        log.add(
            Patch("c", ["absent"], change, expected=known.version, owned=7),
            Patch("c", ["absent"], change, expected=known.version),
            Patch("c", ["d1"], change, expected=known.version + 5, owned=7),
            Patch("c", ["d1"], change, expected=known.version, owned=7),
        )
    )
    said = [one.code if isinstance(one, NeedleError) else one.count for one in done]
    assert said == [0, "version_mismatch", "version_mismatch", 1]


# --- places ---
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 9))
def test_places_are_what_a_dict_says(seed: int, rounds: int, size: int) -> None:
    rng = random.Random(seed)
    of: dict[int, int] = {n: n for n in range(20)}  # vector -> document
    places, live, ordinal = Places(), OrdinalSet.of(np.arange(20, dtype=np.uint32)), 20
    for _ in range(rounds):
        chosen = rng.sample(sorted(of), min(size, len(of)))
        dead, pairs = [of[vector] for vector in chosen], []
        for vector in chosen:
            of[vector] = ordinal
            pairs.append((ordinal, vector))
            ordinal += 1
        live = live.changed(pairs[0][0], ordinal, dead)
        places = places.added(pairs, live.bitmap)
        if rng.random() < 0.3:
            gone = rng.choice(sorted(of))
            live = live.changed(0, 0, [of.pop(gone)])
            of[ordinal] = ordinal
            live = live.changed(ordinal, ordinal + 1, [])
            ordinal += 1
        documents = BitMap(rng.sample(sorted(of.values()), len(of) // 2))
        assert places.vectors_of(documents) == BitMap([v for v, d in of.items() if d in documents])
        vectors = rng.sample(sorted(of), len(of) // 2)
        assert places.documents_of(vectors) == [of[vector] for vector in vectors]


def test_places_of_one_document_that_is_patched_forever_stay_small() -> None:
    places, live = Places(), OrdinalSet.of(np.arange(1, dtype=np.uint32))
    for ordinal in range(1, 3000):
        live = live.changed(ordinal, ordinal + 1, [ordinal - 1])
        places = places.added([(ordinal, 0)], live.bitmap)
    assert len(places) < 20 and places.documents_of([0]) == [2999]
