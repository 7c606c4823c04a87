"""Real node processes in a directory, to be killed, paused and restarted: for demo, benchmarks, tests and chaos.

    async with ProcessCluster(tmp_path, nodes=3) as cluster:
        async with cluster.connect() as client:
            await client.insert("a", [1.0] * 8)
            cluster.kill(await client.leader())

With a setting `sharding` without `shards` the nodes are no cluster until `create`. Every wait has a deadline; nothing
sleeps for a fixed time. Node names are node-1, node-2, ... Invariant: no process started here outlives `stop`, nor this
process, unless the cluster is detached.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import needle
from needle.base.errors import NeedleError
from needle.connecting import Connecting, Tls, system_caller
from needle.local.free_ports import free_ports
from needle.local.kept import write_state
from needle.local.link_proxy import LinkProxy, make_links
from needle.local.node_process import NodeProcess
from needle.routing.strategy import CONSISTENT_HASH, ShardStrategy
from needle.routing.topology import ClusterSettings, Topology
from needle.server.catalog.founding import create_cluster

START_SECONDS = 60.0
LOOK_SECONDS = 0.02


async def wait_for(condition: Callable[[], Any], deadline: float, what: str = "the condition") -> Any:
    """The first truthy value of `condition()` (may be async; a NeedleError counts as not yet) within `deadline` s."""
    end = time.monotonic() + deadline
    last: object = None
    while True:
        try:
            value: Any = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            last = value
        except NeedleError as error:
            last = error
        if time.monotonic() >= end:
            raise TimeoutError(f"{what} did not come about within {deadline:g} s; last: {last!r}")
        await asyncio.sleep(LOOK_SECONDS)


class ProcessCluster:
    """`nodes` processes. settings: of every node (None: not set). ports: of the nodes, then of their HTTP, which those
    `as_user` have only if it is given here. linked: each reaches the others (at first) through a proxy of its own,
    `links` by (from, to), that can be cut, silenced and slowed; so do outsiders. as_user: as people start them; see
    NodeProcess."""

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        *,
        ports: Sequence[int] = (),
        linked: bool = False,
        outsiders: Sequence[str] = (),
        as_user: bool = False,
        detached: bool = False,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.nodes: dict[str, NodeProcess] = {}
        self.through: dict[tuple[str, str], str] = {}
        self.tls: Tls = False
        """How clients connect from now on."""
        self._waits = "sharding" in settings and "shards" not in settings["sharding"]
        # All nodes share one disk here: what each keeps in reserve by itself (up to 512 MiB) would be gigabytes.
        self._common = {"dimensions": None if self._waits else 8, "disk_reserve_bytes": 64 << 20, **settings}
        self._as_user, self._detached = as_user, detached
        ports = ports or free_ports(nodes if as_user else 2 * nodes)
        for n in range(nodes):
            self._add(ports[n], ports[nodes + n] if len(ports) > nodes else None)
        for node in self.nodes.values():
            self._tell(node)
        self.links: dict[tuple[str, str], LinkProxy] = make_links(self.addresses, outsiders) if linked else {}

    def _add(self, port: int, http: int | None, **settings: Any) -> NodeProcess:
        name = f"node-{len(self.nodes) + 1}"
        values = {
            "node_id": name,
            "listen": f"127.0.0.1:{port}",
            "http_address": None if http is None else f"127.0.0.1:{http}",
            "data_dir": str(self.directory / name),
            **copy.deepcopy(self._common),
            **settings,
        }
        given = {key: value for key, value in values.items() if value is not None}
        node = NodeProcess(name, self.directory, given, as_user=self._as_user, detached=self._detached)
        self.nodes[name] = node
        return node

    def add(self, **settings: Any) -> str:
        """One more node, not started; its name. A cluster does not know it yet."""
        port, http = free_ports(2)
        node = self._add(port, None if self._as_user else http, **settings)
        self._tell(node)
        return node.name

    async def link(self, name: str) -> None:
        """Links from and to a node that was added to a linked cluster; the others use theirs from their next start."""
        for other in [node for node in self.nodes if self.links and node != name]:
            for link in ((name, other), (other, name)):
                proxy = self.links[link] = LinkProxy(self.nodes[link[1]].address)
                self.through[link] = await proxy.start()
        self._reach()

    def _reach(self) -> None:
        for node in self.nodes.values() if self.links else ():
            node.settings["reach"] = [f"{to}={at}" for (name, to), at in self.through.items() if name == node.name]

    def _tell(self, node: NodeProcess) -> None:
        """The nodes that found the cluster, unless it waits for `create`, or joins."""
        if not self._waits and "join" not in node.settings.get("sharding", {}):
            node.settings.setdefault("cluster_nodes", [f"{name}={at}" for name, at in self.addresses.items()])

    # --- life --------------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            for name, node in self.nodes.items():
                error.add_note(f"--- {name}, {node.state()}; the end of {node.log}:\n{node.tail()}")
        await self.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """For code without an event loop, and clusters without links: started, and stopped at the end."""
        try:
            asyncio.run(self.start())
            yield self
        finally:
            self.stop()

    async def start(self) -> None:
        """Start links and nodes; returns once all nodes are ready, those that wait for `create` at once."""
        await self.launch()
        if not self._waits:
            await self.ready()

    async def launch(self) -> None:
        """Start links and nodes; does not wait until they serve."""
        for link, proxy in self.links.items():
            self.through[link] = await proxy.start()
        self._reach()
        self.start_nodes()

    def start_nodes(self) -> None:
        """Start every node; does not wait."""
        for name in self.nodes:
            self.restart(name)

    async def close(self) -> None:
        """End every process, at once, and every link."""
        self.stop()
        for proxy in self.links.values():
            await proxy.stop()

    def stop(self, grace: float = 0.0) -> None:
        """End every process: SIGTERM, then SIGKILL for what is still there after `grace` seconds; at once without."""
        processes = [node.process for node in self.nodes.values() if node.process is not None]
        deadline = time.monotonic() + grace
        for process in processes if grace else ():
            process.terminate()
        for process in processes if grace else ():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()

    def release(self) -> dict[str, int]:
        """Leave the nodes of a detached cluster running; their pids. `kept.stop_kept` can stop them."""
        pids = self.pids()
        for node in self.nodes.values():
            node.release()
        return pids

    async def ready(self, *names: str, deadline: float = START_SECONDS) -> None:
        """Wait until these nodes (default: all) answer /readyz with 200."""
        for name in names or tuple(self.nodes):
            await wait_for(self.nodes[name].is_ready, deadline, f"{name} being ready")

    def check_alive(self) -> None:
        """Raises Unavailable for a node that ended although nobody told it to."""
        for node in self.nodes.values():
            node.check_alive()

    async def create(
        self,
        shards: int,
        factor: int,
        strategy: ShardStrategy = CONSISTENT_HASH,
    ) -> Topology:
        """Make a cluster of the nodes, which may be still starting; the same one each time."""
        caller = system_caller("needle")
        settings = ClusterSettings(shard_count=shards, replication_factor=factor, strategy=strategy)
        end = time.monotonic() + START_SECONDS
        try:
            while True:
                self.check_alive()
                try:
                    return await create_cluster(
                        caller, settings, self.addresses, rng=random.Random(1), timeout=START_SECONDS
                    )
                except NeedleError as error:
                    if not error.retryable or time.monotonic() > end:
                        raise
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await caller.close()

    # --- faults ------------------------------------------------------------------------------------------------------
    def kill(self, *names: str) -> None:
        """kill -9 to all of them, and wait until they are gone."""
        for name in names:
            self.nodes[name].signal(signal.SIGKILL)
        for name in names:
            self.nodes[name].wait()

    def pause(self, name: str) -> None:
        """SIGSTOP: the process keeps its connections and says nothing."""
        self.nodes[name].signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self.nodes[name].signal(signal.SIGCONT)

    def terminate(self, name: str) -> int:
        """SIGTERM; the exit code."""
        self.nodes[name].signal(signal.SIGTERM)
        return self.nodes[name].wait()

    def restart(self, name: str, failpoint: str | None = None) -> None:
        """Start a node that does not run; does not wait."""
        self.nodes[name].start(failpoint)
        write_state(self.directory, self.pids(), self.addresses)  # from now on it is found even if this process dies

    def links_of(self, name: str) -> Iterator[LinkProxy]:
        """Every link to or from a node."""
        return (proxy for link, proxy in self.links.items() if name in link)

    def isolate(self, name: str) -> None:
        """Cut a node off from all others."""
        for proxy in self.links_of(name):
            proxy.cut()

    def heal(self) -> None:
        """Let everything through again."""
        for proxy in self.links.values():
            proxy.heal()

    # --- asking ------------------------------------------------------------------------------------------------------
    @property
    def addresses(self) -> dict[str, str]:
        return {name: node.address for name, node in self.nodes.items()}

    @property
    def cluster(self) -> str:
        """What --cluster takes."""
        return ",".join(self.addresses.values())

    def pids(self) -> dict[str, int]:
        """Of those that run."""
        return {name: node.pid for name, node in self.nodes.items() if node.running()}

    def connect(self, *names: str, **options: Any) -> Connecting:
        """A client that is told the addresses of these nodes (default: all)."""
        addresses = [self.nodes[name].address for name in names or self.nodes]
        # What the environment says is of another cluster.
        return needle.connect(addresses, **{"api_key": "", "tls": self.tls, **options})

    async def leader(self, deadline: float = 60.0) -> str:
        """The id of the leader, once there is one that is running."""
        async with self.connect() as client:

            async def running_leader() -> str | None:
                found = await client.leader()
                return found if found is not None and self.nodes[found].running() else None

            return str(await wait_for(running_leader, deadline, "a leader"))

    async def equal_digests(self, deadline: float = 60.0) -> str:
        """Wait until all nodes have applied the same index, and return their digest; raises if it differs."""
        async with self.connect() as client:

            async def same_index() -> str | None:
                found = await client.digests()
                if len(found) != len(self.nodes) or len({digest.applied_index for digest in found.values()}) != 1:
                    return None
                digests = {name: digest.digest for name, digest in found.items()}
                if len(set(digests.values())) != 1:
                    raise AssertionError(f"digests differ at one applied index: {digests}")
                return next(iter(digests.values()))

            return str(await wait_for(same_index, deadline, "one applied index on all nodes"))

    async def http(self, name: str, path: str) -> tuple[int, str]:
        """See NodeProcess.get."""
        return await self.nodes[name].get(path)
