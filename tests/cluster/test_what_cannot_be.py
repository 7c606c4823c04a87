"""Real processes: what a rebalance cannot do is refused at once by command, from Python and over HTTP, in one wording.

Three nodes, three shards of one replica each; each node also holds the catalog."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.processes import ShardedProcesses, healthy
from cluster.test_http import Http
from needle.base.errors import InvalidArgument, Unavailable
from needle.client.client import Client
from needle.distributed import Wish
from needle.local.process_cluster import ProcessCluster, wait_for


async def ran(cluster: ProcessCluster, *argv: str) -> tuple[int, str]:
    """A command's exit code, and all that it prints."""
    command = [sys.executable, "-m", "needle", *argv, "--cluster", cluster.cluster]
    made = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    return made.returncode, " ".join((made.stdout + made.stderr).split())


async def refused_over_http(door: Http, path: str, body: object) -> str:
    """What a request is refused with that cannot be."""
    answer = await door("POST", f"/v1/rebalance{path}", body)
    assert answer.status == 400, answer.body
    told = answer.json
    return str(told["error"]["message"] if "error" in told else told)


async def test_what_cannot_be_is_refused_at_once_and_says_what_can(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as cluster:
        await cluster.create(3, 1)
        door = Http(cluster.nodes["node-1"].http)
        async with cluster.connect() as client:
            await healthy(client)
            nothing = "this cluster was never rebalanced, so there is nothing to cancel"
            assert nothing in (await ran(cluster, "rebalance", "--cancel"))[1]
            assert nothing in await refused_over_http(door, "/cancel", {})
            with pytest.raises(InvalidArgument, match=nothing):
                await client.cancel_rebalance()
            code, said = await ran(cluster, "rebalance", "--status", "9")
            assert code == 1 and "rebalance 9 is not known: there is none" in said

            done = await client.start_rebalance()
            await _over(client)
            for what in ("pause", "cancel"):
                told = f"rebalance {done} is done, so there is nothing to {what}"
                code, said = await ran(cluster, "rebalance", f"--{what}")
                assert code == 1 and told in said
                assert told in await refused_over_http(door, f"/{what}", {"id": done})
                with pytest.raises(InvalidArgument, match=told):
                    await getattr(client, f"{what}_rebalance")(done)
            unknown = f"rebalance {done + 1} is not known: the last one is {done}"
            code, said = await ran(cluster, "rebalance", "--pause", str(done + 1))
            assert code == 1 and unknown in said
            assert unknown in await refused_over_http(door, "/pause", {"id": done + 1})
            answer = await door("GET", f"/v1/rebalance?id={done + 1}")
            assert answer.status == 400 and unknown in answer.body.decode()
            with pytest.raises(InvalidArgument, match=unknown):
                await client.rebalance_progress(done + 1)

            (victim, shard) = next(
                (info.wanted[0], info.shard) for info in client.topology().serving if info.wanted[0] != "node-1"
            )
            alive = f"shard {shard} cannot be rebuilt, because its only replica is on {victim}: {victim} answers"
            with pytest.raises(InvalidArgument, match=alive):
                await client.start_rebalance(wish=Wish(lost=(victim,)))
            cluster.kill(victim)
            gone = f"shard {shard} cannot be rebuilt, because its only replica is on {victim}: start {victim} again"
            code, said = await ran(cluster, "rebalance", "--lost", victim)
            assert code == 1 and gone in said and "`needle recover`" in said
            code, said = await ran(cluster, "rebalance", "--lost", victim, "--dry-run")
            assert code == 1 and gone in said
            code, said = await ran(cluster, "node", "remove", victim)
            assert code == 1 and gone in said
            assert gone in await refused_over_http(door, "", {"wish": {"lost": [victim]}})
            planned = await door("POST", "/v1/rebalance/plan", {"wish": {"lost": [victim]}})
            assert gone in json.loads(planned.body)["beyond_help"][0]
            with pytest.raises(InvalidArgument, match=gone):
                await client.start_rebalance(wish=Wish(lost=(victim,)))
            last = await client.rebalance_progress()
            assert last is not None and last.id == done  # nothing was begun by any of them


async def _over(client: Client) -> None:
    async def look() -> bool:
        found = await client.rebalance_progress()
        return found is not None and found.is_complete

    await wait_for(look, 60, "the end of the rebalance")


async def test_a_node_whose_replicas_nobody_can_take_gets_no_weight_of_0(tmp_path: Path) -> None:
    """Neither by that number nor by its own setting."""
    async with ShardedProcesses(tmp_path, nodes=3) as cluster:
        await cluster.create(2, 3)
        async with cluster.connect() as client:
            await healthy(client)
            await client.weigh_node("node-3", 1.0)
            cluster.kill("node-3")
            cluster.nodes["node-3"].settings["placement"] = {"weight": 0.0}
            cluster.restart("node-3")
            await healthy(client)
            for weight in ("0", "own"):
                code, said = await ran(cluster, "node", "weight", "node-3", weight)
                assert code == 1 and "node-3 cannot be emptied: node-3 keeps its replica of" in said
                code, said = await ran(cluster, "node", "weight", "node-3", weight, "--dry-run")
                assert code == 1 and "it would be refused now: node-3 keeps its replica of" in said
            for share in (0, None):
                with pytest.raises(Unavailable, match="node-3 cannot be emptied"):
                    await client.rebalance_by_weight("node-3", share)
            assert await client.rebalance_progress() is None
            known = (await client.refresh_topology(confirmed=True)).node("node-3")
            assert known is not None and (known.weight, known.weighed) == (1.0, True)
