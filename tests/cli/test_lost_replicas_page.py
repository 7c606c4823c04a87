"""The chapter "A replica does not go on" of docs/troubleshooting.md: its faults are caused on real nodes, and mended by
its commands as they stand there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

import needle
from harness.calm import CALM
from harness.commands import Run
from harness.page_chapter import Chapter
from multiraft.wal_util import open_wal
from needle.base.ids import shard_group
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.multiraft.log.log_records import HARD, META_KEY, PEER_PREFIX, decode_record, encode_record, record_key
from needle.multiraft.log.wal_store import WalStore
from needle.raft.messages import HardState

pytestmark = [pytest.mark.timeout(400), pytest.mark.runbook]

VECTOR = [1.0] * 8


class Book(Chapter):
    """data: whose directory a line means by DATA_DIR."""

    data: str = ""

    def words(self, text: str) -> list[str]:
        here = str(self.cluster.nodes[self.data].data_dir) if self.data else "DATA_DIR"
        return super().words(text.replace("DATA_DIR", here))

    async def begin(self, *names: str) -> None:
        """Starts them; they need not come to serve."""
        for name in names:
            await self.line(f"ssh 10.0.0.{name[-1]} systemctl start needle@{name}")

    async def end(self, *names: str) -> None:
        for name in names:
            await self.line(f"ssh 10.0.0.{name[-1]} systemctl stop needle@{name}")

    async def on(self, *names: str) -> str:
        """Runs the next block for the directory of each; what it prints."""
        lines, said = self._blocks.pop(0).splitlines(), ""
        for self.data in names:
            said += "".join([await self.line(line) for line in lines])
        self.data = ""
        return said

    def ask(self, *names: str) -> None:
        """From now on only these: one that was replaced is no member any more, which would be told."""
        os.environ["NEEDLE_CLUSTER"] = ",".join(self.cluster.addresses[name] for name in names)

    async def join(self) -> None:
        """A new node, that joins."""
        name = self.cluster.add(sharding={"join": list(self.cluster.addresses.values())})
        self.cluster.restart(name)
        await wait_for(lambda: self._knows(name), 60, f"{name} in the catalog")

    async def _knows(self, name: str) -> bool:
        return name in [node["id"] for node in (await self.shown("node", "list"))]

    async def lost(self, *names: str) -> str:
        """Waits until `needle status` says of them that they do not go on; what it says."""

        async def told() -> str:
            found = [one for one in await self.conditions() if one.startswith("replica lost state: ")]
            return "\n".join(found) if all(any(name in one for one in found) for name in names) else ""

        said: str = await wait_for(told, 90, f"{names} that do not go on")
        return said


async def test_a_replica_does_not_go_on(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    calm = {**CALM, "replace_after": 0.0}
    async with ProcessCluster(tmp_path, 3, sharding={"shards": 1, "replicas": 3}, **calm) as cluster:
        monkeypatch.setenv("NEEDLE_CLUSTER", cluster.cluster)
        page = Book("A replica does not go on", cluster, tmp_path, run)
        async with cluster.connect() as client:
            await an_older_copy(page, client, tmp_path)
            await two_older_copies(page, client, tmp_path)
            await a_term_that_is_too_high(page, client)
        page.finished()


async def an_older_copy(page: Book, client: needle.Client, path: Path) -> None:
    """Of one node, which is put right, and then replaced."""
    cluster, directory = page.cluster, page.cluster.nodes["node-3"].data_dir
    await page.end("node-3")
    shutil.copytree(directory, path / "older")
    await page.begin("node-3")
    await cluster.ready("node-3")
    for n in range(20):
        await client.insert(f"a{n}", VECTOR, timeout=60)
    await page.end("node-3")
    directory.rename(path / "right")
    shutil.copytree(path / "older", directory)
    await page.begin("node-3")
    assert "remember" in await page.lost("node-3")
    assert "replica lost state" in await page.next(1)
    await client.insert("goes on", VECTOR, timeout=60)
    await page.next(0)
    shutil.rmtree(directory)
    (path / "right").rename(directory)
    await page.next(0)
    await cluster.ready("node-3")
    await page.well()

    await page.end("node-3")
    shutil.rmtree(directory)
    shutil.copytree(path / "older", directory)
    await page.begin("node-3")
    await page.lost("node-3")
    await page.join()
    said = await page.next(0, 0, None)
    assert "node-4 is in the place of node-3" in said and page.verbs[-1] == "disable node-3"
    page.ask("node-1", "node-2", "node-4")
    await page.well()
    assert await client.count(timeout=60) == 21


async def two_older_copies(page: Book, client: needle.Client, path: Path) -> None:
    """Of a majority, which goes on without what was acknowledged, as after an upgrade from a release in which nodes
    remembered nothing of each other."""
    cluster, left = page.cluster, ("node-1", "node-2")
    await page.end(*left, "node-4")
    for name in left:
        shutil.copytree(cluster.nodes[name].data_dir, path / "before" / name)
    await page.begin(*left, "node-4")
    await cluster.ready(*left, "node-4")
    await client.insert("lost", VECTOR, timeout=60)
    await page.well()  # all three have it
    await page.end(*left, "node-4")
    for name in left:
        shutil.rmtree(cluster.nodes[name].data_dir)
        (path / "before" / name).rename(cluster.nodes[name].data_dir)
    store = open_wal(str(cluster.nodes["node-4"].data_dir / "log"))
    store.commit(lambda txn: txn.delete_range(PEER_PREFIX, META_KEY), True)
    store.close()
    await page.begin(*left)
    await cluster.ready(*left)
    leader = await client.leader(0)  # in a term of before, maybe: what it has there nobody could tell apart
    await client.step_down(next(name for name in left if name != leader), shard=0, timeout=60)
    for n in range(30):
        await client.insert(f"b{n}", VECTOR, timeout=60)
    await page.begin("node-4")
    assert "acknowledged entries were lost" in await page.lost("node-4")
    await page.next(0, 0, 0)
    assert "acknowledged entries were lost" in await page.on(*left)
    cluster.add(sharding={"join": list(cluster.addresses.values())})
    cluster.restart("node-5")  # it joins once the others serve
    assert "node-5 is in the place of node-4" in await page.next(0, 0, 0, None)
    page.ask("node-1", "node-2", "node-5")
    await page.well()
    assert await client.get("lost", timeout=60) is None
    assert await client.count(timeout=60) == 51


async def a_term_that_is_too_high(page: Book, client: needle.Client) -> None:
    """On all nodes that are left."""
    cluster, left = page.cluster, ("node-1", "node-2", "node-5")
    await page.end(*left)
    for name in left:
        store = open_wal(str(cluster.nodes[name].data_dir / "log"))
        raise_term(store)
        store.close()
        cluster.restart(name)
        assert cluster.nodes[name].wait()
        assert f"its term {2**64 - 1} is too high for another election" in cluster.nodes[name].output()
    assert (await page.on(*left)).count("shard 0: term") == 3
    await page.begin(*left)
    await cluster.ready(*left)
    await client.insert("after", VECTOR, timeout=60)
    assert await client.count(timeout=60) == 52


def raise_term(store: WalStore) -> None:
    """Of shard 0, to one that no elections come to."""
    key = record_key(shard_group(0), HARD)
    state = decode_record(key, store.get(key) or b"", HardState) or HardState()
    store.commit(lambda txn: txn.put(key, encode_record(key, msgspec.structs.replace(state, term=2**64 - 1))), True)
