"""A cluster that the settings of its nodes describe, on real processes: it founds itself, once."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from catalog.catalog_util import topology
from cluster.processes import healthy
from harness.calm import CALM
from needle.base.config import RaftConfig
from needle.base.errors import ConfigError, DiskFull, InvalidArgument, Unavailable
from needle.base.model import CollectionSpec
from needle.catalog.machine import CatalogMachine
from needle.catalog.state import execute
from needle.cli.app import main
from needle.distributed import RaftCluster
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol.catalog_commands import CreateCollection
from needle.routing.shard_map import initial_map
from needle.routing.strategy import RANGE
from needle.routing.topology import ClusterSettings, Topology
from needle.server import hosting
from needle.server.catalog.founding import uneven
from needle.server.catalog.settings_founding import SettingsFounding, cluster_uid, other_settings, settings_of
from needle.server.cluster_files import ClusterFile


def vector(n: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(n).standard_normal(8)]


def described(directory: Path, nodes: int = 3, shards: int = 2, **settings: Any) -> ProcessCluster:
    return ProcessCluster(directory, nodes, **{**CALM, "sharding": {"shards": shards}, **settings})


async def test_nodes_with_the_same_list_are_a_cluster_with_its_first_collection(tmp_path: Path) -> None:
    async with described(tmp_path) as processes, processes.connect() as client:
        await healthy(client)
        for n in range(20):
            await client.insert(f"d{n}", vector(n))
        founding = client.topology().founding
        assert client.topology().catalog == ("node-1", "node-2", "node-3")
        assert [len(info.replicas) for info in client.topology().shards] == [3, 3]
        processes.kill(*processes.nodes)
        processes.start_nodes()
        await processes.ready()
        assert await client.count() == 20
        assert client.topology().founding == founding
        await client.drop_collection("default")
        processes.kill(*processes.nodes)
        processes.start_nodes()
        await processes.ready()
        assert await client.collections() == []


async def test_of_four_founders_three_hold_the_catalog_and_any_node_can_go(tmp_path: Path) -> None:
    """Also when all are killed at once after that: who left the catalog's group does not begin it again."""
    sharding = {"shards": 2, "replicas": 3}
    async with described(tmp_path, nodes=4, sharding=sharding) as processes, processes.connect() as client:
        await healthy(client)
        await client.insert("d1", vector(1), timeout=60)

        async def three() -> bool:
            return len((await client.refresh_topology(confirmed=True)).catalog) == 3

        await wait_for(three, 60, "a catalog of three")
        processes.kill(*processes.nodes)
        processes.start_nodes()
        await processes.ready()
        await healthy(client)
        gone = (await client.refresh_topology(confirmed=True)).catalog[0]
        at = next(node.address for name, node in processes.nodes.items() if name != gone)
        assert await asyncio.to_thread(main, ["node", "drain", gone, "--throttle", "0", "--cluster", at]) == 0
        assert await asyncio.to_thread(main, ["node", "remove", gone, "--cluster", at]) == 0
        now = await client.refresh_topology(confirmed=True)
        assert gone not in now.addresses() and sorted(now.catalog) == sorted(now.addresses())
        assert await client.count() == 1
        await client.create_collection("other", dimensions=8, timeout=60)


async def test_a_node_that_was_silent_is_one_of_the_cluster_when_it_comes(tmp_path: Path) -> None:
    processes = described(tmp_path, shards=1)
    try:
        for name in ("node-1", "node-2"):
            processes.restart(name)
        await processes.ready("node-1", "node-2")
        async with processes.connect("node-1") as client:
            assert client.topology().node("node-3").incarnation == 0
            await client.insert("d1", vector(1), timeout=60)
            processes.restart("node-3")
            await processes.ready("node-3")
            await healthy(client)
            assert client.topology().node("node-3").incarnation != 0
            processes.kill("node-1")  # node-3 counts for a majority, of the catalog and of the shard
            await client.insert("d2", vector(2), timeout=60)
            await client.create_collection("other", dimensions=8, timeout=60)
    finally:
        await processes.close()


