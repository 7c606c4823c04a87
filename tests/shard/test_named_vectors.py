"""Named vectors of documents in one replica: what is stored, found, kept and dropped (docs/adr/0118)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from needle.base.config import SegmentConfig
from needle.base.errors import CollectionNotFound, InvalidArgument, NeedleError, ScanEnded, VersionMismatch
from needle.base.filters.ordering import ScanOrder
from needle.base.model import Claim, CollectionSpec, Metric, SearchRequest, VectorSpec, WriteResult
from needle.protocol.commands import (
    Bound,
    Change,
    ChangeWhere,
    CreateCollection,
    Delete,
    DropCollection,
    EndPins,
    Expire,
    Insert,
    Named,
    Patch,
    PinScan,
    UpdateVectors,
)
from needle.protocol.move_commands import Forget, Freeze, Own, PrepareMove, Release
from needle.routing.ranges import fingerprint
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import RANGE
from needle.server.upkeep.range_copy import _command as imports
from needle.shard import copying
from needle.shard.named_reads import Wanted, get_named, scan_named
from needle.shard.plan import BuildTask, plan
from needle.shard.reads import Page
from needle.shard.segments.growing import GrowingSegment
from needle.shard.several import Member, Members, Several, Together, search_several
from needle.shard.sizes import sizes_of
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec
from shard.test_several import untimed

TITLE = "c/title"
TITLE_FORM = VectorSpec(dimensions=2, metric=Metric.L2).stored_as(TITLE).form
PAGE = Page("c", b"", "", 10, True)


def made(log: Log, replica: Replica) -> None:
    title = VectorSpec(dimensions=2, metric=Metric.L2).stored_as(TITLE, "c")
    assert not any(isinstance(one, NeedleError) for one in apply(log, replica, CreateCollection(spec())))
    assert not any(isinstance(one, NeedleError) for one in apply(log, replica, CreateCollection(title)))


def apply(log: Log, replica: Replica, *commands: Any) -> list[Any]:
    return replica.apply(log.add(*commands))


def title(rows: list[int], *vectors: list[float]) -> list[Named]:
    return [Named(TITLE, rows, floats(*vectors))]


def found(replica: Replica, vector: list[float], k: int = 10, **kw: Any) -> list[str]:
    request = SearchRequest(collection="c", vector=floats(vector), k=k, vector_name=TITLE, **kw)
    batch = replica.search(request)
    if replica.view.fence is None:  # as one of several replicas it finds the same
        hosted: Any = SimpleNamespace(replica=replica, stopping=False)
        [both] = search_several([Several(request, Members([Member(hosted, Claim(0, 0))]))], lambda _: True, untimed)
        assert isinstance(both, Together) and both.hits == batch
    return batch.ids


def stored(replica: Replica, *ids: str) -> dict[str, list[float]]:
    documents, named = get_named(replica.reads(), Wanted("c", list(ids), True, [TITLE]), None, b"")
    told: dict[str, list[float]] = {}
    for one in named:
        rows = np.frombuffer(one.vectors, "<f4").reshape(len(one.rows), -1)
        told = {documents[at].id: row.tolist() for at, row in zip(one.rows, rows, strict=True)}
    return told


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def replica(tmp_path: Path, log: Log) -> Replica:
    replica = open_replica(tmp_path)
    made(log, replica)
    return replica


def n_is(**how: int) -> bytes:
    ((operator, value),) = how.items()
    return json.dumps({"n": {f"${operator}": value}}).encode()


THREE = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]


def test_documents_without_the_vector_are_no_hits(log: Log, replica: Replica) -> None:
    apply(log, replica, put(["a", "b", "x"], THREE, named=title([0, 2], [5, 5], [1, 1])))
    assert found(replica, [0, 0]) == ["x", "a"]
    assert found(replica, [0, 0], exact=True) == ["x", "a"]
    assert stored(replica, "a", "b", "x") == {"a": [5, 5], "x": [1, 1]}
    assert replica.count("c") == 3 and replica.count() == 3
    assert [s.name for s, _ in replica.counts()] == ["c"]


def test_metadata_and_the_other_vector_change_and_the_named_one_stays(log: Log, replica: Replica) -> None:
    apply(log, replica, put(["a", "b"], THREE[:2], [{"n": 1}, {"n": 2}], named=title([0, 1], [5, 5], [1, 1])))
    apply(log, replica, Patch("c", ["a"], Change(set=[("n", b"3")])))
    apply(log, replica, UpdateVectors("c", ["b"], floats([9, 9, 9])))
    assert found(replica, [0, 0]) == ["b", "a"]
    assert found(replica, [0, 0], filter=n_is(eq=3)) == ["a"]
    assert found(replica, [0, 0], filter=n_is(eq=2)) == ["b"]
    assert stored(replica, "a", "b") == {"a": [5, 5], "b": [1, 1]}


def test_a_document_that_is_replaced_or_deleted_loses_its_vector(log: Log, replica: Replica) -> None:
    apply(log, replica, put(["a", "b", "x"], THREE, named=title([0, 1, 2], [5, 5], [1, 1], [2, 2])))
    apply(log, replica, put(["a"], [[1, 1, 1]]), Delete("c", ["b"]))
    assert found(replica, [0, 0]) == ["x"]
    assert stored(replica, "a", "b", "x") == {"x": [2, 2]}
    apply(log, replica, put(["a"], [[1, 1, 1]], named=title([0], [3, 3])))
    assert found(replica, [0, 0]) == ["x", "a"]


def test_a_vector_is_filled_in_unless_the_document_was_changed(log: Log, replica: Replica) -> None:
    (first,) = apply(log, replica, put(["a"], THREE[:1], [{"n": 1}]))
    (done,) = apply(log, replica, UpdateVectors("c", ["a"], floats([4, 4]), first.version, name=TITLE))
    assert done.count == 1 and stored(replica, "a") == {"a": [4, 4]}
    (late,) = apply(log, replica, UpdateVectors("c", ["a"], floats([7, 7]), first.version, name=TITLE))
    assert isinstance(late, VersionMismatch) and stored(replica, "a") == {"a": [4, 4]}
    (document,) = replica.get("c", ["a"], True)
    assert (
        document.version == done.version and document.vector == floats([1, 0, 0]) and document.metadata == b'{"n": 1}'
    )
    (none,) = apply(log, replica, UpdateVectors("c", ["nobody"], floats([7, 7]), name=TITLE))
    assert none.count == 0 and found(replica, [0, 0]) == ["a"]


def test_a_vector_is_taken_away_and_all_else_stays(log: Log, replica: Replica) -> None:
    named = title([0, 1], [5, 5], [1, 1])
    (first,) = apply(log, replica, put(["a", "b", "x"], THREE, [{"n": 1}] * 3, named=named))
    (late,) = apply(log, replica, UpdateVectors("c", ["a"], b"", first.version - 1, name=TITLE, gone=True))
    assert isinstance(late, VersionMismatch) and found(replica, [0, 0]) == ["b", "a"]
    (done,) = apply(log, replica, UpdateVectors("c", ["a", "x", "nobody"], b"", name=TITLE, gone=True))
    assert (done.count, found(replica, [0, 0]), stored(replica, "a", "b", "x")) == (1, ["b"], {"b": [1, 1]})
    a, x = replica.get("c", ["a", "x"], True)
    assert (a.version, a.vector, a.metadata) == (done.version, floats([1, 0, 0]), b'{"n": 1}')
    assert x.version == first.version  # it had none
    (none,) = apply(log, replica, UpdateVectors("c", ["a"], b"", name="c/other", gone=True))
    assert isinstance(none, CollectionNotFound)
    for wrong in ({"name": ""}, {"vectors": floats([1, 1])}):
        command = UpdateVectors(**({"collection": "c", "ids": ["a"], "vectors": b"", "name": TITLE} | wrong), gone=True)
        with pytest.raises(InvalidArgument, match="vectors"):
            replica.validate(command)


def test_what_does_not_fit_is_refused_and_nothing_changes(log: Log, replica: Replica) -> None:
    before = replica.digest()
    for wrong, error in (
        (put(["a"], THREE[:1], named=[Named("c/other", [0], floats([1, 1]))]), CollectionNotFound),
        (put(["a"], THREE[:1], named=title([0], [1, 1, 1])), InvalidArgument),
        (put(["a"], THREE[:1], named=title([1], [1, 1])), InvalidArgument),
        (put(["a", "b"], THREE[:2], named=title([1, 0], [1, 1], [2, 2])), InvalidArgument),
        (put(["a"], THREE[:1], named=[*title([0], [1, 1]), *title([0], [1, 1])]), InvalidArgument),
        (UpdateVectors("c", ["a"], floats([1, 1, 1]), name=TITLE), InvalidArgument),
        (UpdateVectors("c", ["a"], floats([1, 1]), name="c/other"), CollectionNotFound),
    ):
        with pytest.raises(error):
            replica.validate(wrong)
        (refused,) = apply(log, replica, wrong)
        assert isinstance(refused, error), wrong
        assert replica.digest() == before


NOT_OF_BOB = json.dumps({"owner": {"$ne": "bob"}}).encode()


def test_rows_of_a_vector_are_no_documents_to_write_to(log: Log, replica: Replica) -> None:
    apply(log, replica, put(["a", "b"], THREE[:2], [{"owner": "bob"}, {}], named=title([0, 1], [5, 5], [1, 1])))
    before, change = replica.digest(), Change(set=[("n", b"3")])
    for wrong in (
        Insert(TITLE, ["new"], floats([0, 0]), [b""]),
        Insert(TITLE, ["a"], floats([0, 0]), [b""], matches=NOT_OF_BOB),
        Delete(TITLE, ["a"]),
        Delete(TITLE, ["a"], matches=NOT_OF_BOB, bound=Bound(NOT_OF_BOB, 3)),
        Patch(TITLE, ["a"], change),
        UpdateVectors(TITLE, ["a"], floats([0, 0])),
        ChangeWhere(TITLE, b"{}", None),
        ChangeWhere(TITLE, b"{}", change),
        PinScan(TITLE, 7, 0, 10**15, 9),
    ):
        with pytest.raises(CollectionNotFound):
            replica.validate(wrong)
        (refused,) = apply(log, replica, wrong)
        assert isinstance(refused, CollectionNotFound), wrong
        assert replica.digest() == before
    (refused,) = apply(log, replica, Expire(TITLE, 10**15, 10))
    assert isinstance(refused, CollectionNotFound) and replica.digest() == before
    apply(log, replica, Insert(TITLE, ["b"], floats([0, 0]), [b""]), put(["b"], THREE[:1], named=title([0], [9, 9])))
    assert found(replica, [0, 0]) == ["a", "b"] and stored(replica, "a", "b") == {"a": [5, 5], "b": [9, 9]}
    replica.verify()


def test_nothing_is_read_by_the_name_of_a_vector_in_the_shard(log: Log, replica: Replica) -> None:
    """It has no metadata, so what an API key may not see would pass its filter."""
    apply(log, replica, put(["a", "b"], THREE[:2], [{"owner": "bob"}, {}], named=title([0, 1], [5, 5], [1, 1])))
    assert found(replica, [0, 0], bound=NOT_OF_BOB) == ["b"]
    hidden, reads = SearchRequest(collection=TITLE, vector=floats([0, 0]), k=5, bound=NOT_OF_BOB), replica.reads()
    page = Page(TITLE, b"", "", 10, True, bound=NOT_OF_BOB)
    (answer,) = replica.search_many([hidden])
    assert isinstance(answer, CollectionNotFound)
    for read in (
        lambda: replica.search(hidden),
        lambda: reads.get(TITLE, ["a"], True, None, NOT_OF_BOB),
        lambda: replica.scan(page),
        lambda: replica.scan(page._replace(order=ScanOrder("n"))),
        lambda: replica.count(TITLE),
        lambda: replica.count_matching(TITLE, b"", bound=NOT_OF_BOB),
        lambda: reads.value_counts(TITLE, (("owner",), b"", b""), None, lambda: None, None),
    ):
        with pytest.raises(CollectionNotFound):
            read()
    assert replica.counts(only=TITLE) == [] and replica.sizes(only=TITLE) == []


def test_the_state_is_the_same_after_a_restart_and_in_any_batches(tmp_path: Path, log: Log, replica: Replica) -> None:
    rng = np.random.default_rng(5)
    many(log, rng)
    replica.apply(log.entries[2:])
    other = open_replica(tmp_path / "other")
    for entry in log.entries:
        other.apply([entry])
    assert other.digest() == replica.digest()
    assert other.stored_digest() == replica.stored_digest() == (replica.applied_index(), replica.digest())
    asked = [rng.normal(size=2).tolist() for _ in range(20)]
    hits = [found(replica, one, 7) for one in asked]
    assert [found(other, one, 7) for one in asked] == hits
    replica.checkpoint()
    replica.close()
    again = open_replica(tmp_path)
    assert again.digest() == other.digest() and [found(again, one, 7) for one in asked] == hits


def many(log: Log, rng: np.random.Generator) -> None:
    """Writes of all kinds, beside each other."""
    names = [f"d{at}" for at in range(30)]
    for step in range(200):
        some = sorted(set(rng.choice(names, 3).tolist()))
        kind = rng.integers(5)
        if kind < 2:
            rows = [at for at in range(len(some)) if rng.random() < 0.6]
            named = title(rows, *rng.normal(size=(len(rows), 2)).tolist()) if rows else []
            log.add(put(some, rng.normal(size=(len(some), 3)).tolist(), [{"n": step}] * len(some), named=named))
        elif kind == 2:
            log.add(Patch("c", some, Change(set=[("n", str(step).encode())])))
        elif kind == 3 and step % 4 == 0:
            log.add(UpdateVectors("c", some, b"", name=TITLE, gone=True))
        elif kind == 3:
            log.add(UpdateVectors("c", some, floats(*rng.normal(size=(len(some), 2)).tolist()), name=TITLE))
        else:
            log.add(Delete("c", some[:1]))


def test_a_model_of_it(tmp_path: Path, log: Log, replica: Replica) -> None:
    """Each document has the vector that it was given last since it was inserted as a whole."""
    rng, model = np.random.default_rng(9), dict[str, tuple[int, list[float] | None]]()
    names = [f"d{at}" for at in range(12)]
    for step in range(300):
        id_, kind = str(rng.choice(names)), rng.integers(6)
        vector = np.float32(rng.normal(size=2)).tolist()
        if kind == 0:
            apply(log, replica, put([id_], [[1, 1, 1]], [{"n": step}], named=title([0], vector)))
            model[id_] = (step, vector)
        elif kind == 1:
            apply(log, replica, put([id_], [[1, 1, 1]], [{"n": step}]))
            model[id_] = (step, None)
        elif kind == 2:
            apply(log, replica, Patch("c", [id_], Change(set=[("n", str(step).encode())])))
            if id_ in model:
                model[id_] = (step, model[id_][1])
        elif kind == 3:
            apply(log, replica, UpdateVectors("c", [id_], floats(vector), name=TITLE))
            if id_ in model:
                model[id_] = (model[id_][0], vector)
        elif kind == 4:
            (done,) = apply(log, replica, UpdateVectors("c", [id_], b"", name=TITLE, gone=True))
            assert done.count == (id_ in model and model[id_][1] is not None)
            if id_ in model:
                model[id_] = (model[id_][0], None)
        else:
            apply(log, replica, Delete("c", [id_]))
            model.pop(id_, None)
        if step % 10 == 0:
            there = {name: vector for name, (_, vector) in model.items() if vector is not None}
            assert stored(replica, *names) == there
            query = rng.normal(size=2)
            near = sorted(there, key=lambda name: float(np.linalg.norm(np.array(there[name]) - query)))
            assert found(replica, query.tolist()) == near[:10]
            few = n_is(lte=step // 2)
            assert set(found(replica, query.tolist(), filter=few)) == {
                name for name in near if model[name][0] <= step // 2
            }


def test_a_pinned_scan_ends_when_a_vector_is_dropped(log: Log, replica: Replica) -> None:
    """Its further pages had the documents without it, and with none of those that it got under the same name."""
    apply(log, replica, put(["a"], THREE[:1], named=title([0], [1, 1])))
    apply(log, replica, CreateCollection(msgspec.structs.replace(spec(), name="other")))
    (pin, other) = apply(log, replica, PinScan("c", 7, 0, 1 << 60, 4), PinScan("other", 8, 0, 1 << 60, 4))
    page = PAGE._replace(pin=(pin.version, 7))
    _, (named,) = scan_named(replica.reads(), page, [TITLE], None, lambda: None, None)
    assert np.frombuffer(named.vectors, "<f4").tolist() == [1, 1]
    made_again = VectorSpec(dimensions=2, metric=Metric.L2).stored_as(TITLE, "c")
    apply(log, replica, DropCollection(TITLE), CreateCollection(made_again))
    with pytest.raises(ScanEnded, match="or a named vector of it"):
        scan_named(replica.reads(), page, [TITLE], None, lambda: None, None)
    assert [one.index for one in replica.view.pins.open] == [other.version]
    replica.checkpoint()
    replica.verify()


def test_dropped_with_its_collection_and_alone(log: Log, replica: Replica) -> None:
    apply(log, replica, put(["a"], THREE[:1], named=title([0], [1, 1])))
    apply(log, replica, DropCollection(TITLE))
    with pytest.raises(CollectionNotFound):
        found(replica, [0, 0])
    assert replica.get("c", ["a"], True)
    made_again = VectorSpec(dimensions=4, metric=Metric.L2).stored_as(TITLE, "c")
    apply(log, replica, CreateCollection(made_again))
    request = SearchRequest(collection="c", vector=floats([0, 0, 0, 0]), k=3, vector_name=TITLE)
    assert replica.search(request).ids == []
    apply(log, replica, DropCollection("c"))
    assert replica.collections() == []
    (refused,) = apply(log, replica, CreateCollection(made_again))
    assert isinstance(refused, CollectionNotFound)


def test_scans_give_them(log: Log, replica: Replica) -> None:
    apply(log, replica, put(["a", "b", "x"], THREE, named=title([0, 2], [5, 5], [1, 1])))
    scanned, (named,) = scan_named(replica.reads(), PAGE, [TITLE], None, lambda: None, None)
    assert [one.id for one in scanned.documents] == ["a", "b", "x"] and named.rows == [0, 2]
    with pytest.raises(CollectionNotFound, match="no vector"):
        scan_named(replica.reads(), PAGE, ["c/other"], None, lambda: None, None)


def test_a_name_that_is_asked_for_often_comes_once(log: Log, replica: Replica) -> None:
    """A call has room for a million names: what it got for each of them took the node's memory."""
    apply(log, replica, put(["a"], THREE[:1], named=title([0], [5, 5])))
    _, scanned = scan_named(replica.reads(), PAGE, [TITLE] * 1000, None, lambda: None, None)
    _, got = get_named(replica.reads(), Wanted("c", ["a"], True, [TITLE] * 1000), None, b"")
    assert scanned == got == [Named(TITLE, [0], floats([5, 5]))]


