"""Scans in the order of a field: against plain sorting, whatever is indexed, page by page, while writes go on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base import filter_reference
from base.filter_strategies import IDS, conditions, documents
from needle.base.errors import InvalidArgument, ScanEnded
from needle.base.filters.builder import Filter
from needle.base.filters.ordering import HEAD_BYTES, START, ScanOrder, key_of
from needle.protocol.commands import Change, CreateCollection, Delete, EndPins, Patch, PinScan
from needle.shard import ordered_scan
from needle.shard.documents import scans
from needle.shard.reads import Page
from needle.shard.state_machine import Replica
from shard.replica_util import Log, open_replica, put, spec


def stands(metadata: Any, path: str, *, descending: bool = False) -> tuple[Any, ...]:
    """What docs/documents.md says of a document's place, once more."""
    places: list[tuple[Any, ...]] = []
    for value in filter_reference._find(metadata, path.split("."))[1]:
        if isinstance(value, bool):
            places.append((2, value))
        elif isinstance(value, str):
            places.append((1, value.encode()[:47]))
        elif value is not None:
            large = not -(2**63) <= value < 2**64
            try:
                places.append((0, float(value) if large else value))
            except OverflowError:
                places.append((0, float("inf") if value > 0 else float("-inf")))
    return max(places, default=(-1,)) if descending else min(places, default=(3,))


def in_order(rows: dict[str, Any], path: str, descending: bool) -> list[str]:
    """Ids: by the values of a field, from the greatest on if descending; ties by id either way."""
    places = {id_: stands(one, path, descending=descending) for id_, one in rows.items()}
    return sorted(sorted(rows), key=places.__getitem__, reverse=descending)  # which keeps the order of equal ones


def pages(
    replica: Replica, field: str, where: bytes = b"", limit: int = 7, pin: Any = None, of: int = 1, which: int = 0,
    descending: bool = False,
) -> Any:  # fmt: skip
    """Each page's documents; between two of them the test may write."""
    order, after = ScanOrder(field, START, descending), ""
    while True:
        found = replica.scan(Page("c", where, after, limit, False, (which, of), 0, b"", pin, order))
        assert len(found.keys) == len(found.documents) <= limit
        path = field.split(".")
        metadata = [json.loads(one.metadata or b"null") for one in found.documents]
        assert list(found.keys) == [key_of(one, path, descending=descending) for one in metadata]
        yield found.documents
        if found.reached is None:
            return
        assert found.key is not None and (found.key, found.reached) != (order.key, after)
        assert descending or (found.key, found.reached) > (order.key, after)
        order, after = ScanOrder(field, found.key, descending), found.reached
        assert order.known()


small = st.tuples(*(st.sampled_from([0, 1, 3, 1000]) for _ in range(3)), st.sampled_from([1, 3, 512]))
sorted_by = st.sampled_from(["a", "a", "a", "b", "a.b", "straße", "absent"])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(documents, min_size=1, max_size=30),
    st.lists(st.tuples(st.sampled_from(IDS), documents | st.just("gone")), max_size=10),
    sorted_by, st.none() | conditions, st.integers(1, 9), small, st.sampled_from([1, 1, 3]), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_pages_are_what_sorting_gives(
    first: list[Any],
    then: list[tuple[str, Any]],
    field: str,
    condition: dict[str, Any] | None,
    limit: int,
    bounds: tuple[int, int, int, int],
    of: int,
    pinned: bool,
    descending: bool,
) -> None:
    """With the index and without, by parts of every size, up and down; as of now, and of an earlier moment by a pin."""
    try:
        where = b"" if condition is None else Filter.parse(condition).to_json()
    except InvalidArgument:
        return
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (ordered_scan, "READ_ALL", bounds[0]),
            (ordered_scan, "PART_MAX", bounds[1]),
            (scans, "READ_MAX", bounds[2]),
            (ordered_scan, "CHUNK", bounds[3]),
        ):
            patch.setattr(module, name, value)
        replica, log, model = open_replica(directory), Log(), dict[str, Any]()

        def write(id_: str, metadata: Any) -> None:
            if metadata == "gone":
                model.pop(id_, None)
                replica.apply(log.add(Delete("c", [id_])))
            else:
                model[id_] = metadata
                replica.apply(log.add(put([id_], [[1, 2, 3]], [metadata])))

        replica.apply(log.add(CreateCollection(spec())))
        for id_, metadata in zip(IDS, first, strict=False):
            write(id_, metadata)
        half = len(then) // 2
        for one in then[:half]:
            write(*one)
        pin = None
        matching = {
            id_: one for id_, one in model.items() if condition is None or filter_reference.matches(condition, one, id_)
        }
        wanted = in_order(matching, field, descending)
        if pinned:
            replica.apply(log.add(PinScan("c", 5, 0, 1 << 60, 9)))
            pin = (len(log.entries), 5)
            for one in then[half:]:
                write(*one)
        found = []
        for which in range(of):
            read = pages(replica, field, where, limit, pin, of, which, descending)
            share = [one.id for page in read for one in page]
            assert share == [id_ for id_ in wanted if id_ in set(share)]
            found += share
        assert sorted(found) == sorted(wanted)
        replica.close()


