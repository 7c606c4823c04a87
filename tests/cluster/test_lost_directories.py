"""A node of a cluster whose data directory was emptied or rolled back, on real processes: what it acknowledged
is not lost with it while a majority of each group keeps its data (docs/troubleshooting.md)."""

from __future__ import annotations

import asyncio
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cluster.processes import ShardedProcesses, healthy
from harness.lives import life_of
from harness.marked_documents import vector
from needle.base.errors import NeedleError
from needle.cli.app import main
from needle.client.client import Client
from needle.client.health import lost_nodes
from needle.local.process_cluster import wait_for
from needle.local.published import of_one_cluster

pytestmark = pytest.mark.campaign

LEADER, VICTIM, BEHIND = "node-1", "node-2", "node-3"
LOST = f"node {VICTIM} does not go on"


async def write(client: Client, first: int, count: int) -> None:
    for n in range(first, first + count):
        await client.insert(f"d{n}", vector(n), timeout=60)


def page(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def every_life_is_known(processes: ShardedProcesses) -> None:
    async def known() -> bool:
        victim = await life_of(processes.nodes[VICTIM].address)
        others = [await life_of(processes.nodes[name].address) for name in (LEADER, BEHIND)]
        return all(other.remembered.get(VICTIM) == victim.life for other in others)

    await wait_for(known, 60, "the others to know the victim's present start")


@pytest.mark.parametrize("older", [False, True], ids=["emptied", "older copy"])
async def test_nothing_acknowledged_is_lost_with_one_directory(
    tmp_path: Path, older: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """One replica of each shard has missed the last writes and the one that has them is down: with the emptied node for
    a voter those that are left would be a majority without the writes."""
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        directory, copy, node = tmp_path / VICTIM, tmp_path / "copy", processes.nodes[VICTIM]
        async with processes.connect() as client:
            await client.create_collection("default", dimensions=8)
            await write(client, 0, 10)
            if older:
                processes.kill(VICTIM)
                shutil.copytree(directory, copy)
                processes.restart(VICTIM)
            await healthy(client)
            await every_life_is_known(processes)
            processes.kill(BEHIND)
            await write(client, 10, 30)
        for name in (LEADER, VICTIM):
            processes.kill(name)
        starts = node.output().count("listens on")
        shutil.rmtree(directory)
        if older:
            shutil.copytree(copy, directory)
        processes.restart(VICTIM)
        await wait_for(lambda: node.output().count("listens on") > starts, 60, "the victim's start")
        processes.restart(BEHIND)
        await wait_for(lambda: LOST in node.output(), 60, "the node noticing it")

        async with processes.connect(VICTIM) as alone:
            with pytest.raises(NeedleError):
                await alone.get(["d0"], mode="strong", timeout=2)

        async def told() -> bool:
            code = await asyncio.to_thread(main, ["status", "--cluster", processes.nodes[BEHIND].address])
            return code == 1 and "Lost" in capsys.readouterr().out

        await wait_for(told, 60, "the status saying so")
        code, text = await asyncio.to_thread(page, node.http, "/readyz")
        assert code == 503 and "does not go on" in text
        _, text = await asyncio.to_thread(page, node.http, "/metrics")
        assert "needle_node_lost 1.0" in of_one_cluster(text)
        processes.restart(LEADER)
        async with processes.connect(LEADER, BEHIND) as client:
            await write(client, 40, 5)
            found = await client.get([f"d{n}" for n in range(45)], mode="strong", timeout=60)
            assert [document.id for document in found] == [f"d{n}" for n in range(45)]

            said = node.output().count(LOST)
            processes.kill(VICTIM)
            processes.restart(VICTIM)
            await wait_for(lambda: node.output().count(LOST) > said, 60, "the node saying it again after a start")

            async def still() -> bool:
                return lost_nodes(await client.cluster_status(timeout=2)) == {VICTIM}

            await wait_for(still, 60, "the node still being reported")
            for replica in await client.cluster_status(timeout=2):
                assert replica.status is None or replica.node != VICTIM or replica.status.state == "Lost"