def test_a_pinned_scan_sees_the_vectors_of_its_moment(log: Log, replica: Replica) -> None:
    apply(log, replica, put(["a", "b", "x"], THREE, named=title([0, 1, 2], [5, 5], [6, 6], [1, 1])))
    (pin,) = apply(log, replica, PinScan("c", 7, 0, 1 << 60, 4))
    apply(log, replica, Patch("c", ["a"], Change(set=[("n", b"3")])), put(["b"], THREE[:1]), Delete("c", ["x"]))
    apply(log, replica, UpdateVectors("c", ["a"], floats([9, 9]), name=TITLE))
    replica.checkpoint()  # which purges what nobody sees
    page = PAGE._replace(pin=(pin.version, 7))
    scanned, (named,) = scan_named(replica.reads(), page, [TITLE], None, lambda: None, None)
    assert [one.id for one in scanned.documents] == ["a", "b", "x"]
    assert np.frombuffer(named.vectors, "<f4").tolist() == [5, 5, 6, 6, 1, 1]
    assert stored(replica, "a", "b", "x") == {"a": [9, 9]}
    apply(log, replica, EndPins([pin.version]))
    replica.tidy(all_of_it=True)
    replica.checkpoint()
    with replica._store.reading() as connection:  # nothing else shows dead rows
        assert connection.execute("SELECT count(*) FROM vectors").fetchone()[0] == 3