LONG = "https://example.org/a/path/that/many/documents/share/and/more"
VALUES: list[Any] = [
    5, 5.0, 4.5, -0.0, 2**53 + 1, float(2**53), 2**63, 2**64 - 1, 2**64, 10**400, -(10**400), 1e300, -1e300,
    "", "a", "a\x00b", "ab", "é", LONG, LONG + "1", LONG[:47], LONG[:50], LONG[:46] + "z", LONG[:46], True, False, None,
    [], {}, [7], ["b", 6], ["b", True], [None, "c"], [{"x": 1}], [[3]], ["a\x00", "zz"], [2**70, "y"], [5, 5, 9],
]  # fmt: skip


@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("bounds", [(0, 1, 0), (0, 2, 3), (0, 1000, 1000), (1000, 1, 1)])
def test_every_kind_of_value_has_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: Any, descending: bool
) -> None:
    monkeypatch.setattr(ordered_scan, "READ_ALL", bounds[0])
    monkeypatch.setattr(ordered_scan, "PART_MAX", bounds[1])
    monkeypatch.setattr(scans, "READ_MAX", bounds[2])
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec())))
    rows = {f"d{n:02}": {"a": value} for n, value in enumerate([*VALUES, *reversed(VALUES)])} | {
        "none": {},
        "null": None,
    }
    replica.apply(log.add(put(list(rows), [[1, 2, 3]] * len(rows), list(rows.values()))))
    wanted = in_order(rows, "a", descending)
    for limit in (1, 4, 1000):
        read = pages(replica, "a", limit=limit, descending=descending)
        assert [one.id for page in read for one in page] == wanted
    replica.close()


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """300 documents with 30 different values, more than are sorted without an index."""
    monkeypatch.setattr(ordered_scan, "READ_ALL", 20)
    monkeypatch.setattr(ordered_scan, "PART_MAX", 16)
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec())))
    rows = [{"n": n % 30, "other": n} for n in range(300)]
    replica.apply(log.add(put([f"d{n:03}" for n in range(300)], [[1, 2, 3]] * 300, rows, expires=[5] * 300)))
    yield replica, log
    replica.close()


def test_who_is_changed_elsewhere_while_a_scan_goes_on_is_read_exactly_once(filled: tuple[Replica, Log]) -> None:
    replica, log = filled
    found = []
    for n, page in enumerate(pages(replica, "n", limit=40)):
        found += [one.id for one in page]
        assert all(one.expires == 5 for one in page if one.version == 2)
        replica.apply(log.add(Patch("c", [f"d{at:03}" for at in range(300)], Change(set=[("other", b"%d" % n)]))))
    assert found == [f"d{at:03}" for at in sorted(range(300), key=lambda at: (at % 30, at))]