async def test_nodes_that_all_moved_find_each_other_by_their_new_lists(tmp_path: Path) -> None:
    async with described(tmp_path) as processes:
        async with processes.connect() as client:
            await healthy(client)
            await client.insert("d1", vector(1))
        processes.kill(*processes.nodes)
        ports = free_ports(len(processes.nodes))
        for port, node in zip(ports, processes.nodes.values(), strict=True):
            node.settings["listen"] = f"127.0.0.1:{port}"
        listed = [f"{name}={at}" for name, at in processes.addresses.items()]
        for node in processes.nodes.values():
            node.settings["cluster_nodes"] = listed
        processes.start_nodes()
        await processes.ready()
        async with processes.connect() as client:
            assert await client.count() == 1
            await client.insert("d2", vector(2), timeout=60)


async def test_one_node_alone_founds_nothing(tmp_path: Path) -> None:
    processes = described(tmp_path, shards=1)
    try:
        processes.restart("node-1")
        await wait_for(lambda: "listens on" in processes.nodes["node-1"].output(), 60, "the node")
        with pytest.raises(Unavailable):
            async with processes.connect("node-1") as client:
                await client.insert("d1", vector(1), timeout=2)
        assert not (tmp_path / "node-1" / "catalog").exists()
    finally:
        await processes.close()


async def test_a_node_whose_directory_was_emptied_is_not_taken_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with described(tmp_path, shards=1) as processes, processes.connect("node-1") as client:
        await healthy(client)
        await client.insert("d1", vector(1))
        node = processes.nodes["node-3"]
        processes.kill("node-3")
        shutil.rmtree(tmp_path / "node-3")
        processes.restart("node-3")
        await wait_for(lambda: not node.running() or "does not go on" in node.output(), 60, "the node's refusal")
        assert not list((tmp_path / "node-3").glob("shards/*"))
        assert await asyncio.to_thread(main, ["status", "--cluster", processes.nodes["node-1"].address]) == 1
        assert "node-3" in capsys.readouterr().out
        assert (await client.get("d1")) is not None


async def test_nodes_with_other_lists_do_not_found_a_second_cluster(tmp_path: Path) -> None:
    processes = described(tmp_path, shards=1)
    try:
        for name in ("node-1", "node-2"):
            processes.nodes[name].settings["cluster_nodes"] = processes.nodes[name].settings["cluster_nodes"][:2]
        processes.start_nodes()
        await processes.ready("node-1", "node-2")
        async with processes.connect("node-1") as client, processes.connect("node-3") as other:

            async def joined() -> bool:
                return "node-3" in (await client.refresh_topology(timeout=0.1)).addresses()

            await wait_for(joined, 60, "the third node joining")
            assert (await other.refresh_topology()).founding == client.topology().founding
            assert set(client.topology().shards[0].replicas) == {"node-1", "node-2"}
    finally:
        await processes.close()


async def test_a_list_with_another_nodes_address_founds_nothing_and_says_so(tmp_path: Path) -> None:
    processes = described(tmp_path, shards=1)
    try:
        listed = processes.nodes["node-1"].settings["cluster_nodes"]
        wrong = processes.nodes["node-2"].address
        processes.nodes["node-1"].settings["cluster_nodes"] = [listed[0], f"other={wrong}"]
        processes.restart("node-1")
        processes.restart("node-2")
        said = processes.nodes["node-1"].output
        needed = "a majority of its 2 cluster_nodes is needed"
        await wait_for(lambda: needed in said() and "node-2" in said(), 60, "the warning")
        assert not (tmp_path / "node-1" / "catalog").exists()
    finally:
        await processes.close()


async def test_a_list_that_differs_founds_nothing_and_can_be_put_right(tmp_path: Path) -> None:
    processes = described(tmp_path, shards=1)
    try:
        listed = processes.nodes["node-3"].settings["cluster_nodes"]
        processes.nodes["node-3"].settings["cluster_nodes"] = [*listed, "node-4=127.0.0.1:1"]
        for name in ("node-1", "node-3"):
            processes.restart(name)
        said = processes.nodes["node-1"].output
        await wait_for(lambda: "cluster_nodes of node-3 names other nodes" in said(), 60, "the warning")
        assert not any((tmp_path / name / "catalog").exists() for name in processes.nodes)
        processes.kill("node-3")
        processes.nodes["node-3"].settings["cluster_nodes"] = listed
        processes.restart("node-3")
        await processes.ready("node-1", "node-3")
    finally:
        await processes.close()


