"""How a simulated process becomes a node: the ports that the simulation implements, handed to the product.

It must not know faults, clients or checkers.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import msgspec

from needle.base.config import Limits, RaftConfig, SegmentConfig, ShardingConfig
from needle.base.errors import NeedleError
from needle.base.ids import CATALOG_GROUP, GroupId
from needle.base.model import IndexParams
from needle.routing.topology import Topology
from needle.rpc.peer_transport import PeerTransport
from needle.rpc.transport import RpcClient
from needle.server.chores.comparing import Comparing
from needle.server.files import shards_directory
from needle.server.node import Node
from needle.server.ports import NodePorts
from needle.shard.fields.index_budget import IndexRows
from needle.shard.segments.view import Served
from needle.shard.upkeep import PURGE_ROWS
from proof.sim.disk import SimStore
from proof.sim.gone_for_good import REPLACE_SECONDS
from proof.sim.machine import SimPool, stream
from proof.sim.machines import SimFiles, SimMachine, SimReplicaDisk
from proof.sim.network import SimNetwork
from proof.sim.observer import ObservedMachine
from proof.sim.process import Process
from proof.sim.shards.profile import Shape, shape_of
from proof.sim.spec import Profile
from proof.sim.stage import Stage

ELECTION_TIMEOUT = 1.0
LEASE_TIMEOUT = 0.5
HEARTBEAT_INTERVAL = 0.3
PINNED_MAX, PINNED_SECONDS = 6, 20.0
"""Consistent scans end while they are read, too."""
PURGED_ROWS = 5
"""Where there are consistent scans, purges come often enough to meet them."""
INDEX_ROWS = IndexRows(few=0, kept=4, settled=1)
"""Field indexes are used, saved and read again, however few documents there are."""


def node_config(
    stage: Stage, machine: SimMachine, shape: Shape, founders: Sequence[str], seeds: Sequence[str]
) -> RaftConfig:
    """The settings of a node. seeds: addresses of nodes of the cluster, if its operator gives it some."""
    profile, name, machines = stage.profile, machine.name, stage.fleet.machines
    described, sharding = shape.described and not seeds, ShardingConfig(join=seeds)
    if described:
        sharding = ShardingConfig(shards=shape.shards, replicas=shape.replicas)
    tight = Limits(append_bytes_max=profile.append_bytes, commit_rows_max=profile.commit_rows)
    limits = msgspec.structs.replace(
        tight if shape.tight else Limits(), pinned_scans_max=PINNED_MAX, pinned_scan_seconds=PINNED_SECONDS
    )
    return RaftConfig(
        node_id=name,
        cluster_nodes=[f"{node}={machines[node].address}" for node in founders] if described else [],
        listen=machine.address,
        data_dir=machine.data_dir,
        cluster_id="sim",
        election_timeout=ELECTION_TIMEOUT,
        heartbeat_interval=HEARTBEAT_INTERVAL,
        lease_timeout=LEASE_TIMEOUT,
        snapshot_threshold=profile.snapshot_threshold,
        log_bytes_max=profile.log_bytes,
        sharding=sharding,
        dimensions=profile.dimensions if described else None,
        metric=profile.metric,
        index=IndexParams(kind=profile.index),
        segments=segment_config(profile),
        limits=limits,
        replace_after=REPLACE_SECONDS if stage.spec.heals else 0.0,
    )


def segment_config(profile: Profile) -> SegmentConfig:
    """Small segments."""
    return SegmentConfig(
        seal_rows=profile.seal_rows,
        rows_max=profile.rows_max,
        ship_timeout=3.0,
        scrub_interval=profile.scrub_interval,
    )


SEARCHES_SECONDS = (0.0, 0.0005, 0.004)
"""So long searches take on a node at the most: by that it searches its shards together, or in parts."""


def _spent(rng: random.Random) -> Callable[[], float]:
    """A node's processor time, as far as it asks for it."""
    longest, spent = rng.choice(SEARCHES_SECONDS), 0.0

    def now() -> float:
        nonlocal spent
        spent += rng.uniform(0.0, longest)
        return spent

    return now