def test_what_changes_between_choosing_and_reading_is_read_as_it_is_then(
    filled: tuple[Replica, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, log = filled
    chosen = ordered_scan.Ordered.chosen

    def meanwhile(self: Any, *args: Any) -> Any:
        result = chosen(self, *args)
        replica.apply(log.add(Patch("c", ["d000"], Change(set=[("other", b'"new"')]))))
        replica.apply(log.add(Patch("c", ["d030"], Change(set=[("n", b"29")])), Delete("c", ["d060"])))
        replica.apply(log.add(Patch("c", ["d150"], Change(set=[("n", b"0.5")]))))
        return result

    monkeypatch.setattr(ordered_scan.Ordered, "chosen", meanwhile)
    page = next(pages(replica, "n", limit=11))
    assert [one.id for one in page] == [
        "d000",
        *(f"d{at:03}" for at in range(90, 300, 30) if at != 150),
        "d150",
        "d001",
    ]
    assert json.loads(page[0].metadata)["other"] == "new"


@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
def test_a_page_reads_about_what_it_holds(
    filled: tuple[Replica, Log], monkeypatch: pytest.MonkeyPatch, descending: bool
) -> None:
    replica, _ = filled
    list(pages(replica, "n", limit=300))
    read = []
    by_ordinal = type(replica.view.store).by_ordinal

    def noted(store: Any, collection: int, ordinals: Any, **how: Any) -> Any:
        read.extend(ordinals)
        return by_ordinal(store, collection, ordinals, **how)

    monkeypatch.setattr(type(replica.view.store), "by_ordinal", noted)
    assert len(next(pages(replica, "n", limit=10, descending=descending))) == 10
    assert len(read) <= 40
    read.clear()
    only = Filter.parse({"other": {"$lt": 15}}).to_json()
    assert [one.id for page in pages(replica, "n", only, 100) for one in page] == [f"d{n:03}" for n in range(15)]
    assert len(read) == 15


@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
@pytest.mark.parametrize(
    "value",
    [
        lambda n: n if n % 2 else f"x\0{n:03}",  # no column holds a text with a NUL
        lambda n: list(range(n % 10, 60)),  # everybody has the last values, and stands elsewhere
        lambda n: [n % 10, *(f"t{at:02}" for at in range(40)), False],
    ],
    ids=["odd", "several", "several kinds"],
)
def test_a_page_reads_nobody_twice_whatever_values_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, descending: bool
) -> None:
    monkeypatch.setattr(ordered_scan, "READ_ALL", 20)
    monkeypatch.setattr(ordered_scan, "PART_MAX", 16)
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec())))
    rows = {f"d{n:03}": {"n": value(n)} for n in range(300)}
    replica.apply(log.add(put(list(rows), [[1, 2, 3]] * 300, list(rows.values()))))
    wanted = in_order(rows, "n", descending)
    assert [one.id for one in next(pages(replica, "n", limit=300, descending=descending))] == wanted
    read = []
    by_ordinal = type(replica.view.store).by_ordinal

    def noted(store: Any, collection: int, ordinals: Any, **how: Any) -> Any:
        read.extend(ordinals)
        return by_ordinal(store, collection, ordinals, **how)

    monkeypatch.setattr(type(replica.view.store), "by_ordinal", noted)
    found = []
    for page in pages(replica, "n", limit=100, descending=descending):
        found += [one.id for one in page]
        assert len(read) <= 300
        read.clear()
    assert found == wanted
    replica.close()


def test_where_there_is_no_room_for_the_index_it_is_refused_with_what_to_do(filled: tuple[Replica, Log]) -> None:
    replica, _ = filled
    payload = replica.view.collection("c").payload
    payload.close()
    with pytest.raises(InvalidArgument, match="create_field_index"):
        next(pages(replica, "n"))
    few = Filter.ids(["d001", "d031", "d000"]).to_json()  # no index is needed for these
    assert [one.id for page in pages(replica, "n", few) for one in page] == ["d000", "d001", "d031"]


def test_a_pin_that_has_ended_shows_nothing_more(filled: tuple[Replica, Log]) -> None:
    replica, log = filled
    replica.apply(log.add(PinScan("c", 5, 0, 1 << 60, 9)))
    pin = (len(log.entries), 5)
    begun = pages(replica, "n", limit=10, pin=pin)
    assert len(next(begun)) == 10
    replica.apply(log.add(EndPins([pin[0]])))
    with pytest.raises(ScanEnded):
        next(begun)


@pytest.mark.parametrize(
    "key",
    [(0, None), (0, b"x"), (0, float("nan")), (0, 2**64), (1, 5), (1, b"x" * 48), (2, 2), (3, 1), (4, None), (-1, 1)],
)
def test_a_key_that_nobody_was_given_is_known_for_one(key: Any) -> None:
    assert not ScanOrder("n", key).known()


def test_keys_are_bounded() -> None:
    long = key_of({"a": "x" * 1000}, ["a"])
    assert long == (1, b"x" * HEAD_BYTES) and ScanOrder("a", long).known() and ScanOrder("a", START).known()
    assert key_of({"a": [None, "b", 5, True]}, ["a"]) == (0, 5)
    assert key_of({"a": -(10**400)}, ["a"]) == (0, float("-inf"))
