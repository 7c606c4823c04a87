"""Processes that are killed at each step while they found their cluster: it founds itself all the same, once, and what
was written to it meanwhile is there."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

import needle.server.catalog
from cluster.processes import healthy
from harness.calm import CALM
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.server.catalog.founding import FAILPOINTS

VECTOR = [1.0] * 8
ALL = ("node-1", "node-2", "node-3")
ONE = ("node-2",)
ON_EACH = ["founding.before_file:1", "founding.after_file:1", "founding.after_catalog:1", "bootstrap.after_log:1"]
ON_EACH += ["bootstrap.after_log:2", "bootstrap.after_apply:1", "bootstrap.after_apply:2", "bootstrap.after_apply:3"]
ON_EACH += [f"{place}:{count}" for place in ("log.after_commit", "apply.before", "apply.after") for count in (1, 2, 3)]
ON_LEADER = ["founding.before_command:1", "founding.after_command:1"]
"""Whoever leads the catalog comes there, and after it perhaps the next one."""


def test_the_names_are_those_in_the_code() -> None:
    code = "".join(path.read_text() for path in Path(needle.server.catalog.__path__[0]).glob("*.py"))
    assert sorted(re.findall(r"failpoint\(\s*\"([a-z_.]+)\"", code)) == sorted(FAILPOINTS)


async def create(processes: ProcessCluster) -> None:
    """`needle cluster create`, as people type it, until it says that it is done."""
    nodes = [f"{name}={at}" for name, at in processes.addresses.items()]
    options = ["--shards", "2", "--replicas", "3", "--dimensions", "8", "--timeout", "10"]

    async def created() -> bool:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "needle", "cluster", "create", *options, *nodes),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await process.wait() == 0

    await wait_for(created, 180, "needle cluster create")


async def founded_although_killed(directory: Path, place: str, victims: tuple[str, ...], by_settings: bool) -> None:
    """Start three nodes of which `victims` kill themselves at a place, and start these again whenever they did."""
    processes = ProcessCluster(directory, 3, **CALM, sharding={"shards": 2} if by_settings else {})
    died: set[str] = set()

    def dead() -> set[str]:
        return {name for name in processes.nodes if not processes.nodes[name].running()}

    def revived() -> None:
        for name in dead():
            assert processes.nodes[name].wait() == -signal.SIGKILL
            died.add(name)
            processes.restart(name)

    async def written() -> bool:
        async with processes.connect() as client:
            await client.insert("before", VECTOR, {"is": "there"}, timeout=5)
        return True

    async def written_with_all() -> bool:
        revived()
        return await written()

    creating = None
    try:
        for name in ALL:
            processes.restart(name, place if name in victims else None)
        if not by_settings:
            creating = asyncio.create_task(create(processes))
        await wait_for(dead, 90, f"a node that dies at {place}")
        if by_settings and victims == ONE:  # the others are a majority
            await wait_for(written, 120, "a write while it is away")
            revived()
        else:
            await wait_for(written_with_all, 120, "a write")
        if creating is not None:
            await creating
        async with processes.connect() as client:

            async def all_well() -> bool:
                revived()
                return (await client.health_check(timeout=1.0)).healthy

            await wait_for(all_well, 120, "health")
            assert died and died <= set(victims)
            now = client.topology()
            assert now.founding and set(now.addresses()) == set(ALL)
            assert [set(info.wanted) for info in now.shards] == [set(ALL)] * 2
            processes.kill(*ALL)
            processes.start_nodes()
            await processes.ready(deadline=120)
            await healthy(client, 120)
            found = await client.get("before", timeout=30)
            assert found is not None and found.metadata == {"is": "there"}
            assert client.topology().founding == now.founding
            assert len({(await client.describe_node(name)).uid for name in ALL}) == 1
            assert [spec.name for spec in await client.collections()] == ["default"]
    except Exception as error:
        for name, node in processes.nodes.items():
            error.add_note(f"--- {name}, {node.state()}; the end of {node.log}:\n{node.tail()}")
        raise
    finally:
        if creating is not None:
            creating.cancel()
        processes.stop()


@pytest.mark.parametrize(
    ("place", "victims", "by_settings"),
    [
        ("founding.after_file:1", ALL, True),
        ("founding.after_catalog:1", ONE, False),
        ("founding.after_command:1", ALL, True),
    ],
)
async def test_some_steps(tmp_path: Path, place: str, victims: tuple[str, ...], by_settings: bool) -> None:
    await founded_although_killed(tmp_path, place, victims, by_settings)


@pytest.mark.campaign
@pytest.mark.parametrize("by_settings", [True, False], ids=["settings", "create"])
@pytest.mark.parametrize("victims", [ONE, ALL], ids=["one", "all"])
@pytest.mark.parametrize("place", ON_EACH)
async def test_each_step(tmp_path: Path, place: str, victims: tuple[str, ...], by_settings: bool) -> None:
    await founded_although_killed(tmp_path, place, victims, by_settings)


@pytest.mark.campaign
@pytest.mark.parametrize("place", ON_LEADER)
async def test_each_step_of_who_leads(tmp_path: Path, place: str) -> None:
    await founded_although_killed(tmp_path, place, ALL, by_settings=True)
