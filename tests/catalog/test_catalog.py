"""The catalog: what it refuses, what a repeated command does, and that it survives restarts and snapshots."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.catalog_util import create, entry, node, spec, topology
from needle.base.access import Role
from needle.base.errors import (
    CollectionExists,
    CorruptDocuments,
    CorruptSnapshot,
    DiskFull,
    InvalidArgument,
    NeedleError,
    UnsupportedFormat,
)
from needle.base.model import CollectionSpec, IndexParams, Metric, WriteResult
from needle.catalog import keys
from needle.catalog.machine import IMAGE_NAME, CatalogMachine
from needle.catalog.state import execute
from needle.protocol.catalog_commands import (
    AddShard,
    AdvanceMove,
    AlterCollection,
    AssignReplicas,
    CatalogCommand,
    ConfirmReplicas,
    CreateCollection,
    DropCollection,
    FinishMove,
    Identity,
    MaintainNode,
    RegisterNode,
    RemoveAlias,
    RemoveNode,
    SetAlias,
    SetReplicas,
    StartMove,
    decode,
    encode,
)
from needle.protocol.key_commands import CreateKey
from needle.routing.leadable import LEADABLE
from needle.routing.shard_map import initial_map
from needle.routing.strategy import HASH
from needle.routing.topology import Holders, MoveState, NodeState, Topology


def _wanted(group: int) -> tuple[str, ...]:
    holders = topology().holders(group)
    return holders.wanted if holders is not None else ()


_nodes = st.integers(1, 8)
_names = st.sampled_from(["a", "b", "c"])
_commands: st.SearchStrategy[CatalogCommand] = st.one_of(
    st.just(create()),
    st.just(create(shards=2)),
    st.builds(lambda n, port: RegisterNode(node(n, address=f"h:{port}")), _nodes, st.integers(1, 3)),
    st.builds(lambda n: RegisterNode(node(n, incarnation=7)), _nodes),
    st.builds(lambda n: RemoveNode(f"node-{n}"), _nodes),
    st.builds(SetAlias, _names, _names),
    st.builds(RemoveAlias, _names),
    st.builds(AlterCollection, _names, st.integers(1, 30), st.integers(1, 3)),
    st.builds(
        lambda shard, after: SetReplicas(shard, list(topology().shards[shard % 4].replicas), after),
        st.integers(-1, 4),
        st.lists(_nodes.map(lambda n: f"node-{n}"), max_size=4),
    ),
    st.builds(
        lambda group, after: AssignReplicas(group, list(_wanted(group)), after),
        st.integers(-1, 5),
        st.lists(_nodes.map(lambda n: f"node-{n}"), max_size=4),
    ),
    st.builds(ConfirmReplicas, st.integers(-1, 5), st.integers(1, 25)),
    st.builds(
        lambda name, d, ok, nonce: CreateCollection(spec(name, d), ok, nonce), _names, _nodes, st.booleans(), _nodes
    ),
    st.builds(DropCollection, _names, st.integers(1, 40)),
    st.builds(
        lambda nonce, epoch, at, source, target: StartMove(
            nonce,
            epoch,
            [topology().map.ranges(source % 4)[at]],
            source,
            target,  # type: ignore[union-attr]
        ),
        st.integers(1, 9),
        st.integers(1, 3),
        st.integers(0, 2),
        st.integers(0, 4),
        st.integers(-1, 4),
    ),
    st.builds(AdvanceMove, st.integers(1, 25), st.sampled_from(MoveState), st.integers(0, 9), st.integers(0, 9)),
    st.builds(FinishMove, st.integers(1, 25)),
    st.builds(lambda n, on: MaintainNode(f"node-{n}", on), _nodes, st.booleans()),
)


@given(st.lists(_commands, max_size=25))
@settings(max_examples=150, deadline=None)
def test_any_commands_keep_the_invariants_and_repeating_one_changes_nothing(commands: list[CatalogCommand]) -> None:
    now, removed, used = Topology(), set[str](), set[int]()
    for index, command in enumerate(commands, 1):
        before = now
        now, result = execute(now, index, decode(encode(command)))
        now.check_invariants()
        assert (now.version == index) == (now != before)
        if not isinstance(result, WriteResult):
            assert now is before
        again, _ = execute(now, index + 1000, command)
        assert again is now
        removed |= {info.id for info in now.nodes if info.state is NodeState.REMOVED}
        assert not removed & set(now.addresses())
        new = {info.id for info in now.collections} - {info.id for info in before.collections}
        assert not new & used
        used |= new


@given(st.lists(_commands, min_size=1, max_size=12), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
def test_restarts_and_snapshots_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, commands: list[CatalogCommand], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("catalog")
    one, two = CatalogMachine(str(directory / "one")), CatalogMachine(str(directory / "two"))
    for index, command in enumerate(commands, 1):
        told = one.apply([entry(index, command, b"conf-%d" % index)])
        assert told[0] is not None
        if data.draw(st.booleans()):
            one.close()
            one = CatalogMachine(str(directory / "one"))
        assert (one.applied_index(), one.applied_term(), one.conf()) == (index, 1, b"conf-%d" % index)
    image = directory / "image"
    image.mkdir()
    index, _, conf, files = one.export_snapshot(str(image))
    assert (index, conf) == (one.applied_index(), one.conf())
    assert files[0].size == (image / IMAGE_NAME).stat().st_size
    two.install_snapshot(str(image))
    assert (two.digest(), two.topology, two.conf()) == (one.digest(), one.topology, one.conf())
    assert two.apply([entry(index, commands[-1])]) == [None]
    one.close()
    two.close()


def test_a_removed_or_forgetful_node_does_not_come_back() -> None:
    now = topology()
    now, _ = execute(now, 2, RegisterNode(node(9)))
    moved, _ = execute(now, 3, RegisterNode(node(9, address="elsewhere:1", zone="b")))
    assert moved.address_of("node-9") == "elsewhere:1"
    assert execute(now, 3, RegisterNode(node(9)))[0] is now
    _, forgot = execute(now, 4, RegisterNode(node(9, incarnation=5)))
    assert isinstance(forgot, InvalidArgument)
    assert "data directory" in forgot.message
    gone, _ = execute(now, 5, RemoveNode("node-9"))
    assert gone.address_of("node-9") is None
    _, back = execute(gone, 6, RegisterNode(node(9)))
    assert isinstance(back, InvalidArgument)
    assert "not used again" in back.message
    _, held = execute(now, 7, RemoveNode("node-1"))
    assert isinstance(held, InvalidArgument)
    assert "replicas" in held.message


def test_maintenance_is_of_the_catalog_until_it_is_ended() -> None:
    """Whatever the node says of itself meanwhile; and somebody is left to lead each group."""
    now, _ = execute(topology(shards=1, nodes=3), 2, MaintainNode("node-2", True))
    now, _ = execute(now, 3, RegisterNode(node(2, address="h:2")))
    assert [info.maintenance for info in now.nodes] == [0, 2, 0]
    now, _ = execute(now, 4, MaintainNode("node-1", True))
    same, refused = execute(now, 5, MaintainNode("node-3", True))
    assert same is now and isinstance(refused, InvalidArgument) and "node-1, node-2" in refused.message
    now, _ = execute(now, 6, MaintainNode("node-2", False))
    assert [info.maintenance for info in now.nodes] == [4, 0, 0]
    assert isinstance(execute(now, 7, MaintainNode("node-9", True))[1], InvalidArgument)


def test_replicas_do_not_go_to_nodes_in_maintenance_alone() -> None:
    """Nobody could lead such a group."""
    now = msgspec.structs.replace(
        topology(), cluster_version=LEADABLE, nodes=tuple(node(n, knows=2) for n in range(1, 7))
    )
    for at, name in enumerate(("node-4", "node-5"), 2):
        now, _ = execute(now, at, MaintainNode(name, True))
    held = list(now.shards[0].replicas)
    for command in (AddShard(4, ["node-4", "node-5"]), AssignReplicas(1, held, ["node-4"])):
        same, refused = execute(now, 9, command)
        assert same is now and isinstance(refused, InvalidArgument)
        assert "node-4" in refused.message and "in maintenance" in refused.message
        assert "needle maintenance exit" in refused.message
    for command in (AddShard(4, ["node-4", "node-6"]), AssignReplicas(1, held, ["node-4", "node-5", "node-1"])):
        assert not isinstance(execute(now, 9, command)[1], NeedleError)
    older = msgspec.structs.replace(now, cluster_version=LEADABLE - 1)  # its nodes may not know that rule
    assert not isinstance(execute(older, 9, AddShard(4, ["node-4"]))[1], NeedleError)


@pytest.mark.parametrize("group", [0, 1])
def test_a_node_holds_its_replica_until_the_others_are_confirmed(group: int) -> None:
    now, _ = execute(
        topology(), 2, AssignReplicas(group, ["node-1", "node-2", "node-3"], ["node-4", "node-2", "node-1"])
    )
    assert now.holders(group) == Holders(("node-4", "node-2", "node-1"), ("node-3",), 2)
    nodes = now.catalog if group == 0 else now.shards[0].replicas
    assert nodes == ("node-4", "node-2", "node-1", "node-3")
    again, _ = execute(now, 3, AssignReplicas(group, ["node-4", "node-2", "node-1"], ["node-1", "node-2", "node-5"]))
    assert again.holders(group) == Holders(("node-1", "node-2", "node-5"), ("node-4", "node-3"), 3)
    late, _ = execute(again, 4, ConfirmReplicas(group, 2))  # of the decision before
    assert late is again
    done, _ = execute(again, 5, ConfirmReplicas(group, 3))
    assert done.holders(group) == Holders(("node-1", "node-2", "node-5"), (), 3)
    if group:
        assert (again.shards[0].founders, done.shards[0].founders) == (("node-1", "node-2", "node-3"), ())
    assert execute(done, 6, ConfirmReplicas(group, 3))[0] is done


def test_replicas_are_assigned_to_known_nodes_by_who_knows_where_they_are() -> None:
    now = topology()
    three = ["node-1", "node-2", "node-3"]
    for before, after, why in (
        (["node-1", "node-2"], ["node-4"], "is assigned to node-1, node-2, node-3 meanwhile"),
        (three, ["node-1", "node-99"], "node-99"),
        (three, [], "1 to 7"),
        (three, ["node-1", "node-1"], "different"),
    ):
        _, error = execute(now, 2, AssignReplicas(1, before, after))
        assert isinstance(error, InvalidArgument)
        assert why in error.message
    turned, _ = execute(now, 2, AssignReplicas(1, three, three[::-1]))
    assert turned.holders(1) == Holders(tuple(three[::-1]), (), 0)  # only another preferred leader: nothing to confirm


def test_collections_of_one_name_are_told_apart() -> None:
    now, first = execute(topology(), 2, CreateCollection(spec("a"), False, 77))
    assert isinstance(first, WriteResult)
    same, again = execute(now, 3, CreateCollection(spec("a"), False, 77))
    assert same is now
    assert isinstance(again, WriteResult)
    assert (again.version, again.existed) == (first.version, False)
    assert isinstance(execute(now, 4, CreateCollection(spec("a"), False, 78))[1], CollectionExists)
    assert isinstance(execute(now, 4, CreateCollection(spec("a", 5), True, 78))[1], CollectionExists)
    dropped, _ = execute(now, 5, DropCollection("a", first.version))
    other = CollectionSpec(name="a", dimensions=5, metric=Metric.L2, index=IndexParams(m=8))
    refused = execute(now, 4, CreateCollection(other, True, 78))[1]
    assert isinstance(refused, CollectionExists)
    assert (
        refused.message == "collection 'a' exists, with dimensions 4, not 5, metric cosine, not l2, index.m 16, not 8"
    )
    later, _ = execute(dropped, 6, CreateCollection(spec("a"), False, 79))
    assert execute(later, 7, DropCollection("a", first.version))[0] is later
    assert later.collections[0].id == 6


def test_an_altered_collection_is_there_for_who_makes_sure_of_it_as_it_was_made() -> None:
    now, made = execute(topology(), 2, CreateCollection(spec("a"), True, 1))
    now, altered = execute(now, 3, AlterCollection("a", 2, 77))
    assert not isinstance(altered, NeedleError) and now.named("a").spec.index.ef_search == 77
    same, again = execute(now, 4, CreateCollection(spec("a"), True, 2))
    assert same is now and again.existed and again.version == made.version
    _, refused = execute(now, 5, CreateCollection(spec("a"), False, 3))
    assert isinstance(refused, CollectionExists)
    _, refused = execute(now, 5, CreateCollection(spec("a", dimensions=3), True, 3))
    assert isinstance(refused, CollectionExists)


def test_a_cluster_is_created_once_and_completely() -> None:
    now = topology(shards=4, factor=3, nodes=12)
    assert [info.replicas for info in now.shards] == [tuple(f"node-{3 * s + n}" for n in (1, 2, 3)) for s in range(4)]
    assert isinstance(execute(now, 2, create(shards=5, nodes=12))[1], InvalidArgument)
    for broken in (
        create().__class__(create().settings, create().map, create().nodes, ["node-99"], create().assignment),
        create().__class__(create().settings, create().map, create().nodes[:2], [], create().assignment),
        create().__class__(create().settings, initial_map(HASH, 5), create().nodes, ["node-1"], create().assignment),
        create().__class__(
            create().settings, create().map, [*create().nodes, node(1)], ["node-1"], create().assignment
        ),
    ):
        same, error = execute(Topology(), 1, broken)
        assert same == Topology()
        assert isinstance(error, InvalidArgument)


def test_damage_is_named_and_stops_the_replica(tmp_path: Path) -> None:
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(1, create())])
    (tmp_path / IMAGE_NAME).write_bytes(b"\x81nonsense")
    with pytest.raises(CorruptSnapshot):
        machine.install_snapshot(str(tmp_path))
    assert machine.topology.version == 1
    unknown = entry(2, None).__class__(2, 1, b"\x09x", None)
    with pytest.raises(UnsupportedFormat):
        machine.apply([unknown])
    with pytest.raises(UnsupportedFormat):  # skipping it would make replicas differ
        machine.apply([entry(3, create())])
    machine.close()
    with sqlite3.connect(tmp_path / "catalog.db") as db:
        db.execute("UPDATE catalog SET state = x'00'")
    assert "damaged" in str(CatalogMachine(str(tmp_path)).damage)
    for file in tmp_path.glob("catalog.db*"):
        file.unlink()
    (tmp_path / "catalog.db").write_bytes(b"not a database" * 1000)
    assert "damaged" in str(CatalogMachine(str(tmp_path)).damage)


def test_what_finds_no_room_is_applied_later(tmp_path: Path) -> None:
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(1, create())])
    machine._db.execute("PRAGMA max_page_count=2")  # SQLite's own full disk
    many = [entry(2 + n, CreateCollection(spec(f"c{n:0200}"), False, n)) for n in range(100)]
    for _ in range(2):
        with pytest.raises(DiskFull):
            machine.apply(many)
        assert machine.topology.version == machine.applied_index() == 1
    machine._db.execute("PRAGMA max_page_count=100000")
    assert all(isinstance(result, WriteResult) for result in machine.apply(many))
    digest = machine.digest()
    machine.close()
    again = CatalogMachine(str(tmp_path))
    assert (again.applied_index(), again.digest()) == (101, digest)
    again.close()


def test_a_damaged_catalog_stays_damaged_until_the_snapshot_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the file that goes and the one that comes there is an empty one."""
    for name in ("source", "image"):
        (tmp_path / name).mkdir()
    source = CatalogMachine(str(tmp_path / "source"))
    source.apply([entry(1, create())])
    source.export_snapshot(str(tmp_path / "image"))
    (tmp_path / "hurt").mkdir()
    (tmp_path / "hurt" / "catalog.db").write_bytes(b"not SQLite" * 1000)
    machine, write = CatalogMachine(str(tmp_path / "hurt")), CatalogMachine._write
    assert machine.damage is not None

    def no_room(self: CatalogMachine, state: object) -> None:
        raise DiskFull("no space left")

    monkeypatch.setattr(CatalogMachine, "_write", no_room)
    for _ in range(2):
        with pytest.raises(DiskFull):
            machine.install_snapshot(str(tmp_path / "image"))
        assert machine.damage is not None
        with pytest.raises(CorruptDocuments):
            machine.apply([entry(2, create())])
    monkeypatch.setattr(CatalogMachine, "_write", write)
    machine.install_snapshot(str(tmp_path / "image"))
    assert machine.damage is None and machine.topology == source.topology
    source.close()
    machine.close()