async def test_addresses_of_the_list_can_be_put_right_before_and_after_the_founding(tmp_path: Path) -> None:
    processes = described(tmp_path, shards=1)
    unused = free_ports(3)
    try:
        lists = {name: node.settings["cluster_nodes"] for name, node in processes.nodes.items()}
        for node in processes.nodes.values():
            wrong = [f"{name}=127.0.0.1:{unused[n]}" for n, name in enumerate(processes.nodes)]
            node.settings["cluster_nodes"] = wrong
        processes.start_nodes()
        for node in processes.nodes.values():
            await wait_for(
                lambda n=node: "a majority of its 3 cluster_nodes is needed" in n.output(), 60, "the warning"
            )
        processes.kill(*processes.nodes)
        for name, node in processes.nodes.items():
            node.settings["cluster_nodes"] = lists[name]
        processes.start_nodes()
        await processes.ready()
        processes.kill(*processes.nodes)
        moved = [f"{name}=127.0.0.1:{port}" for name, port in zip(processes.nodes, free_ports(3), strict=True)]
        for node, at in zip(processes.nodes.values(), moved, strict=True):
            node.settings |= {"cluster_nodes": moved, "listen": at.partition("=")[2]}
        processes.start_nodes()
        await processes.ready()
    finally:
        await processes.close()


async def test_a_founding_that_found_no_room_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [DiskFull("no room")]

    def machine(directory: str, *, knows: int) -> CatalogMachine:
        if full:
            raise full.pop()
        return CatalogMachine(directory, knows=knows)

    monkeypatch.setattr(hosting, "CatalogMachine", machine)
    at = f"127.0.0.1:{free_ports(1)[0]}"
    config = RaftConfig(node_id="a", cluster_nodes=[f"a={at}"], data_dir=str(tmp_path / "a"), dimensions=8)
    async with RaftCluster(config) as cluster:
        await cluster.wait_ready(60)
        await cluster.insert("d1", vector(1))
    assert not full


def test_a_directory_that_was_begun_with_another_list_is_reported(tmp_path: Path) -> None:
    config = RaftConfig(node_id="a", cluster_nodes=["a=h:1", "b=h:2"], data_dir=str(tmp_path))
    begun = ClusterFile(incarnation=1, uid=5, voters={"a": "h:1", "c": "h:2"})
    founding = SettingsFounding(SimpleNamespace(node_id="a", config=config, cluster=begun))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="was begun with the nodes a, c, and cluster_nodes names a, b now"):
        founding._check_list()