def test_rows_of_replaced_vectors_are_purged(log: Log, replica: Replica) -> None:
    for n in range(5):
        apply(log, replica, put(["a"], [[n, 0, 0]], named=title([0], [n, n])))
    replica.checkpoint()
    with replica._store.reading() as connection:  # nothing else shows dead rows
        assert connection.execute("SELECT count(*) FROM vectors").fetchone()[0] == 2
        assert connection.execute("SELECT count(*) FROM documents").fetchone()[0] == 2
    assert stored(replica, "a") == {"a": [4, 4]}


def test_with_vectors_gives_the_vectors_that_were_searched(log: Log, replica: Replica) -> None:
    apply(log, replica, put(["a", "b"], THREE[:2], named=title([0, 1], [5, 5], [1, 1])))
    request = SearchRequest(collection="c", vector=floats([0, 0]), k=2, vector_name=TITLE, with_vectors=True)
    batch = replica.search(request)
    assert np.frombuffer(batch.vectors, "<f4").tolist() == [1, 1, 5, 5]


def test_metrics_are_their_own(tmp_path: Path) -> None:
    log, replica = Log(), open_replica(tmp_path)
    apply(log, replica, CreateCollection(CollectionSpec(name="c", dimensions=3, metric=Metric.L2)))
    apply(log, replica, CreateCollection(VectorSpec(dimensions=2, metric=Metric.COSINE).stored_as(TITLE, "c")))
    command = replica.validate(put(["a"], [[3, 0, 0]], named=title([0], [3, 4])))
    apply(log, replica, command)
    request = SearchRequest(collection="c", vector=floats([3, 4]), k=2, vector_name=TITLE)
    batch = replica.search(request)
    assert batch.metric is Metric.COSINE and batch.distances[0] == pytest.approx(0, abs=1e-6)


