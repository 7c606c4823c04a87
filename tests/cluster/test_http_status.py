"""`/v1/status` and `/v1/history` of real nodes: what is well, what is not, and that both are told by any node."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import needle
from harness.calm import CALM
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.server.history import EVERY_SECONDS

pytestmark = pytest.mark.asyncio


async def get(cluster: ProcessCluster, node: str, path: str) -> Any:
    def ask() -> Any:
        with urllib.request.urlopen(f"http://{cluster.nodes[node].http}{path}", timeout=60) as answer:
            return json.load(answer)

    return await asyncio.to_thread(ask)


async def test_a_node_that_dies_is_told_of_and_forgotten_when_it_is_back(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.create_collection("c", dimensions=2)
        await client.insert("a", [1, 0], collection="c")

        async def well() -> Any:
            seen = await get(cluster, "node-1", "/v1/status")
            behind = [one for shard in seen["shards"] for one in shard["replicas"] if one["lag_entries"] != 0]
            if not seen["healthy"] or seen["conditions"] or behind:
                raise needle.Unavailable(str(seen["conditions"] or behind))
            return seen

        seen = await wait_for(well, 90, "a healthy cluster")
        (shard,) = seen["shards"]
        assert shard["documents"] == 1 and shard["share"] == 1.0 and shard["state"] == "healthy"
        assert sorted(one["node"] for one in shard["replicas"]) == ["node-1", "node-2", "node-3"]
        assert [one["state"] for one in shard["replicas"] if one["node"] == shard["leader"]] == ["Leader"]
        for node in seen["nodes"]:
            assert node["answers"] and node["catalog"] and node["certificate_seconds"] is None
            assert 0 < node["memory_used"] < node["memory_total"] and node["cpu_seconds"] > 0
            assert 0 < node["disk_free"] < node["disk_total"] and 0 < node["log_bytes"] < node["log_bytes_max"]

        dead = next(node for node in cluster.nodes if node != "node-1" and node != shard["leader"])

        async def timed() -> bool:
            """A node that leads nothing knows how long the leader's answers took."""
            for _ in range(20):
                await client.search([1, 0], 1, collection="c")
            return any(one["search_p99"] for one in (await get(cluster, dead, "/v1/history"))["moments"])

        await wait_for(timed, 90, "a moment with enough searches")
        killed = (await get(cluster, "node-1", "/v1/history"))["now"]
        cluster.kill(dead)

        async def told() -> Any:
            seen = await get(cluster, "node-1", "/v1/status")
            silent = [one["id"] for one in seen["nodes"] if not one["answers"]]
            if "NeedleNodeUnreachable" not in {one["alert"] for one in seen["conditions"]} or silent != [dead]:
                raise needle.Unavailable(str(seen["conditions"] or silent))
            return seen

        seen = await wait_for(told, 90, "the condition")
        found = next(one for one in seen["conditions"] if one["alert"] == "NeedleNodeUnreachable")
        assert found["severity"] == "critical" and dead in found["subject"]
        uis = {f"http://{node.http}/ui#/runbooks/" for node in cluster.nodes.values()}
        assert found["runbook"] in {f"{ui}needlenodeunreachable" for ui in uis}, "an address that a browser can open"
        (silent,) = [one for one in seen["nodes"] if not one["answers"]]
        assert silent["id"] == dead and silent["disk_free"] is silent["memory_used"] is None
        (replica,) = [one for one in seen["shards"][0]["replicas"] if one["node"] == dead]
        assert replica["state"] == "silent" and replica["error"]
        assert not seen["healthy"]

        async def noticed() -> Any:
            past = await get(cluster, "node-1", "/v1/history")
            last = past["moments"][-1:]
            if not last or last[0]["at"] <= killed or (last[0]["silent"], last[0]["unled"]) != (1, 0):
                raise needle.Unavailable(str(last))
            return past

        past = await wait_for(noticed, 90, "a moment without the node")
        assert past["every"] == EVERY_SECONDS
        times = [one["at"] for one in past["moments"]]
        assert times == sorted(times) and times[-1] <= past["now"]
        assert past["moments"][-1]["documents"] == 1 and past["moments"][-1]["unled"] == 0
        later = await get(cluster, "node-1", f"/v1/history?since={times[-1]}")
        assert all(one["at"] > times[-1] for one in later["moments"])

        cluster.restart(dead)
        await wait_for(well, 90, "a healthy cluster again")