@pytest.mark.parametrize(
    ("sharding", "field"),
    [
        ({"shards": 1, "join": ["127.0.0.1:1"]}, "cluster_nodes"),
        ({"replicas": 2}, "cluster_nodes"),
        ({"shards": 0}, "sharding.shards"),
    ],
)
def test_settings_that_describe_no_cluster_are_refused(sharding: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        RaftConfig.from_mapping(
            {"node_id": "a", "listen": "127.0.0.1:5000", "data_dir": str(tmp_path), "sharding": sharding}
        )
    assert caught.value.details["field"] == field


@pytest.mark.parametrize(
    ("sharding", "field"),
    [
        ({"strategy": "rendezvous"}, "sharding.strategy"),
        ({"strategy": "custom:"}, "sharding.strategy"),
        ({"strategy": "custom:a,,b"}, "sharding.strategy"),
        ({"shards": 3, "strategy": "range", "boundaries": ["m"]}, "boundaries"),
        ({"shards": 3, "strategy": "range", "boundaries": ["m", "a"]}, "boundaries"),
        ({"shards": 2, "boundaries": ["m"]}, "sharding.boundaries"),
    ],
)
def test_shards_that_cannot_be_are_refused(sharding: dict[str, Any], field: str) -> None:
    config = RaftConfig.from_mapping(
        {"node_id": "a", "cluster_nodes": ["a=h:1"], "data_dir": "x", "sharding": sharding}
    )
    with pytest.raises(InvalidArgument) as caught:
        settings_of(config)
    assert caught.value.details["field"] == field


def test_ranges_that_will_hold_all_ids_in_one_shard_are_told_of() -> None:
    def note(boundaries: list[str], **sharding: Any) -> str:
        told = {"cluster_nodes": ["a=h:1"], "sharding": {"boundaries": boundaries, **sharding}}
        return uneven(settings_of(RaftConfig.from_mapping({"node_id": "a", "data_dir": "x", **told})), boundaries)

    assert "one or two of 3 shards" in note([], shards=3, strategy="range")
    assert not note(["g", "p"], shards=3, strategy="range")
    assert not note([], shards=1, strategy="range") and not note([], shards=3)


def test_a_node_whose_shards_cannot_be_makes_no_directory(tmp_path: Path) -> None:
    place = tmp_path / "data"
    argv = ["serve", "--node-id", "a", "--data-dir", str(place), "--cluster-node", "a=127.0.0.1:1"]
    command = [sys.executable, "-m", "needle", *argv, "--strategy", "rendezvous"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "sharding.strategy = 'rendezvous' is not allowed" in done.stderr
    assert not place.exists()


def test_settings_that_differ_from_the_cluster_are_told_of() -> None:
    def config(**settings: Any) -> RaftConfig:
        return RaftConfig.from_mapping({"node_id": "a", "cluster_nodes": ["a=h:1"], "data_dir": "x", **settings})

    now = topology(shards=4, factor=3)
    assert other_settings(config(dimensions=4), now) == ["dimensions = 4, it has no collection 'default'"]
    now = execute(now, 2, CreateCollection(CollectionSpec(name="default", dimensions=4), False, 1))[0]
    assert other_settings(config(), now) == []
    assert other_settings(config(dimensions=4, sharding={"shards": 4}), now) == []
    told = {"shards": 2, "strategy": "range", "virtual_nodes": 7}
    shards, strategy, points, collection = other_settings(config(dimensions=8, sharding=told), now)
    assert shards == "sharding.shards = 2, it has 4"
    assert strategy == "sharding.strategy = range, it has consistent_hash" and points.startswith("sharding.virtual_n")
    assert "(8, 'cosine', " in collection and "(4, 'cosine', " in collection


def test_other_boundaries_than_the_cluster_was_founded_with_are_told_of_until_ranges_move() -> None:
    def told(*boundaries: str) -> list[str]:
        sharding = {"shards": 3, "strategy": "range", "boundaries": boundaries}
        config = RaftConfig.from_mapping(
            {"node_id": "a", "cluster_nodes": ["a=h:1"], "data_dir": "x", "sharding": sharding}
        )
        return other_settings(config, now)

    settings = ClusterSettings(shard_count=3, replication_factor=1, strategy=RANGE)
    now = Topology(settings=settings, map=initial_map(RANGE, 3, boundaries=("g", "p")))
    assert told("g", "p") == []
    assert told("g", "q") == ["sharding.boundaries = ['g', 'q'], its ranges begin elsewhere"]
    now = msgspec.structs.replace(now, map=msgspec.structs.replace(now.map, epoch=2))
    assert told("g", "q") == []


def test_the_list_gives_the_cluster_its_uid(tmp_path: Path) -> None:
    def uid(cluster_id: str, *nodes: str) -> int:
        config = RaftConfig(node_id="a", cluster_id=cluster_id, cluster_nodes=nodes, data_dir=str(tmp_path))
        return cluster_uid(config)

    mine = uid("x", "a=h:1", "b=h:2")
    assert mine == uid("x", "b=other:9", "a=h:1") and mine > 0
    assert len({mine, uid("y", "a=h:1", "b=h:2"), uid("x", "a=h:1"), uid("x", "a=h:1", "c=h:2")}) == 4
