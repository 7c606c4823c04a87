"""A command that runs forever waits for nodes that are not there yet, says so, and not what it waits for again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import needle
from needle.base.errors import ConnectionLost
from needle.cli import common
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for


async def test_the_archive_waits_for_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    tried = 0
    check = common.check_reachable

    async def counted(*arguments: object) -> None:
        nonlocal tried
        tried += 1
        await check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(common, "check_reachable", counted)
    monkeypatch.setattr(common, "RETRY_SECONDS", 0.01)

    async def count(client: needle.Client) -> int:
        return await client.count(timeout=30)

    with pytest.raises(ConnectionLost):
        await asyncio.to_thread(common.run, address, count)
    waiting = asyncio.create_task(asyncio.to_thread(lambda: common.run(address, count, patient=True)))
    await wait_for(lambda: tried > 3, 30, "some attempts")
    config = RaftConfig(
        node_id="one", listen=address, data_dir=str(tmp_path), cluster_nodes=[f"one={address}"], dimensions=2
    )
    async with RaftCluster(config):
        assert await waiting == 0
    assert capsys.readouterr().err.count("waiting for the cluster: no node of the cluster can be reached") == 1