# --- moves of key ranges ----------------------------------------------------------------------------------------------
MOVED: list[KeyRange] = [(b"m", None)]


class Shard:
    """A replica with its log. The target of a move owns nothing at first, and is younger."""

    def __init__(self, directory: Path, written: bool) -> None:
        self.log, self.replica = Log(), open_replica(directory)
        made(self.log, self.replica)
        for n in range(5 if written else 0):
            named = title([0, 1], [n, 1], [n, 2])
            self.done(put([f"a{n}", f"m{n}"], [[n, 0, 0], [0, n, 1]], [{"n": n}, {"n": n}], named=named))

    def done(self, *commands: Any) -> WriteResult:
        result = apply(self.log, self.replica, *commands)[-1]
        assert isinstance(result, WriteResult), result
        return result

    def found(self, owned: list[KeyRange]) -> set[str]:
        claim = Claim(fingerprint(owned), 0)
        return set(found(self.replica, [0, 0], 100, claim=claim)) | set(
            found(self.replica, [0, 0], 100, claim=claim, filter=n_is(gte=0))
        )


def test_what_is_copied_for_a_move_has_them(tmp_path: Path) -> None:
    source, target = Shard(tmp_path / "source", True), Shard(tmp_path / "target", False)
    source.done(Patch("c", ["m1"], Change(set=[("n", b"7")])), put(["m2"], [[1, 1, 1]], [{"n": 2}]))
    source.done(PrepareMove(9, 9, False, MOVED, [(b"", None)], RANGE, 2))
    target.done(PrepareMove(9, 9, True, MOVED, [], RANGE, 2))
    floor = source.done(Freeze(9)).version
    rows, reached, _ = copying.page(source.replica.view, "c", MOVED, -1, 1000)
    assert {row.id for row in rows} == {f"m{n}" for n in range(5)}
    info: Any = SimpleNamespace(id=9)
    target.done(imports(info, 0, "c", reached, rows, []))
    assert target.found([]) == set()
    source.done(Release(9))
    assert source.found([(b"", b"m")]) == {f"a{n}" for n in range(5)}
    target.done(Own(9, 1, floor))
    assert target.found(MOVED) == {"m0", "m1", "m3", "m4"}
    assert stored(target.replica, "m0", "m1", "m2", "m3", "m4") == {f"m{n}": [n, 2] for n in (0, 1, 3, 4)}
    while source.done(Forget(9, 2)).count:
        assert source.found([(b"", b"m")]) == {f"a{n}" for n in range(5)}
    assert source.replica.view.collections[TITLE].record.documents == 5
    for shard in (source, target):
        assert shard.replica.stored_digest()[1] == shard.replica.digest()