class SimNode:
    """One incarnation of a node: the real composition root, as `build` puts it together, on simulated ports."""

    def __init__(
        self, stage: Stage, machine: SimMachine, process: Process, build: Callable[[NodePorts, Process], Node]
    ) -> None:
        self._stage = stage
        self._machine = machine
        self._build = build
        self.process = process
        self._node: Node | None = None

    async def start(self) -> None:
        """Build the node and start it. Raises NeedleError when it refuses."""
        fleet, machine, process = self._stage.fleet, self._machine, self.process
        node = self._node = self._build(self._ports(), process)

        def ended(failed: asyncio.Future[NeedleError]) -> None:
            fleet.fatal(machine.name, process, failed.result())

        node.failed.add_done_callback(ended)
        await node.start()

    def _ports(self) -> NodePorts:
        stage, machine, process = self._stage, self._machine, self.process
        loop, name = stage.loop, machine.name
        endpoint = stage.network.endpoint(name, process, name)
        return NodePorts(
            clock=machine.clock,
            rng=stream(stage.spec.seed, "node", name, process.incarnation),
            log_pool=SimPool(loop, process, machine.device),
            apply_pool=SimPool(loop, process),
            load_pool=SimPool(loop, process),
            search_pool=SimPool(loop, process),
            build_pool=SimPool(loop, process),
            file_pool=SimPool(loop, process),
            watch_pool=SimPool(loop, process),
            listen=self._listen,
            peers=lambda address_of: _Peers(cast("RpcClient", endpoint), address_of),
            open_store=lambda directory: SimStore(
                machine.log_disk, process, lambda place: stage.fleet.failpoint(name, process, place)
            ),
            disk=SimReplicaDisk(machine, process),
            volume=lambda _: machine.volume,
            memory=lambda: machine.memory,
            trim=lambda: None,
            files=SimFiles(machine, process),
            claim=lambda directory, node_id, cluster_id: lambda: None,
            failpoint=lambda place: stage.fleet.failpoint(name, process, place),
            machine=self._observed,
            catalog=self._observed,
            index_rows=INDEX_ROWS,
            purge_rows_min=PURGED_ROWS if shape_of(stage.spec).pinned else PURGE_ROWS,
            spent=_spent(stream(stage.spec.seed, "spent", name, process.incarnation)),
        )

    def _observed(self, group: GroupId, machine: Any) -> ObservedMachine:
        return ObservedMachine(machine, self._stage.observer, group, self._machine.name, self.process.incarnation)

    def _listen(self, handler: Any) -> _Listener:
        """The node is about to serve: from now on its confirmed reads are watched."""
        host: Any = self._node.host if self._node is not None else None
        observer, name = self._stage.observer, self._machine.name
        host.read_leased = observer.watched_read(name, host.read_leased)
        host.leased_index = observer.watched_lease(name, host.leased_index)
        host.begin_read = observer.watched_round(name, host.begin_read)
        return _Listener(self._stage.network, self._machine, self.process, handler)

    def groups(self) -> dict[GroupId, Any]:
        """The running replicas, with their Raft core, log and state machine."""
        host = getattr(self._node, "host", None)
        return host.engine.groups if host is not None else {}

    def greeting(self) -> tuple[int, int] | None:
        """Nonce and news of its frames (multiraft.lives); None before it has a host."""
        host = getattr(self._node, "host", None)
        return (host.engine.lives.nonce, host.engine.lives.news) if host is not None else None

    def lost(self) -> str:
        """Why none of its replicas goes on, by its own word. One that is empty, and whose settings name nobody whom it
        could ask who it was, can only say that it belongs to no cluster."""
        node, host = self._node, getattr(self._node, "host", None)
        if node is None or host is None:
            return ""
        alone = node.cluster.uid == 0 and not node.seeds()
        return str(host.lost) or ("it belongs to no cluster" if alone else "")

    def failure(self) -> NeedleError | None:
        """Why its host stopped, if it did."""
        host = getattr(self._node, "host", None)
        return host.engine.failure if host is not None else None

    def comparisons(self) -> dict[GroupId, Comparing]:
        """What its leaders found when they compared replicas."""
        node = self._node
        found = {group: hosted.comparing for group, hosted in (node.groups if node else {}).items()}
        if node is not None and getattr(node, "comparing", None) is not None:
            found[CATALOG_GROUP] = node.comparing
        return found

    def served(self) -> Iterator[tuple[GroupId, int, tuple[Served, ...]]]:
        """The index files that its searches use: group, collection id, files."""
        for group, hosted in (self._node.groups if self._node else {}).items():
            for held in hosted.replica.view.collections.values():
                yield group, held.record.id, held.vectors.served

    def waiting_moves(self, group: GroupId) -> list[str]:
        """Why moves of key ranges of a shard that it leads wait, as its health says."""
        return self._node.mover.held(group) if self._node is not None else []

    def topology(self) -> Topology:
        """As this node knows the catalog."""
        return self._node.topology if self._node is not None else Topology()

    def refuses_data(self) -> bool:
        """Because its disk, or its memory, was low when it looked last."""
        return getattr(self._node, "space", None) is not None and cast("Node", self._node).space.low

    def left_behind(self) -> list[str]:
        """What it has on its disk of replicas that it does not hold."""
        node, directory = self._node, shards_directory(self._machine.data_dir)
        held = {str(group - 1) for group in (node.groups if node is not None else ())}
        return sorted(set(os.listdir(directory)) - held) if os.path.isdir(directory) else []

    def discard(self) -> None:
        """Close the files of a dead incarnation, so that a long run does not collect them."""
        node = self._node
        for hosted in node.groups.values() if node is not None else ():
            hosted.replica.close()
        if node is not None and node.catalog is not None:
            node.catalog.close()


class _Listener:
    """The server side of one process."""

    def __init__(self, network: SimNetwork, machine: SimMachine, process: Process, handler: Any) -> None:
        self._network = network
        self._machine = machine
        self._process = process
        self._handler = handler
        self._asked = 0

    async def start(self) -> None:
        self._process.fence()
        self._network.listen(self._machine.address, self._machine.name, self._process, self._handler)

    async def stop(self) -> None:
        self._network.unlisten(self._machine.address, self._process)

    def more(self) -> bool:
        """As if requests waited, now and then: writes are gathered, and what they wait for comes between."""
        self._asked += 1
        return self._asked % 4 == 0

    def refuse_older(self, version: int) -> None:
        """All nodes of a run are of one release."""

    def of_founding(self, founding: int) -> None:
        """And of one cluster."""

    @property
    def address(self) -> str:
        return self._machine.address


class _Peers(PeerTransport):
    """The real peer transport over a simulated client."""

    def dropped_frames(self) -> int:
        return 0

    def refuse_older(self, version: int) -> None:
        """All nodes of a run are of one release."""

    async def close(self) -> None:
        await self.client.close()
