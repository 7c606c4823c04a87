"""A node of a cluster whose `cluster.json` is gone: what it holds is proof that there was one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from needle.base.errors import DiskFull, UnsupportedFormat
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.server import cluster_files
from needle.server.cluster_files import ClusterFile, load_cluster, save_cluster


def one_node() -> DistributedCluster:
    return DistributedCluster(ClusterConfig(shard_count=1, replication_factor=1, dimensions=2))


@pytest.mark.parametrize("left", [("catalog", "shards"), ("catalog",), ("shards",)], ids="-".join)
@pytest.mark.parametrize("file", ["gone", "of-no-cluster"])
async def test_a_node_that_has_replicas_but_no_cluster_does_not_start(
    tmp_path: Path, left: tuple[str, ...], file: str
) -> None:
    cluster, directory, address = one_node(), tmp_path / "node-1", f"127.0.0.1:{free_ports(1)[0]}"
    try:
        await cluster.add_local_node("node-1", address, str(directory))
        await cluster.start()
        await cluster.insert("doc-1", [1, 0])
    finally:
        await cluster.stop()
    kept = (directory / "cluster.json").read_bytes()
    for name in {"catalog", "shards"} - set(left):
        shutil.rmtree(directory / name)
    os.unlink(directory / "cluster.json")
    if file == "of-no-cluster":  # as an older release left it, which started without
        save_cluster(str(directory), ClusterFile(incarnation=1))
    before = sorted(directory.rglob("*.json"))
    again = one_node()
    try:
        with pytest.raises(UnsupportedFormat, match=r"cluster\.json.* Restore that file"):
            await again.add_local_node("node-1", address, str(directory))
    finally:
        await again.stop()
    assert sorted(directory.rglob("*.json")) == before, "nothing was changed"
    if left == ("catalog", "shards"):
        (directory / "cluster.json").write_bytes(kept)
        again = one_node()
        try:
            await again.add_local_node("node-1", address, str(directory))
            assert again._local[0].cluster.uid
        finally:
            await again.stop()


def test_a_first_start_that_had_no_room_is_not_refused_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, data: bytes) -> None:
        raise DiskFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(cluster_files, "replace_file", full)
        with pytest.raises(DiskFull):
            load_cluster(str(tmp_path), 7)
    for name in ("log", "catalog/lost+found", "shards/lost+found", "snapshots"):  # volumes of their own, still empty
        (tmp_path / name).mkdir(parents=True)
    assert load_cluster(str(tmp_path), 8).incarnation == 8
    assert load_cluster(str(tmp_path), 9).incarnation == 8