def test_what_a_view_does_not_know_is_not_copied_without_its_vectors(tmp_path: Path) -> None:
    """A name that came after the view: its documents would be copied without their vectors, and not again."""
    log, replica = Log(), open_replica(tmp_path)
    apply(log, replica, CreateCollection(spec()), put(["m1"], THREE[:1]))
    apply(log, replica, PrepareMove(9, 9, False, MOVED, [(b"", None)], RANGE, 2))
    view = replica.view
    apply(log, replica, CreateCollection(VectorSpec(dimensions=2, metric=Metric.L2).stored_as(TITLE, "c")))
    apply(log, replica, put(["m2"], THREE[:1], named=title([0], [1, 1])))
    rows, reached, _ = copying.page(view, "c", MOVED, -1, 1000)
    assert [row.id for row in rows] == ["m1"]
    rows, _, _ = copying.page(replica.view, "c", MOVED, reached, 1000)
    assert [(row.id, len(row.named)) for row in rows] == [("m2", 1)]


# --- builds ----------------------------------------------------------------------------------------------------------
def test_a_build_counts_rows_where_few_ordinals_have_one() -> None:
    growing = GrowingSegment(TITLE_FORM)
    for first in range(1_000_000, 1_010_000, 1000):
        ordinals = np.arange(first, first + 1000, 10, dtype=np.int64)
        growing = growing.appended(ordinals, np.zeros((100, 2), np.float32))
    growing = growing.without(np.array([1_000_000, 1_000_020], np.int64))
    assert growing.ordinal_of(0, 0) == 1_000_010 and growing.ordinal_of(1, 0) == 1_000_030
    assert growing.ordinal_of(0, 1_005_001) == 1_005_010
    assert growing.ordinal_of(997, 0) == 1_009_990
    config = SegmentConfig(seal_rows=100, rows_max=500)
    task = plan(
        [], 1_010_000, 998, config, dimensions=2, quiet=False, ordinal_of=lambda row: growing.ordinal_of(row, 0)
    )
    assert task == BuildTask(0, growing.ordinal_of(499, 0), None, 500)


