"""Damage to the Raft log of a stopped node: repaired from peers, or refused with the remedy named.

Never a wrong answer, never a lost acknowledged write (docs/data-on-disk.md, design/raft.md §4).
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from harness.calm import CALM
from harness.damage import (
    committed_documents,
    cut_documents_wal,
    find_in_log,
    flip_bits,
    log_segment,
    lose_last_commit,
    record_before,
    tear_tail,
)
from harness.marked_documents import DOCUMENTS, complete, ended, fill, follower_of, marker, vector
from needle.local.process_cluster import ProcessCluster, wait_for

pytestmark = pytest.mark.campaign


async def test_a_torn_tail_is_dropped(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster:
        async with cluster.connect() as client:
            await fill(client)
        for name, node in cluster.nodes.items():
            cluster.kill(name)
            tear_tail(node.data_dir)
        for name in cluster.nodes:
            cluster.restart(name)
        await complete(cluster)
        for node in cluster.nodes.values():
            assert "which was never finished" in node.output()


async def test_flipped_bits_in_an_entry_are_repaired_from_the_documents(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await fill(client)
        hurt = await follower_of(cluster)
        node = cluster.nodes[hurt]
        await wait_for(lambda: committed_documents(node.data_dir) == DOCUMENTS, 10, "the documents being committed")
        cluster.kill(hurt)
        path, at = find_in_log(node.data_dir, marker(DOCUMENTS - 20).encode())
        flip_bits(path, at + 3)
        cluster.restart(hurt)
        await complete(cluster)
        assert "fails its checksum; its values are checked" in node.output()
        assert "the state machine has it, so the log goes on after it" in node.output()
        cluster.kill(hurt)
        cluster.restart(hurt)
        await complete(cluster)
        assert node.output().count("fails its checksum; its values are checked") <= 1


async def test_flipped_bits_in_an_entry_that_was_not_yet_applied_are_repaired_from_peers(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await fill(client)
        hurt = await follower_of(cluster)
        node = cluster.nodes[hurt]
        cluster.kill(hurt)
        path, at = find_in_log(node.data_dir, marker(DOCUMENTS - 20).encode())
        flip_bits(path, at + 3)
        cut_documents_wal(node.data_dir, random.Random(1), at=0)  # with it, nothing here has that document any more
        cluster.restart(hurt)
        await complete(cluster)
        assert "this replica does not vote until it has fetched" in node.output()
        await client.insert("one more", vector(1))
        await client.step_down()  # a new term's no-op is what ends the repair at the latest
        await wait_for(lambda: "this replica votes again" in node.output(), 60, "the end of the repair")
        cluster.kill(next(name for name in cluster.nodes if name != hurt))
        await client.insert("with its vote", vector(2))


async def at_rest(data_dir: Path) -> None:
    """Wait until the log has been the same for a while."""
    seen: list[tuple[float, bytes]] = []

    def rests() -> bool:
        now, data = time.monotonic(), log_segment(data_dir).read_bytes()
        if not seen or seen[0][1] != data:
            seen[:] = [(now, data)]
        return now - seen[0][0] > 0.5

    await wait_for(rests, 60, "a log at rest")


@pytest.mark.parametrize("damage", ["framing", "lost commit"])
async def test_damage_that_could_hide_a_vote_is_refused_and_the_node_can_be_replaced(
    damage: str, tmp_path: Path
) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await fill(client)
        hurt = await follower_of(cluster)
        node = cluster.nodes[hurt]
        await at_rest(node.data_dir)  # killed between a write and its return, a node cannot know that there was one
        cluster.kill(hurt)
        if damage == "framing":
            path, at = find_in_log(node.data_dir, marker(DOCUMENTS - 20).encode())
            flip_bits(path, record_before(path, at) + 5)
        else:
            lose_last_commit(node.data_dir)
        before = {path: path.read_bytes() for path in (node.data_dir / "log").glob("*.wal")}
        cluster.restart(hurt)
        assert await ended(cluster, hurt) == 1
        said = node.output().splitlines()[-1]
        assert "[corrupt_log]" in said
        assert "Remove this node from the cluster, delete its data directory" in said
        assert "Traceback" not in node.output()
        assert {path: path.read_bytes() for path in before} == before, "refusing changed the log"
        await fill(client, DOCUMENTS, 5)  # the others go on


async def test_flipped_bits_on_the_only_node_are_refused(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster:
        async with cluster.connect() as client:
            await fill(client)
        node = cluster.nodes["node-1"]
        cluster.kill("node-1")
        path, at = find_in_log(node.data_dir, marker(DOCUMENTS - 20).encode())
        flip_bits(path, at + 3)
        cut_documents_wal(node.data_dir, random.Random(1), at=0)
        cluster.restart("node-1")
        assert await ended(cluster, "node-1") == 1
        assert "Remedy: restore a backup" in node.output()
