"""Index files of a replica that are deleted, torn or spoilt, on a stopped node and under a running one.

They are derived data: damage is found and reported, the file comes back from a peer, and answers are right throughout.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.calm import CALM
from harness.damage import cut, flip_bit, segment_files
from harness.pinned import Pinned
from needle.base.errors import ReplicaDamaged
from needle.base.model import SearchRequest
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.local.published import of_one_cluster

pytestmark = pytest.mark.campaign

DIMENSIONS = 32
ROWS = 1500
RNG = np.random.default_rng(3)
VECTORS = RNG.standard_normal((ROWS, DIMENSIONS)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
QUERIES = VECTORS[::100] + 0.01
SETTINGS = {
    "dimensions": DIMENSIONS,
    "segments": {"seal_rows": 300, "ship_timeout": 600.0, "scrub_interval": 0.3},
    **CALM,
}


SEGMENTS = 'needle_segments{collection="default",shard="0"}'


def truth() -> list[list[str]]:
    return [[f"d{n}" for n in np.argsort(-(VECTORS @ query))[:5]] for query in QUERIES]


async def hits(address: str) -> list[list[str]]:
    """What one node answers, exactly scored: index files serve the vectors here, too."""
    async with Pinned(address) as pinned:
        return [
            (await pinned.search(SearchRequest(collection="default", vector=q.tobytes(), k=5, exact=True))).ids
            for q in QUERIES
        ]


async def metric(cluster: ProcessCluster, name: str, sample: str) -> float:
    _, text = await cluster.http(name, "/metrics")
    text = of_one_cluster(text)
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def event(cluster: ProcessCluster, name: str, what: str) -> float:
    return await metric(cluster, name, f'needle_segment_events_total{{event="{what}",shard="0"}}')


async def load(cluster: ProcessCluster) -> None:
    """Insert everything, and wait until every replica has the same index files and they are still."""
    async with cluster.connect() as client:
        for at in range(0, ROWS, 100):
            await client.insert_batch(ids=[f"d{n}" for n in range(at, at + 100)], vectors=VECTORS[at : at + 100])

    async def all_there() -> bool:
        names = [{path.name for path in segment_files(node.data_dir)} for node in cluster.nodes.values()]
        rows = sum(int(last) - int(first) + 1 for first, last in (n.split("-")[1:3] for n in names[0]))
        used = [await metric(cluster, name, SEGMENTS) for name in cluster.nodes]
        # Fewer rows than seal_rows may wait for their segment forever.
        return all(held == names[0] for held in names) and rows > ROWS - 300 and used == [len(names[0])] * len(used)

    await wait_for(all_there, 60, "the same index files everywhere")


async def follower_of(cluster: ProcessCluster) -> str:
    leader = await cluster.leader()
    return next(name for name in cluster.nodes if name != leader)


async def whole(cluster: ProcessCluster, name: str, wanted: list[Path]) -> None:
    """The files are back, byte for byte, and the node uses them."""
    contents = [
        path.read_bytes() for path in segment_files(next(n for k, n in cluster.nodes.items() if k != name).data_dir)
    ]

    async def back() -> bool:
        files = segment_files(cluster.nodes[name].data_dir)
        same = [path.name for path in files] == [path.name for path in wanted]
        return same and [path.read_bytes() for path in files] == contents

    await wait_for(back, 60, "the index files being whole again")

    async def attached() -> bool:
        return await metric(cluster, name, SEGMENTS) == len(wanted)

    await wait_for(attached, 60, "the index files being in use again")


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    cut(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    cut(path, 0)


def flip(path: Path) -> None:
    flip_bit(path, path.stat().st_size // 3, 5)


async def test_damage_on_a_stopped_node_is_found_at_its_start(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **SETTINGS) as cluster:
        await load(cluster)
        damages: list[Callable[[Path], None]] = [remove, truncate, empty, flip]
        for damage in damages:
            hurt = await follower_of(cluster)
            node = cluster.nodes[hurt]
            wanted = segment_files(node.data_dir)
            cluster.kill(hurt)
            damage(wanted[0])
            cluster.restart(hurt)
            await cluster.ready(hurt)
            assert await hits(node.address) == truth(), damage.__name__
            await whole(cluster, hurt, wanted)
            assert await hits(node.address) == truth(), damage.__name__
            assert await event(cluster, hurt, "shipped") == 1
            assert await event(cluster, hurt, "rebuilt") == 0
            assert await event(cluster, hurt, "corrupt") == (0 if damage is remove else 1)
        await cluster.equal_digests()


async def test_all_index_files_of_the_leader_are_gone(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **SETTINGS) as cluster:
        await load(cluster)
        hurt = await cluster.leader()
        node = cluster.nodes[hurt]
        wanted = segment_files(node.data_dir)
        cluster.kill(hurt)
        shutil.rmtree(wanted[0].parent)  # docs/data-on-disk.md allows it
        cluster.restart(hurt)
        await cluster.ready(hurt)
        assert await hits(node.address) == truth()
        await whole(cluster, hurt, wanted)


async def test_a_file_that_nobody_else_has_is_built_again(tmp_path: Path) -> None:
    settings = {**SETTINGS, "segments": {"seal_rows": 300, "ship_timeout": 0.0}}
    async with ProcessCluster(tmp_path, nodes=1, **settings) as cluster:
        await load(cluster)
        cluster.kill("node-1")
        for path in segment_files(cluster.nodes["node-1"].data_dir):
            flip(path)
        cluster.restart("node-1")
        await cluster.ready()
        assert await hits(cluster.nodes["node-1"].address) == truth()

        async def rebuilt() -> bool:
            return await event(cluster, "node-1", "rebuilt") >= 1 and await event(cluster, "node-1", "corrupt") >= 1

        await wait_for(rebuilt, 60, "the files being built again")
        assert await hits(cluster.nodes["node-1"].address) == truth()


@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_damage_under_a_running_node_is_found_by_the_scrub(role: str, tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **SETTINGS) as cluster:
        await load(cluster)
        hurt = await (cluster.leader() if role == "leader" else follower_of(cluster))
        node = cluster.nodes[hurt]
        wanted = segment_files(node.data_dir)
        before = await event(cluster, hurt, "corrupt")
        flip_bit(wanted[0], wanted[0].stat().st_size - 3)  # in the checksum: no search reads it

        async def found() -> bool:
            return await event(cluster, hurt, "corrupt") > before

        await wait_for(found, 60, "the scrub finding it")
        await whole(cluster, hurt, wanted)
        assert "it will be fetched or built again" in node.output()
        assert await hits(node.address) == truth()
        remove(wanted[-1])
        await whole(cluster, hurt, wanted)
        assert node.running()


async def test_a_file_that_was_cut_is_replaced_by_the_search_that_needs_it(tmp_path: Path) -> None:
    """Nothing else looks: the size of a mapped file is compared before each use."""
    segments = {**SETTINGS["segments"], "scrub_interval": 3600.0}
    async with ProcessCluster(tmp_path, **{**SETTINGS, "segments": segments}) as cluster:
        await load(cluster)
        hurt = await follower_of(cluster)
        node = cluster.nodes[hurt]
        wanted = segment_files(node.data_dir)
        before = await event(cluster, hurt, "corrupt")  # who is asked for a file that was merged away answers so too
        for path in wanted:
            os.truncate(path, 4096)
        with pytest.raises(ReplicaDamaged, match="shorter"):
            await hits(node.address)

        async def found() -> bool:
            try:
                return await hits(node.address) == truth()
            except ReplicaDamaged:
                return False

        await wait_for(found, 60, "the searches being right again")
        assert await event(cluster, hurt, "corrupt") - before == len(wanted)
        await whole(cluster, hurt, wanted)
        assert node.running() and await hits(node.address) == truth()