class _Looked:
    """Collections of a view, and how often all of them were looked through."""

    def __init__(self, held: Any) -> None:
        self.held, self.times = held, 0

    def items(self) -> Any:
        self.times += 1
        return self.held.items()

    def __getitem__(self, name: str) -> Any:
        return self.held[name]

    def __len__(self) -> int:
        return len(self.held)


def test_a_view_knows_the_vectors_of_each_collection(tmp_path: Path, log: Log, replica: Replica) -> None:
    """Describing all collections looked for the vectors of each among all of them."""
    other = VectorSpec(dimensions=2, metric=Metric.L2).stored_as("c/abstract", "c")
    apply(log, replica, CreateCollection(other), CreateCollection(msgspec.structs.replace(spec(), name="d")))

    def called(of: Replica) -> dict[str, list[str]]:
        view = of.view
        assert view.collection_count == len(view.named())
        return {one.record.spec.name: [v.record.spec.name for v in view.vectors_of(one)] for one in view.named()}

    assert called(replica) == {"c": ["c/abstract", TITLE], "d": []}
    looked = _Looked(replica.view.collections)
    assert len(sizes_of(dataclasses.replace(replica.view, collections=looked), "")) == 2 and looked.times == 1
    assert dataclasses.replace(replica.view, collections=looked).collection_count == 2 and looked.times == 1
    apply(log, replica, DropCollection("c/abstract"))
    assert called(replica) == {"c": [TITLE], "d": []}
    replica.close()
    again = open_replica(tmp_path)
    assert called(again) == {"c": [TITLE], "d": []}
    apply(log, again, DropCollection("c"))
    assert called(again) == {"d": []} and not again.view.vectors
