"""The replica against a model of plain dicts and exact search: any commands, batching, restart and power loss."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from needle.base.errors import (
    AlreadyExists,
    CollectionExists,
    CollectionNotFound,
    InvalidArgument,
    NeedleError,
    SessionExpired,
    StorageError,
    Unavailable,
    UnsupportedFormat,
    VersionMismatch,
)
from needle.base.filters.builder import Filter
from needle.base.model import Metric, SearchRequest, WriteResult
from needle.multiraft.ports import Applied
from needle.protocol.commands import (
    FORMAT,
    Change,
    ChangeWhere,
    Command,
    CreateCollection,
    Delete,
    DropCollection,
    OpenSession,
    Patch,
    PublishSegment,
    Session,
    UpdateVectors,
)
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.live_collection import ReplicaView
from needle.shard.query import search_group
from needle.shard.state_machine import Replica
from proof.sim.power import cut_power
from shard.replica_util import Log, floats, open_replica, put, spec

IDS = ["a", "b", "c", "d", "é"]
NAMES = ["c", "k"]
VALUES = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, 3.0]]
CONDITIONS: list[dict[str, Any]] = [{"n": {"$gte": 1}}, {"n": {"$ne": 1}}, {"t": "x"}, {"$or": [{"n": 0}, {"t": None}]}]


class Model:
    """What any replica must hold and answer."""

    def __init__(self) -> None:
        self.docs: dict[str, dict[str, tuple[int, Any, list[float]]]] = {}
        self.sessions: dict[int, dict[int, Any]] = {}
        self.nonces: dict[int, int] = {}

    def apply(self, index: int, command: Command | None) -> Any:
        session = getattr(command, "session", Session())
        if session.id:
            if session.id not in self.sessions:
                return "SessionExpired"
            known = self.sessions[session.id]
            if session.seq not in known:
                known[session.seq] = self.run(index, command)
            return known[session.seq]
        return self.run(index, command)

    def run(self, index: int, command: Any) -> Any:
        if command is None:
            return None
        if isinstance(command, OpenSession):
            session = self.nonces.setdefault(command.nonce, index)
            self.sessions.setdefault(session, {})
            return session, session, False, 1
        if isinstance(command, CreateCollection):
            if command.spec.name in self.docs:
                return (index, index, True, 0) if command.if_absent else "CollectionExists"
            self.docs[command.spec.name] = {}
            return index, index, False, 1
        name = command.name if isinstance(command, DropCollection) else command.collection
        if name not in self.docs:
            return "CollectionNotFound"
        if isinstance(command, DropCollection):
            return index, index, True, len(self.docs.pop(name))
        docs = self.docs[name]
        if isinstance(command, ChangeWhere):
            return self.change_where(index, command, docs)
        for id_ in command.ids:
            actual = docs[id_][0] if id_ in docs else 0
            if command.expected is not None and actual != command.expected:
                return "AlreadyExists" if command.expected == 0 else "VersionMismatch"
        there = [id_ for id_ in dict.fromkeys(command.ids) if id_ in docs]
        condition = Filter.from_json(command.matches or b"{}")
        if not all(condition.matches(docs[id_][1]) for id_ in there):
            return "ConditionFailed"
        if isinstance(command, Patch):
            return self.patch(index, there, command.change, docs)
        existed = len(there)
        if isinstance(command, UpdateVectors):
            rows = dict(zip(command.ids, np.frombuffer(command.vectors, "<f4").reshape(-1, 2).tolist(), strict=True))
            docs.update({id_: (index, docs[id_][1], rows[id_]) for id_ in there})
            return index, index, existed > 0, existed
        if isinstance(command, Delete):
            for id_ in command.ids:
                docs.pop(id_, None)
            return index, index, existed > 0, existed
        vectors = np.frombuffer(command.vectors, "<f4").reshape(-1, 2)
        for id_, metadata, vector in zip(command.ids, command.metadata, vectors, strict=True):
            docs[id_] = (index, decode_metadata(metadata), vector.tolist())
        return index, index, existed > 0, len(command.ids)

    def change_where(self, index: int, command: ChangeWhere, docs: dict[str, Any]) -> Any:
        wanted = Filter.from_json(command.filter)
        ids = [id_ for id_ in docs if wanted.matches(docs[id_][1])]
        if command.change is not None:
            return self.patch(index, ids, command.change, docs)
        for id_ in ids:
            del docs[id_]
        return index, index, bool(ids), len(ids)

    def patch(self, index: int, ids: list[str], change: Change, docs: dict[str, Any]) -> Any:
        made = {}
        for id_ in ids:
            now = dict(docs[id_][1] or {})
            now.update((path, json.loads(value)) for path, value in change.set)
            for path in change.unset:
                now.pop(path, None)
            for path, values in change.append:
                if now.get(path) is not None and not isinstance(now[path], list):
                    return "InvalidArgument"
                now[path] = (now.get(path) or []) + json.loads(values)
            made[id_] = (index, now, docs[id_][2])
        docs.update(made)
        return index, index, bool(ids), len(ids)

    def nearest(self, name: str, query: list[float], k: int, condition: dict[str, Any] | None) -> list[tuple[str, int]]:
        kept = Filter.parse(condition or {})
        scored = [
            (float(np.sum((np.float32(vector) - np.float32(query)) ** 2)), id_, version)
            for id_, (version, metadata, vector) in self.docs[name].items()
            if kept.matches(metadata)
        ]
        return [(id_, version) for _, id_, version in sorted(scored)[:k]]


def outcome(result: Any) -> Any:
    if isinstance(result, WriteResult):
        return result.version, result.index, result.existed, result.count
    return type(result).__name__ if isinstance(result, NeedleError) else result


def check(replica: Replica, model: Model) -> None:
    assert [held.name for held in replica.collections()] == sorted(model.docs)
    for name, docs in model.docs.items():
        assert replica.count(name) == len(docs)
        found = replica.get(name, IDS, True)
        assert {
            d.id: (d.version, decode_metadata(d.metadata), np.frombuffer(d.vector, "<f4").tolist()) for d in found
        } == docs
        for condition in (None, *CONDITIONS):
            for k in (2, 10):
                request = SearchRequest(
                    collection=name, vector=floats([0.5, 0.2]), k=k, exact=True,
                    filter=Filter.parse(condition).to_json() if condition else b"",
                )  # fmt: skip
                hits = replica.search(request)
                assert list(zip(hits.ids, hits.versions, strict=True)) == model.nearest(name, [0.5, 0.2], k, condition)
                assert hits.applied_index == replica.applied_index()
    replica.verify()


metadata = st.fixed_dictionaries({}, optional={"n": st.integers(0, 2), "t": st.sampled_from(["x", "y", None])})
conditions = st.sampled_from([b"", b"", *(Filter.parse(one).to_json() for one in CONDITIONS)])
CHANGES = [
    Change(set=[("n", b"1")]),
    Change(set=[("n", b"2"), ("t", b'"y"')]),
    Change(unset=["n"]),
    Change(set=[("n", b"0")], unset=["t"], append=[("more", b"[1]")]),
    Change(append=[("t", b'["x"]')]),
]
changes = st.sampled_from(CHANGES)
sessions = st.one_of(st.just(Session()), st.builds(Session, st.sampled_from([1, 3]), st.integers(1, 4), st.just(0)))


@st.composite
def commands(draw: st.DrawFn) -> Command | None:
    kind = draw(
        st.sampled_from(
            [
                "put",
                "put",
                "put",
                "put",
                "patch",
                "patch",
                "vectors",
                "where",
                "delete",
                "create",
                "drop",
                "open",
                "none",
            ]
        )
    )
    name, session = draw(st.sampled_from(["c", "c", "k"])), draw(sessions)
    if kind == "put":
        ids = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True))
        rows = [draw(st.sampled_from(VALUES)) for _ in ids]
        values = [draw(st.none() | metadata) for _ in ids]
        expected = draw(st.sampled_from([None, None, None, 0, 4]))
        return put(ids, rows, values, collection=name, expected=expected, session=session, matches=draw(conditions))
    if kind == "patch":
        ids = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=4))
        expected = draw(st.sampled_from([None, None, None, 4]))
        return Patch(name, ids, draw(changes), expected, session, matches=draw(conditions))
    if kind == "vectors":
        ids = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True))
        rows = floats(*[draw(st.sampled_from(VALUES)) for _ in ids])
        return UpdateVectors(name, ids, rows, draw(st.sampled_from([None, None, 4])), session, matches=draw(conditions))
    if kind == "where":
        return ChangeWhere(name, draw(conditions) or b"{}", draw(st.none() | changes), session=session)
    if kind == "delete":
        ids = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=3, unique=True))
        return Delete(name, ids, draw(st.sampled_from([None, None, 5])), session, matches=draw(conditions))
    if kind == "create":
        return CreateCollection(spec(name, 2), draw(st.booleans()), session)
    if kind == "drop":
        return DropCollection(name, session)
    return OpenSession(draw(st.integers(0, 2))) if kind == "open" else None


START: list[Command | None] = [OpenSession(0), CreateCollection(spec("c", 2)), OpenSession(2**61)]


def run_log(replica: Replica, log: list[Applied], rng: random.Random, sizes: int) -> list[Any]:
    """Apply what the replica lacks, in batches of random size, with checkpoints in between."""
    results: list[Any] = []
    at = replica.applied_index()
    while at < len(log):
        batch = log[at : at + rng.randint(1, sizes)]
        results += replica.apply(batch)
        at += len(batch)
        if rng.random() < 0.3:
            assert replica.checkpoint() == at
    return results


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.lists(commands(), max_size=40), st.integers(0, 2**32))
def test_any_history_equals_the_model_across_batching_restarts_and_power_loss(history: list[Any], seed: int) -> None:
    rng, model, log = random.Random(seed), Model(), Log()
    log.add(*START, *history)
    expected = [model.apply(at + 1, command) for at, command in enumerate([*START, *history])]
    root = Path(tempfile.mkdtemp())

    def commit() -> int:
        return rng.choice([1, 4, 1024])

    try:
        steady = open_replica(root / "steady", commit=commit())
        assert [outcome(result) for result in run_log(steady, log.entries, rng, 8)] == expected
        check(steady, model)

        crashing = open_replica(root / "crashing", commit=commit())
        for _ in range(4):
            upto = rng.randint(crashing.applied_index(), len(log.entries))
            run_log(crashing, log.entries[:upto], rng, 5)
            if rng.random() < 0.5:
                durable = crashing.checkpoint()
                run_log(crashing, log.entries[: rng.randint(durable, len(log.entries))], rng, 3)
            else:
                durable = 0
            cut_power(str(root / "crashing"), crashing.close, lambda size: rng.randint(0, size))
            crashing = open_replica(root / "crashing", commit=commit())
            assert crashing.applied_index() >= durable
            crashing.verify()
        run_log(crashing, log.entries, rng, 5)
        check(crashing, model)
        assert crashing.digest() == steady.digest()
        assert crashing.sessions.rows() == steady.sessions.rows()

        crashing.close()
        crashing = open_replica(root / "crashing", commit=commit())
        assert crashing.digest() == steady.digest()
        assert crashing.sessions.rows() == steady.sessions.rows()
        check(crashing, model)
        crashing.close()
        steady.close()
    finally:
        shutil.rmtree(root)


def test_digest_tells_every_kind_of_difference_apart(tmp_path: Path) -> None:
    base = [CreateCollection(spec()), put(["a"], [[1, 2, 3]], [{"n": 1}])]
    variants: list[list[Command | None]] = [
        [*base],
        [base[0], put(["b"], [[1, 2, 3]], [{"n": 1}])],
        [base[0], put(["a"], [[1, 2, 4]], [{"n": 1}])],
        [base[0], put(["a"], [[1, 2, 3]], [{"n": 2}])],
        [base[0], None, base[1]],
        [CreateCollection(spec(metric=Metric.DOT)), base[1]],
        [*base, CreateCollection(spec("k"))],
        [*base, Delete("c", ["a"])],
    ]
    digests = []
    for at, variant in enumerate(variants):
        replica, log = open_replica(tmp_path / str(at)), Log()
        replica.apply(log.add(*variant))
        digests.append(replica.digest())
        replica.close()
    assert len(set(digests)) == len(digests)


def test_applied_index_term_and_conf_survive(tmp_path: Path) -> None:
    replica = open_replica(tmp_path)
    assert (replica.applied_index(), replica.applied_term(), replica.conf()) == (0, 0, b"")
    assert replica.apply([Applied(1, 3, b"", b"conf"), Applied(2, 4, b"", None)]) == [None, None]
    replica.close()
    replica = open_replica(tmp_path)
    assert (replica.applied_index(), replica.applied_term(), replica.conf()) == (2, 4, b"conf")
    replica.close()


def test_entries_already_applied_are_skipped(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    entries = log.add(CreateCollection(spec()), put(["a"], [[1, 2, 3]]), put(["a"], [[4, 5, 6]]))
    replica.apply(entries[:2])
    results = replica.apply(entries)
    assert results[:2] == [None, None] and results[2].existed
    assert replica.get("c", ["a"], False)[0].version == 3


def test_refusals_change_nothing_and_name_the_reason(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a"], [[1, 2, 3]])))
    before = replica.digest()
    results = replica.apply(
        log.add(
            put(["a", "b"], [[0, 0, 1]] * 2, expected=0),
            put(["a"], [[0, 0, 1]], expected=9),
            Delete("c", ["a"], 9),
            put(["a"], [[0, 0, 1]], collection="no"),
            put(["b"], [[0, 0, 1, 1]]),
            DropCollection("no"),
            CreateCollection(spec()),
            CreateCollection(spec(dimensions=4), True),
            PublishSegment(99, 0, 0, 1, 1, "0" * 32),
            PublishSegment(1, 5, 9, 5, 1, "0" * 32),
        )
    )
    kinds = [type(result).__name__ for result in results]
    assert kinds == [
        AlreadyExists.__name__, VersionMismatch.__name__, VersionMismatch.__name__,
        CollectionNotFound.__name__, InvalidArgument.__name__, CollectionNotFound.__name__,
        CollectionExists.__name__, CollectionExists.__name__, CollectionNotFound.__name__, InvalidArgument.__name__,
    ]  # fmt: skip
    assert results[0].details["version"] == 2 and results[1].details["actual"] == 2
    assert replica.digest() == before and replica.applied_index() == len(log.entries)
    replica.verify()


@pytest.mark.parametrize("newer", [b"\x09junk", FORMAT + msgspec.msgpack.encode(["new-command", 1])])
def test_an_entry_that_this_release_cannot_read_is_not_passed_over(tmp_path: Path, newer: bytes) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a"], [[1, 2, 3]])))
    before, index = replica.digest(), replica.applied_index()
    (following,) = log.add(put(["b"], [[1, 2, 3]]))
    entries = [Applied(index + 1, 1, newer, None), msgspec.structs.replace(following, index=index + 2)]
    for batch in (entries, entries[1:]):  # nor does what comes after it take effect
        with pytest.raises(UnsupportedFormat):
            replica.apply(batch)
    assert replica.digest() == before and replica.applied_index() == index


def test_a_published_segment_is_replicated_state(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a", "b"], [[1, 2, 3], [4, 5, 6]])))
    (result,) = replica.apply(log.add(PublishSegment(1, 0, 1, 2, 10, "0" * 32)))
    assert isinstance(result, WriteResult)
    replica.close()
    replica = open_replica(tmp_path)
    (vectors,) = replica.held.collection_vectors()
    assert [(s.first, s.last, s.checksum) for s in vectors.manifest()] == [(0, 1, "0" * 32)]
    # Its file is not here: the rows are served exactly meanwhile.
    assert replica.search(SearchRequest(collection="c", vector=floats([4, 5, 6]), k=1)).ids == ["b"]


def test_ties_are_ordered_by_id_even_across_the_edge_of_k(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    names = [f"{at:03d}" for at in range(150)]
    random.Random(1).shuffle(names)
    replica.apply(log.add(CreateCollection(spec()), put(names, [[1, 1, 1]] * 150)))
    for exact in (True, False):
        hits = replica.search(SearchRequest(collection="c", vector=floats([1, 1, 1]), k=10, exact=exact))
        assert hits.ids == [f"{at:03d}" for at in range(10)]


def test_search_many_answers_each_request_by_itself(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a", "b"], [[1, 0, 0], [0, 1, 0]], [{"n": 1}, None])))

    def ask(vector: list[float], **kw: Any) -> SearchRequest:
        return SearchRequest(collection=kw.pop("collection", "c"), vector=floats(vector), k=kw.pop("k", 1), **kw)

    found = replica.search_many(
        [
            ask([1, 0, 0]), ask([0, 1, 0]), ask([float("nan"), 0, 0]), ask([1, 0, 0], collection="no"), ask([1, 0]),
            ask([1, 0, 0], k=0), ask([1, 0, 0], k=10**9), ask([1, 0, 0], filter=b"{"),
            ask([0, 1, 0], filter=Filter.eq("n", 1).to_json(), with_vectors=True), ask([0, 1, 0], with_metadata=False),
        ]
    )  # fmt: skip
    shown = [hit.ids if not isinstance(hit, NeedleError) else type(hit).__name__ for hit in found]
    assert shown == [["a"], ["b"], *["InvalidArgument"], "CollectionNotFound", *["InvalidArgument"] * 4, ["a"], ["b"]]
    assert found[8].vectors == floats([1, 0, 0]) and found[8].metadata == [b'{"n": 1}']  # type: ignore[union-attr]
    assert found[9].metadata == [] and found[1].metadata == [b"null"]  # type: ignore[union-attr]


def test_purging_keeps_documents_and_frees_rows(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(
        log.add(CreateCollection(spec()), CreateCollection(spec("k")), put(["x"], [[1, 2, 3]], collection="k"))
    )
    for _ in range(5):
        replica.apply(log.add(put(IDS, [[1, 2, 3]] * 5)))
    replica.apply(log.add(DropCollection("k"), Delete("c", ["a"])))
    before = replica.digest()
    replica.checkpoint()
    assert replica.digest() == before
    replica.verify()
    assert replica._store.metadata_between(1, 0, 100).ordinals == [21, 22, 23, 24]
    assert replica._store.metadata_of(1, [5, 22, 24]).ordinals == [22, 24]
    assert replica._store.metadata_between(2, 0, 100).ordinals == []
    assert not replica._store.writer.doomed(0, 1)


class Killed(BaseException):
    """A process that dies at a failpoint."""


@pytest.mark.parametrize(("name", "survives"), [("apply-before-commit", False), ("apply-after-commit", True)])
def test_killed_around_the_commit(tmp_path: Path, name: str, survives: bool) -> None:
    armed = False

    def failpoint(at: str) -> None:
        if armed and at == name:
            raise Killed

    replica, log = open_replica(tmp_path, failpoint, commit=1), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a"], [[1, 2, 3]])))
    armed = True
    with pytest.raises(Killed):
        replica.apply(log.add(put(["b"], [[1, 2, 3]])))
    armed = False
    with pytest.raises(StorageError):  # memory may be behind the disk: it must be opened again
        replica.apply(log.add(put(["b"], [[1, 2, 3]])))
    replica.close()
    replica = open_replica(tmp_path)
    assert replica.applied_index() == (3 if survives else 2)
    replica.verify()
    replica.apply(log.entries[:3])
    assert [d.id for d in replica.get("c", ["a", "b"], False)] == ["a", "b"]
    undisturbed = open_replica(tmp_path / "undisturbed")
    undisturbed.apply(log.entries[:3])
    assert replica.digest() == undisturbed.digest()


def test_session_of_a_duplicate_is_not_executed_again(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec())))
    session = log.session(replica)
    first = put(["a"], [[1, 2, 3]], session=Session(session, 1, 0))
    (one,) = replica.apply(log.add(first))
    replica.apply(log.add(Delete("c", ["a"])))
    (two,) = replica.apply(log.add(first))
    assert two == one and replica.count() == 0
    (again,) = replica.apply(log.add(OpenSession(7)))
    assert again.index == session
    (refused,) = replica.apply(log.add(put(["z"], [[1, 2, 3]], expected=0, session=Session(session, 2, 0))))
    assert isinstance(refused, WriteResult)
    (unknown,) = replica.apply(log.add(put(["z"], [[1, 2, 3]], session=Session(999, 1, 0))))
    assert isinstance(unknown, SessionExpired)


def test_a_view_taken_before_a_write_never_changes(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a", "b"], [[1, 2, 3], [4, 5, 6]], [{"n": 1}, {"n": 1}])))
    view = replica.view
    replica.apply(log.add(put(["a", "c"], [[9, 9, 9], [1, 1, 1]], [{"n": 1}] * 2), Delete("c", ["b"])))
    for condition in (b"", Filter.eq("n", 1).to_json(), Filter.ne("n", 2).to_json()):
        request = SearchRequest(collection="c", vector=floats([1, 2, 3]), k=9, filter=condition)
        collection = view.collections["c"]
        (old,) = search_group(collection, view.store, [request], view.at.index, replica.limits)
        assert not isinstance(old, NeedleError)
        assert (old.ids, old.versions, old.applied_index) == (["a", "b"], [2, 2], 2)
        new = replica.search(request)
        assert (new.ids, new.versions, new.applied_index) == (["c", "a"], [3, 3], 4)


def test_a_replica_is_closed_only_when_who_looks_at_it_has_left(tmp_path: Path) -> None:
    replica, began, go, left = open_replica(tmp_path), threading.Event(), threading.Event(), list[str]()

    def slowly(view: ReplicaView) -> None:
        began.set()
        assert go.wait(30)
        view.store.page(1, -1, 9, 9)
        left.append("looked")

    looking = threading.Thread(target=lambda: replica.look(slowly))
    looking.start()
    assert began.wait(30)
    closing = threading.Thread(target=lambda: (replica.close(), left.append("closed")))
    closing.start()
    closing.join(0.05)
    go.set()
    looking.join()
    closing.join()
    assert left == ["looked", "closed"]
    with pytest.raises(Unavailable):
        replica.look(slowly)
