"""The version that a cluster is at: it rises once every node knows it, nothing newer is written before, and who does
not know it stays out."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import pytest

from catalog.catalog_util import create, entry, node, topology
from needle.base.access import Role
from needle.base.config import RaftConfig, ShardingConfig
from needle.base.dtypes import DType
from needle.base.errors import (
    ClusterTooOld,
    ConnectionLost,
    InvalidArgument,
    NeedleError,
    UnsupportedFormat,
    UnsupportedVersion,
)
from needle.base.filters.builder import Filter
from needle.base.filters.operators import OPERATORS
from needle.base.model import CollectionSpec, IndexKind, IndexParams, Metric, VectorSpec, WriteResult, metrics_of
from needle.base.rates import Rates
from needle.base.versions import BITS, FIRST, KNOWN, SAID
from needle.catalog.machine import CatalogMachine
from needle.catalog.state import execute
from needle.distributed import RaftCluster
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.protocol import calls, catalog_commands, commands, versioned
from needle.protocol.catalog_commands import (
    CatalogCommand,
    Identity,
    RaiseVersion,
    RegisterNode,
    RemoveNode,
    StartRebalance,
)
from needle.protocol.commands import Command, Patch
from needle.protocol.key_commands import CreateKey
from needle.protocol.move_commands import Mark
from needle.protocol.peer_calls import CATALOG, CatalogCall, WhoAnswer
from needle.protocol.vector_commands import AddVector
from needle.protocol.versioned import Versioned, check_known
from needle.routing import plans
from needle.routing.jobs import RebalanceConfig
from needle.routing.plans import ReplicaMove, Wish
from needle.routing.topology import NodeInfo, Topology
from needle.server.catalog.founding import as_all_read
from needle.server.ports import system_ports
from needle.server.upkeep.version_rise import VersionRise

NEXT = KNOWN + 1


def made(*knows: int) -> Topology:
    """Of nodes that know so much; those after the third hold nothing."""
    command = create(shards=1, nodes=len(knows))
    infos = [msgspec.structs.replace(info, knows=one) for info, one in zip(command.nodes, knows, strict=True)]
    return execute(Topology(), 1, msgspec.structs.replace(command, nodes=infos))[0]


def after(now: Topology, command: CatalogCommand) -> tuple[Topology, WriteResult | NeedleError]:
    return execute(now, now.version + 1, command)


# --- the catalog -----------------------------------------------------------------------------------------------------
def test_a_cluster_is_made_at_what_all_of_its_nodes_know() -> None:
    assert made(3, 2, 4).cluster_version == 2
    assert topology().cluster_version == FIRST
    known, silent = node(1, knows=3), node(2)
    assert as_all_read([known]) == [known]
    assert [info.knows for info in as_all_read([known, silent])] == [FIRST, FIRST]  # not what one of them cannot keep


def test_the_version_rises_when_the_last_node_knows_it_and_never_falls() -> None:
    now = made(3, 3, 3, 2)
    refused, error = after(now, RaiseVersion(3))
    assert refused is now and isinstance(error, ClusterTooOld) and error.details["nodes"] == "node-4"
    # a removed node does not count, one that is merely away does
    without, _ = after(now, RemoveNode("node-4"))
    risen, result = after(without, RaiseVersion(3))
    assert isinstance(result, WriteResult) and risen.cluster_version == 3
    upgraded, _ = after(now, RegisterNode(node(4, knows=3)))
    risen, _ = after(upgraded, RaiseVersion(3))
    assert risen.cluster_version == 3
    for older in (3, 2, 1):
        same, result = after(risen, RaiseVersion(older))
        assert same is risen and isinstance(result, WriteResult) and result.existed


def test_what_nodes_answer_counts_while_the_catalog_does_not_keep_it() -> None:
    now = topology(shards=1, nodes=3)
    told = [("node-1", 2), ("node-2", 3)]
    refused, error = after(now, RaiseVersion(2, told))
    assert refused is now and isinstance(error, ClusterTooOld) and error.details["nodes"] == "node-3"
    risen, _ = after(now, RaiseVersion(2, [*told, ("node-3", 2)]))
    assert risen.cluster_version == 2 and [info.knows for info in risen.nodes] == [2, 3, 2]


def test_a_node_that_knows_less_is_no_node_of_the_cluster() -> None:
    now = made(2, 2, 2)
    for older in (node(3), node(7)):
        same, error = after(now, RegisterNode(older))
        assert same is now and isinstance(error, InvalidArgument)
        assert "version 2" in error.message and "start it with the release" in error.message
    joined, _ = after(now, RegisterNode(node(7, knows=5)))
    info = joined.node("node-7")
    assert info is not None and info.knows == 5
    with pytest.raises(InvalidArgument, match="cluster_version"):
        msgspec.structs.replace(now, cluster_version=3).check_invariants()


@pytest.mark.parametrize("at", ["entry", "file", "image"])
def test_a_catalog_of_a_version_that_a_node_does_not_know_is_not_used(tmp_path: Path, at: str) -> None:
    newer = CatalogMachine(str(tmp_path / "newer"), knows=3)
    infos = [msgspec.structs.replace(info, knows=3) for info in create(shards=1, nodes=3).nodes]
    made_at_2 = msgspec.structs.replace(create(shards=1, nodes=3), nodes=[*infos[:2], node(3, knows=2)])
    before = [entry(1, made_at_2), entry(2, RegisterNode(infos[2]))]
    newer.apply([*before, entry(3, RaiseVersion(3))])
    (tmp_path / "image").mkdir()
    newer.export_snapshot(str(tmp_path / "image"))
    newer.close()
    if at == "file":
        with pytest.raises(UnsupportedFormat, match=r"at version 3.*up to 2: start this node with the release"):
            CatalogMachine(str(tmp_path / "newer"), knows=2)
        return
    older = CatalogMachine(str(tmp_path / "older"), knows=2)
    older.apply(before)
    if at == "entry":
        with pytest.raises(UnsupportedFormat, match="at version 3"):
            older.apply([entry(3, RaiseVersion(3))])
    else:
        with pytest.raises(NeedleError, match="at version 3"):
            older.check_snapshot(str(tmp_path / "image"))
    assert older.applied_index() == 2 and older.topology.cluster_version == 2
    older.close()


# --- what is proposed ------------------------------------------------------------------------------------------------
class Later(Versioned, frozen=True, tag="later"):
    """A command that came with the version after KNOWN, and a field of it that came after that."""

    SINCE: ClassVar[int] = NEXT
    NEWER: ClassVar[dict[str, int]] = {"more": NEXT + 1, "all": NEXT + 2}

    name: str
    more: int = 0
    all: list[int] = []  # noqa: RUF012 - msgspec copies it


def test_a_command_is_proposed_only_where_all_can_read_it() -> None:
    cases = [(Later("a"), NEXT), (Later("a", 1), NEXT + 1), (Later("a", 0, [1]), NEXT + 2), (Later("", 0, []), NEXT)]
    for command, needs in cases:
        assert command.needs() == needs
        now = made(needs, needs, needs - 1)
        with pytest.raises(ClusterTooOld, match=rf"Later.*needs version {needs}.*node-3 \({needs - 1}\)") as refused:
            check_known(command, now)
        assert refused.value.details["nodes"] == "node-3"
        check_known(command, made(needs, needs, needs))
        with pytest.raises(ClusterTooOld, match="in a moment"):
            check_known(command, msgspec.structs.replace(made(needs, needs, needs), cluster_version=needs - 1))
    for plain in (commands.DropCollection("a"), RegisterNode(node(1))):
        check_known(plain, topology())
    with pytest.raises(ClusterTooOld):
        catalog_commands.entry(RegisterNode(node(1, knows=SAID)), topology())


@pytest.mark.parametrize("name", [one.name for one in OPERATORS.values() if one.since > FIRST])
def test_a_filter_that_is_judged_at_apply_is_proposed_only_where_all_know_its_operators(name: str) -> None:
    samples: dict[str, Any] = {
        "$size": {"a": {"$size": 1}},
        "$elemMatch": {"a": {"$elemMatch": {"b": 1}}},
        "$ids": {"$ids": ["x"]},
        "$geo_radius": {"a": {"$geo_radius": {"centre": {"lat": 1, "lon": 2}, "metres": 3}}},
        "$geo_box": {"a": {"$geo_box": {"south": 1, "north": 2, "west": 3, "east": 4}}},
    }
    needs, known = OPERATORS[name].since, Filter.parse({"a": 1}).to_json()
    for where in (samples[name], {"a": 1, "$or": [{"b": 2}, {"$not": samples[name]}]}):
        newer = Filter.parse(where).to_json()
        for text, least in ((newer, needs), (known, FIRST), (b"", FIRST)):
            judged: list[commands.Command] = [
                commands.Insert("c", ["x"], b"", [b""], matches=text),
                commands.Delete("c", ["x"], matches=text),
                Patch("c", ["x"], commands.Change(unset=["a"]), matches=text),
                commands.UpdateVectors("c", ["x"], b"", matches=text),
                commands.ChangeWhere("c", text, None),
            ]
            bound = [msgspec.structs.replace(one, bound=commands.Bound(text)) for one in judged if text]
            once = [commands.Once(commands.Asked(b"", b""), 1, one) for one in judged]  # type: ignore[arg-type]
            key = CreateKey("k", b"", Role.READER, filter=text)
            for command in [*judged, *bound, *once, key]:
                others = 3 if command is key or command in [*bound, *once] else FIRST
                needed = max(least, others) if text or command is not key else 2
                assert command.needs() == needed, command
                check_known(command, made(needed, needed, needed))
                with pytest.raises(ClusterTooOld) if needed > FIRST else nullcontext():
                    check_known(command, made(max(needed - 1, FIRST), needed, needed))


def test_no_value_of_any_command_gets_into_a_log_below_the_version_that_it_needs() -> None:
    """Also where a command says by itself what it needs."""
    vectors, matched = b"", Filter.parse({"a": 1}).to_json()
    insert = commands.Insert("c", ["x"], vectors, [b""])
    spec = CollectionSpec(name="c", dimensions=2)
    bits = CollectionSpec(name="c", dimensions=8, metric=Metric.HAMMING, dtype=DType.BIT)
    nodes = create(shards=1, nodes=3)
    writes = [
        *_with_newer(insert, expires=[1], bound=commands.Bound(matched), dtype=DType.FLOAT16),
        *_with_newer(insert, dtype=DType.BIT),
        *_with_newer(insert, named=[commands.Named("c/title", [0], b"")]),
        *_with_newer(commands.UpdateVectors("c", ["x"], b""), name="c/title"),
        *_with_newer(commands.Delete("c", ["x"]), bound=commands.Bound(matched)),
    ]
    told: list[Versioned] = [
        *writes,
        *(commands.Once(commands.Asked(b"", b""), 1, one) for one in writes),  # type: ignore[arg-type]
        *_with_newer(commands.OpenSession(7), owner=8),
        commands.CreateCollection(msgspec.structs.replace(spec, dtype=DType.FLOAT16)),
        *(commands.CreateCollection(one) for one in (spec, bits)),
        *(catalog_commands.CreateCollection(one, False, 1) for one in (spec, bits)),
        catalog_commands.CreateCollection(spec, False, 1, vectors=[("code", VectorSpec.of(bits))]),
        *(AddVector("c", 1, "code", VectorSpec.of(one)) for one in (spec, bits)),
        msgspec.structs.replace(nodes, first=bits),
        RegisterNode(node(1, knows=SAID)),
        StartRebalance(
            Wish(move=ReplicaMove(shard=plans.CATALOG, source="node-1", target="node-4")), RebalanceConfig()
        ),
        nodes,
        *(CreateKey("k", b"", role) for role in Role),
        *_with_newer(CreateKey("k", b"", Role.READER), filter=matched, rates=Rates(1)),
    ]
    own = {one for one in (*Command.__args__, *CatalogCommand.__args__) if one.needs is not Versioned.needs}
    assert own and own <= {type(one) for one in told}  # add a sample of each that says what it needs
    for command in told:
        for at in range(FIRST, KNOWN + 1):
            with pytest.raises(ClusterTooOld) if at < command.needs() else nullcontext():
                check_known(command, made(at, KNOWN, KNOWN))
    assert {one.needs() for one in told if type(one) in own} >= {2, 3, KNOWN}


def _with_newer(command: Any, **newer: Any) -> list[Any]:
    return [command, *(msgspec.structs.replace(command, **{name: value}) for name, value in newer.items())]


def test_other_kinds_of_index_need_nodes_that_know_them() -> None:
    for kind in IndexKind:
        spec = CollectionSpec(name="c", dimensions=2, index=IndexParams(kind=kind))
        for command in (commands.CreateCollection(spec), catalog_commands.CreateCollection(spec, False, 1)):
            assert (command.needs() >= 4) == (kind is not IndexKind.HNSW)


def test_vectors_of_bits_need_nodes_that_know_them() -> None:
    for dtype in DType:
        spec = CollectionSpec(name="c", dimensions=8, metric=metrics_of(dtype)[0], dtype=dtype)
        for command in (
            commands.CreateCollection(spec),
            catalog_commands.CreateCollection(spec, False, 1),
            catalog_commands.CreateCollection(
                CollectionSpec(name="d", dimensions=2), False, 1, [], [("v", VectorSpec.of(spec))]
            ),
            AddVector("c", 1, "v", VectorSpec.of(spec)),
            msgspec.structs.replace(create(shards=1, nodes=3), first=spec),
        ):
            assert (command.needs() >= BITS) == (dtype is DType.BIT)


def test_a_node_writes_to_a_log_only_what_was_checked() -> None:
    """`entry` checks and encodes; what only encodes is for calls to other nodes."""
    source = Path(catalog_commands.__file__).parents[1] / "server"
    # Told to the target's leader, or to the catalog's, which proposes it.
    allowed = {"upkeep/move_steps.py": 1, "service/catalog.py": 1}
    for path in sorted(source.rglob("*.py")):
        found = path.read_text("utf-8").count("commands.encode(")
        assert found == allowed.get(str(path.relative_to(source)), 0), path


@pytest.mark.parametrize(
    ("command", "encode", "decode"),
    [
        (commands.DropCollection("a"), commands.encode, commands.decode),
        (commands.Insert("a", [], b"", []), commands.encode, commands.decode),
        (Mark(1, "a", 2), commands.encode, commands.decode),
        (RemoveNode("a"), catalog_commands.encode, catalog_commands.decode),
    ],
)
def test_a_field_that_this_release_does_not_know_is_not_passed_over(command: Any, encode: Any, decode: Any) -> None:
    data, fields = encode(command), msgspec.msgpack.decode(msgspec.msgpack.encode(command))
    with pytest.raises(UnsupportedFormat, match="at most length"):
        decode(data[:1] + msgspec.msgpack.encode([*fields, 1]))
    for kind in (*Command.__args__, *CatalogCommand.__args__, commands.Session, commands.Change, Identity):
        assert kind.__struct_config__.forbid_unknown_fields, kind


def test_what_a_command_does_not_use_is_written_as_releases_before_did() -> None:
    """Else the first of the upgraded nodes to lead would stop those that are not upgraded yet."""
    insert = commands.Insert("a", ["x"], b"", [b""])
    assert msgspec.msgpack.decode(commands.encode(insert)[1:]) == ["put", "a", ["x"], b"", [b""], None, [0, 0, 0], b""]
    timed = msgspec.structs.replace(insert, expires=[1])
    assert len(msgspec.msgpack.decode(commands.encode(timed)[1:])) == 9
    bound = msgspec.structs.replace(insert, bound=commands.Bound(b"{}"))
    key = CreateKey("k", b"", Role.READER)
    for command in (
        insert,
        timed,
        bound,
        commands.Delete("a", ["x"]),
        commands.OpenSession(7),
        commands.OpenSession(7, 8),
    ):
        assert commands.decode(commands.encode(command)) == command
    assert len(msgspec.msgpack.decode(commands.encode(commands.Delete("a", ["x"]))[1:])) == 8
    assert len(msgspec.msgpack.decode(commands.encode(commands.OpenSession(7))[1:])) == 2
    assert msgspec.msgpack.decode(catalog_commands.encode(key)[1:]) == ["create-key", "k", b"", "reader", None]
    for made_key in (key, msgspec.structs.replace(key, rates=Rates(1)), msgspec.structs.replace(key, filter=b"{}")):
        assert catalog_commands.decode(catalog_commands.encode(made_key)) == made_key
    large = msgspec.structs.replace(insert, vectors=bytes(1 << 20))
    body = commands.encode_body(large)
    assert commands.decode(b"".join(body)) == large
    assert len(msgspec.msgpack.decode(b"".join(body)[1:])) == 8


# --- who raises it ---------------------------------------------------------------------------------------------------
class Leading:
    """The first node, which leads the catalog; the others answer what `says` has."""

    def __init__(self, now: Topology, says: dict[str, int]) -> None:
        self.node_id, self.now_known, self.says = "node-1", now, says
        self.host: Any = SimpleNamespace(stopped=False)
        self.ports: Any = SimpleNamespace(knows=KNOWN)
        self.peers: Any = self
        self.catalog: Any = None
        self.incarnations = {info.id: info.incarnation for info in now.nodes}

    def now(self) -> float:
        return 0.0

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        if node not in self.says:
            raise ConnectionLost("away")
        return calls.encode(WhoAnswer(node, "", self.incarnations[node], "", 1.0, 1, 1, knows=self.says[node]))

    async def execute(self, command: bytes, timeout: float) -> WriteResult:
        self.now_known, result = after(self.now_known, catalog_commands.decode(command))
        assert isinstance(result, WriteResult), result
        return result

    async def look(self) -> int:
        await VersionRise(self).look(self.now_known)
        return self.now_known.cluster_version


async def test_nodes_are_asked_until_the_catalog_keeps_what_they_know() -> None:
    leading = Leading(topology(shards=1, nodes=3), {"node-2": KNOWN})
    assert await leading.look() == FIRST  # one is away, and never said anything
    leading.says["node-3"] = FIRST
    assert await leading.look() == FIRST
    leading.says["node-3"] = KNOWN
    leading.incarnations["node-3"] += 1  # another directory goes by its name
    assert await leading.look() == FIRST
    leading.incarnations["node-3"] -= 1
    assert await leading.look() == KNOWN
    # from now on what nodes said last counts, also while they are away, and more than the leader knows is not used
    leading.says.clear()
    leading.ports.knows = NEXT
    assert await leading.look() == KNOWN
    for n in (1, 2, 3):
        leading.now_known, _ = after(leading.now_known, RegisterNode(node(n, knows=NEXT + (n > 1))))
        assert await leading.look() == (NEXT if n == 3 else KNOWN)


# --- nodes -----------------------------------------------------------------------------------------------------------
class Nodes:
    """Nodes of one cluster in this process, each of a release that knows as much as it is told."""

    def __init__(self, directory: Path, count: int) -> None:
        ports = free_ports(count)
        self.names = [f"n{n}" for n in range(1, count + 1)]
        self._at = dict(zip(self.names, (f"127.0.0.1:{port}" for port in ports), strict=True))
        self._directory = directory
        self.running: dict[str, RaftCluster] = {}

    def _with(self, name: str) -> dict[str, Any]:
        """The first three make the cluster, others join it."""
        founders = [f"{one}={self._at[one]}" for one in self.names[:3]]
        if name in self.names[:3]:
            return {"cluster_nodes": founders, "dimensions": 2}
        return {"listen": self._at[name], "sharding": ShardingConfig(join=[self._at["n1"]])}

    async def start(self, name: str, knows: int) -> RaftCluster:
        """Stop the node if it runs, and start it as another release."""
        await self.stop(name)
        config = RaftConfig(
            node_id=name,
            data_dir=str(self._directory / name),
            **self._with(name),
            election_timeout=0.4,
            heartbeat_interval=0.1,
        )
        self.running[name] = made = RaftCluster(config, ports=system_ports(config, knows=knows))
        await made.start()
        return made

    async def stop(self, *names: str) -> None:
        for name in names or tuple(self.running):
            if name in self.running:
                await self.running.pop(name).stop()

    async def at(self, version: int) -> None:
        """Wait until all that run know that the cluster is at `version`."""
        seen = lambda: {one._node.topology.cluster_version for one in self.running.values()}  # type: ignore[union-attr]  # noqa: E731
        await wait_for(lambda: seen() == {version}, 60, f"version {version}")


async def test_a_cluster_is_upgraded_node_by_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(tmp_path, 3)
    monkeypatch.setattr(versioned, "_newest", versioned._newest.__wrapped__)  # it remembers what kinds were
    monkeypatch.setattr(Patch, "SINCE", NEXT)
    try:
        for name in nodes.names:
            await nodes.start(name, KNOWN)
        await nodes.at(KNOWN)
        await nodes.running["n1"].insert("a", [1, 0], {"tag": 1}, timeout=30)
        for name in nodes.names:
            with pytest.raises(ClusterTooOld, match=rf"Patch.*needs version {NEXT}"):
                await nodes.running[name].patch("a", set={"tag": 2}, timeout=30)
            await nodes.start(name, NEXT)
        await nodes.at(NEXT)
        await nodes.running["n3"].patch("a", set={"tag": 2}, timeout=30)
        found = await nodes.running["n1"].get("a", timeout=30)
        assert found is not None and found.metadata == {"tag": 2}

        # nobody outside says that the cluster is at a version
        client: Any = nodes.running["n1"]._client
        raised = calls.encode(CatalogCall(catalog_commands.encode(RaiseVersion(NEXT + 1)), 5.0))
        with pytest.raises(InvalidArgument, match="by itself"):
            await client._caller.call(nodes._at["n1"], CATALOG, raised, 5)

        # a node of the former release neither comes back, nor is it served by the others
        await nodes.stop("n2")
        with pytest.raises(UnsupportedFormat, match=f"at version {NEXT}.*up to {KNOWN}: start this node with"):
            await nodes.start("n2", KNOWN)
        for listens, dials in (("n1", KNOWN), ("n3", FIRST)):
            node = nodes.running[listens]._node
            assert node is not None
            stranger = system_ports(node.config, knows=dials).peers(lambda _: nodes._at["n1"])
            with pytest.raises(UnsupportedVersion, match="start it with the release"):
                await stranger.call("n1", "who", b"", 10)
            await stranger.close()
    finally:
        await nodes.stop()


async def test_a_node_that_is_too_old_does_not_join(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 4)
    try:
        for name in nodes.names[:3]:
            await nodes.start(name, NEXT)
        await nodes.at(NEXT)
        joining = await nodes.start("n4", KNOWN)
        assert joining._node is not None
        failure = await asyncio.wait_for(joining._node.failed, 60)
        assert "start this node with the release that the other nodes run" in failure.message
        known = nodes.running["n1"]._node
        assert known is not None and known.topology.node("n4") is None
    finally:
        await nodes.stop()


def test_registering_says_less_only_where_more_could_not_be_kept() -> None:
    info = NodeInfo(id="a", address="a:1", incarnation=1, knows=3)
    assert info.registered_as(msgspec.structs.replace(info, knows=4)).knows == 4
    assert info.registered_as(msgspec.structs.replace(info, knows=2)).knows == 2  # started with the former one again
