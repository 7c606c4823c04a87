"""What `needle status` says beside the conditions of each shard."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rich.console import Console

from catalog.catalog_util import topology
from client.test_conditions import view
from needle.base.errors import ConnectionLost, NoQuorum
from needle.base.model import PeerStatus, RaftStatus
from needle.catalog.state import execute
from needle.cli.common import standard_output, table
from needle.cli.status import balance, look, status_json, status_table
from needle.client.cluster_conditions import WAITS_SECONDS
from needle.client.health import ClusterHealth, ReplicaStatus, ShardHealth
from needle.protocol.catalog_commands import AddShard, RetireShard
from needle.protocol.peer_calls import DiskRoom, Levels, WhoAnswer
from needle.routing.jobs import Job, JobState, RebalanceConfig, Wish
from needle.routing.topology import Topology


class FakeClient:
    """A shard on three nodes that are well, and a catalog that says `told`."""

    def __init__(self, told: RaftStatus | NoQuorum, full: str = "") -> None:
        now = topology(shards=1, nodes=3)
        now = execute(now, 2, AddShard(1, ["node-1"]))[0]
        self.now = execute(now, 3, RetireShard(1))[0]
        assert self.now.shards[1].retired
        self.told = told
        self.full = full
        self.damaged: dict[str, str] = {}
        self.of_catalog: Callable[[RaftStatus], RaftStatus] = lambda status: status
        self.given_up: list[tuple[int, str]] = []
        self.held: list[str] = []
        self.documents = 0
        self.without: set[str] = set()
        """Nodes on which the catalog has no replica that answers."""
        self.waited: dict[str, float | None] = {}

    async def cluster_status(self, *, timeout: float) -> list[ReplicaStatus]:
        nodes = self.now.shards[0].replicas
        states = {node: "Leader" if node == nodes[0] else "Follower" for node in nodes}

        def status(node: str, state: str) -> RaftStatus:
            found = view(node, state).status
            assert found is not None
            return msgspec.structs.replace(
                found,
                voters=list(nodes),
                damage=self.damaged.get(node, ""),
                held_moves=self.held,
                documents=self.documents,
            )

        return [
            ReplicaStatus(shard=0, node=node, address=f"{node}:1", status=status(node, state))
            for node, state in states.items()
        ]

    async def catalog_status(self, *, timeout: float) -> RaftStatus:
        if isinstance(self.told, NoQuorum):
            raise self.told
        return self.told

    async def catalog_replicas(self, *, timeout: float) -> list[ReplicaStatus]:
        if isinstance(self.told, NoQuorum):
            return []
        nodes = ["node-1", "node-2", "node-3"]
        told = {"node-1": self.told, **{node: view(node, "Follower").status for node in nodes[1:]}}
        told = {node: status and msgspec.structs.replace(status, voters=nodes) for node, status in told.items()}
        return [
            ReplicaStatus(shard=-1, node=node, address=f"{node}:1", status=status and self.of_catalog(status))
            for node, status in told.items()
            if node not in self.without
        ]

    async def describe_node(self, node: str, *, timeout: float) -> WhoAnswer:
        if node == "node-3":
            raise ConnectionLost("down")
        low = DiskRoom(10**6, 10**9, 9 * 10**8, 10**8, True)
        disk, given_up = low if node in self.full else None, self.given_up if node == "node-2" else []
        levels = Levels(0, 1, rebalance_seconds=self.waited.get(node)) if self.waited else None
        return WhoAnswer(node, f"{node}:1", 1, "", 1.0, 1, 1, disk=disk, given_up=given_up, levels=levels)

    def topology(self) -> Topology:
        return self.now


def seen(told: RaftStatus | NoQuorum, full: str = "") -> list[tuple[str, str, str]]:
    client: Any = FakeClient(told, full)
    found = asyncio.run(look(client, [])).conditions
    return [(one.severity, one.name, one.subject) for one in found]


@pytest.fixture
def well() -> RaftStatus:
    status = view("node-1", "Leader").status
    assert status is not None
    return status


def test_a_shard_that_was_given_up_needs_no_leader(well: RaftStatus) -> None:
    assert seen(well) == []


def test_a_shard_that_lacks_a_replica_is_told(well: RaftStatus) -> None:
    client: Any = FakeClient(well)
    client.damaged = {"node-2": "a checksum"}
    found = asyncio.run(look(client, []))
    assert ("under-replicated", "shard 0 has 2 of 3 replicas") in [(one.name, one.subject) for one in found.conditions]
    assert found.health.under_replicated == [0]


def test_a_catalog_that_lacks_a_replica_is_told(well: RaftStatus) -> None:
    client: Any = FakeClient(well)
    assert asyncio.run(look(client, [])).conditions == []
    client.without = {"node-2"}
    (found,) = asyncio.run(look(client, [])).conditions
    assert (found.name, found.subject) == ("under-replicated", "the catalog has 2 of 3 replicas")


def test_an_election_of_the_catalog_is_told(well: RaftStatus) -> None:
    client: Any = FakeClient(well)
    client.of_catalog = lambda status: (
        msgspec.structs.replace(status, state="Candidate") if status.node_id == "node-3" else status
    )
    told = [(one.name, one.subject) for one in asyncio.run(look(client, [])).conditions]
    assert told == [("leader election in progress", "catalog: node-3")]


def test_what_the_catalog_waits_for_is_said(well: RaftStatus) -> None:
    waits = msgspec.structs.replace(well, waits_for="node-4 does not answer")
    assert seen(waits) == [("warning", "replicas not in place", "catalog: node-4 does not answer")]


def test_the_catalog_has_rows_and_conditions_of_its_own(well: RaftStatus) -> None:
    client: Any = FakeClient(well)
    client.of_catalog = lambda status: msgspec.structs.replace(
        status,
        damage="a checksum" if status.node_id == "node-2" else "",
        peers=[
            PeerStatus(
                id=name,
                address="",
                match_index=1,
                state="replicate",
                is_learner=False,
                lag_entries=9,
                lag_ms=12_000.0,
                recently_active=True,
            )
            for name in ("node-2", "node-3")
        ],
    )
    client.without = {"node-3"}
    found = asyncio.run(look(client, []))
    assert [(one.name, one.subject) for one in found.conditions] == [
        ("damaged data", "catalog: node-2: a checksum"),
        ("replication lag > 10 s", "catalog: node-2 is 9 entries, 12.0 s behind"),
        ("under-replicated", "the catalog has 1 of 3 replicas"),
    ]
    told: Any = status_json(found)
    assert told["catalog"]["leader"] == "node-1"
    assert [(one["node"], one["lag_entries"]) for one in told["catalog"]["replicas"]] == [("node-1", 0), ("node-2", 9)]
    shown = Console(record=True, width=200, file=io.StringIO())
    shown.print(status_table(found))
    assert [line.split()[:2] for line in shown.export_text().splitlines() if "node-" in line][3] == [
        "catalog",
        "node-1",
    ]


@pytest.mark.parametrize(("version", "names"), [(0, ["no cluster"]), (7, ["no cluster", "replica lost state"])])
def test_a_cluster_that_is_being_founded_has_lost_nothing(version: int, names: list[str]) -> None:
    """One of its nodes belongs to it already, and speaks to another one that does not yet. If it had seen the catalog,
    that other one would have been emptied."""
    told = {
        "node-1:1": WhoAnswer("node-1", "node-1:1", 1, "", 1.0, 5, version),
        "node-2:1": WhoAnswer("node-2", "node-2:1", 1, "", 1.0, 0, 0, strangers=["node-1"], founds=5),
    }

    class Founding:
        async def cluster_status(self, *, timeout: float) -> list[ReplicaStatus]:
            return []

        def topology(self) -> Topology:
            return Topology()

        async def describe_node(self, node: str, *, timeout: float) -> WhoAnswer:
            return told[node]

    client: Any = Founding()
    assert [one.name for one in asyncio.run(look(client, list(told))).conditions] == names


def test_a_full_disk_is_critical(well: RaftStatus) -> None:
    ((severity, name, subject),) = seen(well, "node-2 node-3")
    assert (severity, name) == ("critical", "disk full") and subject.startswith("node-2: 1 MB free, 100 MB and")


def test_files_that_a_node_may_not_delete_are_told_with_the_reason(well: RaftStatus) -> None:
    client = FakeClient(well)
    client.given_up = [(3, "no leader of it answers on the nodes that hold it now")]
    (found,) = asyncio.run(look(client, [])).conditions  # type: ignore[arg-type]
    assert (found.severity, found.name) == ("warning", "files not deleted")
    assert found.subject.startswith("node-2 holds shard 3 no more and keeps its files: no leader of it answers")


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.FAILED])
def test_a_rebalance_of_which_nothing_can_go_on_is_told(well: RaftStatus, state: JobState) -> None:
    """Prometheus told of it, and `needle status` of moves that wait only."""
    client = FakeClient(well)
    job = Job(id=7, wish=Wish(), config=RebalanceConfig(), state=state, why="shard 1 has no leader")
    client.now = msgspec.structs.replace(client.now, rebalance=job)
    found = asyncio.run(look(client, [])).conditions  # type: ignore[arg-type]
    told = [("NeedleMoveWaits", "rebalance 7: shard 1 has no leader")] if state is JobState.RUNNING else []
    assert [(one.alert, one.subject) for one in found] == told


def test_a_rebalance_that_waits_for_a_moment_is_not_told(well: RaftStatus) -> None:
    """Others move something first, say; it is once that has lasted, by who carries it out."""
    client = FakeClient(well)
    job = Job(id=7, wish=Wish(), config=RebalanceConfig(), state=JobState.RUNNING, why="waits: its limit is used")
    client.now = msgspec.structs.replace(client.now, rebalance=job)
    for seconds, told in ((0.0, 0), (WAITS_SECONDS - 1, 0), (WAITS_SECONDS, 1), (None, 1)):
        client.waited = {"node-1": None, "node-2": seconds}
        found = asyncio.run(look(client, [])).conditions  # type: ignore[arg-type]
        assert [one.alert for one in found] == ["NeedleMoveWaits"] * told, seconds


def test_moves_that_wait_speak_for_their_rebalance(well: RaftStatus) -> None:
    client = FakeClient(well)
    client.held = ["move 9 to shard 1 waits"]
    job = Job(id=7, wish=Wish(), config=RebalanceConfig(), state=JobState.RUNNING, why="move 9 to shard 1 waits")
    client.now = msgspec.structs.replace(client.now, rebalance=job)
    found = asyncio.run(look(client, [])).conditions  # type: ignore[arg-type]
    assert [one.subject for one in found if one.alert == "NeedleMoveWaits"] == ["move 9 to shard 1 waits"]


def test_a_catalog_without_a_leader_is_critical() -> None:
    assert seen(NoQuorum("nobody leads")) == [("critical", "no leader", "catalog: nobody leads")]


def test_documents_that_no_leader_counts_are_not_said_to_be_none() -> None:
    def shard(leader: str | None, documents: int) -> ShardHealth:
        return ShardHealth(
            state="healthy" if leader else "unavailable",
            leader=leader,
            term=2,
            healthy_followers=0,
            total_followers=2,
            documents=documents,
            share=0.5,
            problems=[],
        )

    def line(*shards: ShardHealth) -> str:
        return balance(ClusterHealth(healthy=False, shards=dict(enumerate(shards)), warnings=[]))

    assert "no documents yet" in line(shard("a", 0), shard("b", 0))
    assert line(shard(None, 0), shard(None, 0)).endswith("no leader counts shards 0, 1")
    assert line(shard("a", 7), shard(None, 0)).endswith("no leader counts shards 1")


def test_the_last_backup_is_told_or_that_there_is_none(well: RaftStatus, capsys: pytest.CaptureFixture[str]) -> None:
    client = FakeClient(well)

    def line() -> str:
        console = Console(width=200)
        console.print(status_table(asyncio.run(look(client, []))))  # type: ignore[arg-type]
        return capsys.readouterr().out.splitlines()[-1].strip()

    assert "backup" not in line(), "an empty cluster lacks none"
    client.documents = 12
    seen = asyncio.run(look(client, []))  # type: ignore[arg-type]
    assert line().startswith("backup: none was made that the cluster was told of")
    assert status_json(seen)["last_backup"] is None
    client.now = msgspec.structs.replace(client.now, archived=1_800_000_000_000_000)
    assert line() == "backup: the logs are archived, as was told last at 2027-01-15T08:00:00Z"
    told = status_json(asyncio.run(look(client, [])))  # type: ignore[arg-type]
    assert (told["last_backup"], told["last_archived"]) == (None, "2027-01-15T08:00:00Z")
    client.now = msgspec.structs.replace(client.now, backed_up=1_900_000_000_250_000)
    assert line() == "backup: the last one began at 2030-03-17T17:46:40Z"
    assert status_json(asyncio.run(look(client, [])))["last_backup"] == "2030-03-17T17:46:40.25Z"  # type: ignore[arg-type]


def test_what_goes_into_a_pipe_is_as_wide_as_a_table_of_replicas(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's table, too: in 80 columns nothing was left of the numbers of nodes and ports."""
    monkeypatch.setenv("COLUMNS", "80")
    for told in (standard_output(markup=True), standard_output(markup=False)):
        rows = table("node", *("a column" for _ in range(10)))
        rows.add_row("node-1", *("127.0.0.1" for _ in range(10)))
        told.print(rows)
        assert "node-1" in capsys.readouterr().out


def test_a_narrow_terminal_wraps_cells_and_cuts_nothing_off(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["shard", "keys", "node", "address", "state", "term", "commit", "applied", "lag", "documents", "lease"]
    cells = ["0", "9.5%", "node-1", "10.0.0.1:5000", "Follower", "12", "12345", "12346", "0, 0 ms", "12347", "128 ms"]
    rows = table(*names)
    rows.add_row(*cells)
    Console(width=80).print(rows)
    shown = "".join(capsys.readouterr().out.split())
    assert sorted(shown) == sorted("".join([*names, *cells]).replace(" ", ""))