def test_a_snapshot_mends_a_catalog_whose_damage_shows_only_when_it_is_written(tmp_path: Path) -> None:
    """A key that is no alias of the row's number any more lacks its index: the rows read as others, or as none. And the
    count of free pages is looked at only by who needs one."""
    source = CatalogMachine(str(tmp_path / "source"))
    source.apply([entry(1, create())])
    (tmp_path / "image").mkdir()
    source.export_snapshot(str(tmp_path / "image"))
    source.close()
    path, shown_late = tmp_path / "source" / "catalog.db", 0
    whole = path.read_bytes()
    schema = whole.index(b"CREATE TABLE")
    for at, bit in [(at, bit) for at in (*range(36, 40), *range(schema + 20, schema + 68)) for bit in range(8)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
        machine = CatalogMachine(str(tmp_path / "source"))
        if machine.damage is None:
            late = sqlite3.connect(path, isolation_level=None)
            try:
                late.executescript("BEGIN; INSERT INTO catalog VALUES (9, zeroblob(100000)); ROLLBACK")
            except sqlite3.DatabaseError:
                shown_late += 1
            late.close()
        machine.install_snapshot(str(tmp_path / "image"))
        assert machine.damage is None and machine.topology == source.topology
        machine.apply([entry(2, None)])
        machine.close()
        again = CatalogMachine(str(tmp_path / "source"))
        assert again.damage is None and again.applied_index() == 2 and again.topology == source.topology
        again.close()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    assert shown_late


def test_a_damaged_catalog_is_found_and_a_snapshot_mends_it(tmp_path):
    source = CatalogMachine(str(tmp_path / "source"))
    source.apply([entry(1, create())])
    (tmp_path / "image").mkdir()
    source.export_snapshot(str(tmp_path / "image"))
    source.close()
    path, seen = tmp_path / "source" / "catalog.db", 0
    whole = path.read_bytes()
    schema = whole.index(b"CREATE TABLE")  # what flips there makes another table of it
    flips = [(at, at % 8) for at in (*range(0, len(whole), 37), *range(schema - 40, schema + 80))]
    flips += [(at, 7) for at in range(schema, schema + 80)]  # what is no text any more
    flips += [(18, bit) for bit in range(8)]  # the version of who may write
    for at, bit in flips:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
        machine = CatalogMachine(str(tmp_path / "source"))
        if machine.damage is None:
            # One that looks new is behind its log, and is filled again from it or by peers (multiraft/repair.py).
            assert machine.applied_index() == 0 or machine.topology == source.topology
            with suppress(CorruptDocuments):  # found by then, or as good as whole; nothing else
                machine.apply([entry(machine.applied_index() + 1, None)])
        else:
            seen += 1
            with pytest.raises(CorruptDocuments):
                machine.apply([entry(2, None)])
            machine.check_snapshot(str(tmp_path / "image"))
            machine.install_snapshot(str(tmp_path / "image"))
            assert machine.damage is None and machine.topology == source.topology
        machine.close()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    assert seen > 5


def test_a_refusal_in_other_words_is_no_other_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of two releases remember what they answered in their own words: it was told of as divergence."""

    def digest(name: str) -> str | None:
        (tmp_path / name).mkdir()
        machine = CatalogMachine(str(tmp_path / name))
        refused = CreateKey("a", bytes(32), Role.ADMIN, ["books"])
        commands = [encode(create()), encode(refused, Identity(7, 1))]
        for index, data in enumerate(commands, 1):
            machine.apply([SimpleNamespace(index=index, term=1, data=data, conf=None)])
        machine.close()
        machine = CatalogMachine(str(tmp_path / name))
        machine.close()
        return machine.compared.at(2)

    first = digest("first")
    monkeypatch.setattr(keys, "UNBOUND", {**keys.UNBOUND, Role.ADMIN: "an administrator's"})
    assert first is not None and digest("second") == first
