"""A node whose disk hangs: it leads nothing, says why, and goes on when the disk answers again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import needle
from harness.calm import CALM
from needle.client.client import Client
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.multiraft.ports import KeyValueStore, KeyValueTxn
from needle.server.ports import NodePorts, system_ports
from needle.system import ThreadPool


class Threads(ThreadPool):
    """As on a disk that takes some milliseconds: no write is made on the event loop."""

    def call(self, done: Any, fn: Callable[..., Any], /, *args: object, quick: bool = False) -> None:
        super().call(done, fn, *args)


class Hanging:
    """A store whose durable commits wait while the disk does."""

    def __init__(self, store: KeyValueStore, answers: threading.Event) -> None:
        self.get, self.scan, self.close, self.bytes_used = store.get, store.scan, store.close, store.bytes_used
        self._commit, self._answers = store.commit, answers

    def commit(self, fill: Callable[[KeyValueTxn], None], sync: bool) -> None:
        self._answers.wait()
        self._commit(fill, sync)


def hanging(config: RaftConfig, answers: threading.Event) -> NodePorts:
    ports = system_ports(config)
    opened = ports.open_store
    return replace(ports, log_pool=Threads("log"), open_store=lambda at: Hanging(opened(at), answers))


async def told(client: Client) -> list[str]:
    health = await client.health_check(timeout=10.0)
    return [f"{one.alert} {one.subject.split(':')[0]}" for one in health.conditions]


async def test_a_hanging_disk_is_told_and_costs_its_node_what_it_leads(tmp_path: Path) -> None:
    addresses = {f"n{n}": f"127.0.0.1:{port}" for n, port in enumerate(free_ports(3))}
    disks = {name: threading.Event() for name in addresses}
    async with contextlib.AsyncExitStack() as stack:
        for disk in disks.values():
            disk.set()
            stack.callback(disk.set)
        for name, address in addresses.items():
            config = RaftConfig(
                node_id=name,
                listen=address,
                data_dir=str(tmp_path / name),
                cluster_nodes=[f"{other}={at}" for other, at in addresses.items()],
                dimensions=2,
                **CALM,
            )
            await stack.enter_async_context(RaftCluster(config, ports=hanging(config, disks[name])))
        client = await stack.enter_async_context(needle.connect(list(addresses.values())))
        await client.insert("a", [1.0, 0.0], timeout=30.0)

        async def leader() -> str:
            return (await client.health_check(timeout=10.0)).shards[0].leader or ""

        async def led() -> bool:
            return bool(await leader())

        await wait_for(led, 60, "a leader")
        stuck = await leader()
        disks[stuck].clear()
        await client.insert("b", [1.0, 0.0], timeout=30.0)
        await client.insert("c", [1.0, 0.0], timeout=30.0)

        async def says() -> bool:
            return f"NeedleDiskHangs {stuck}" in await told(client)

        async def led_by_another() -> bool:
            return await leader() not in ("", stuck)

        await wait_for(says, 60, "the condition")
        await wait_for(led_by_another, 60, "another leader")
        disks[stuck].set()

        async def well() -> bool:
            return "NeedleDiskHangs" not in " ".join(await told(client))

        await wait_for(well, 60, "no condition")
        assert await client.count() == 3
