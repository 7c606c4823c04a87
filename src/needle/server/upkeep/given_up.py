"""Deletes the files of replicas that this node has given up.

A node that is to hold a shard no more closes its replica at once, and keeps the files until it is certain that nobody
needs them. Invariants: only `shards/N` goes, never the group's records in the Raft log, for without term and vote this
node could vote for one who missed its removal. It goes only by what the catalog's majority has confirmed, of the same
founding, and no older than what this node acts on; which knows this very directory; and which lists the shard, as held
by others or as retired: what a catalog does not list it may have forgotten (adr/0021). Of a shard that others hold, its
leader must say that it has all that this replica knew to be committed. What goes gets another name first, so that the
shard may come back to this node at any moment, and begins empty then.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from needle.base.config import RaftConfig
from needle.base.errors import DiskFailed, NeedleError
from needle.base.file_errors import SHORTAGES
from needle.base.ids import GroupId, NodeId, shard_group
from needle.base.model import RaftStatus
from needle.client.directory import Caller
from needle.client.health import ReplicaStatus
from needle.client.replicas import ask_replicas
from needle.multiraft.host import Host
from needle.routing.topology import NodeState, ShardInfo, Topology
from needle.server.beats import Beats
from needle.server.cluster_files import ClusterFile, check_founding
from needle.server.files import GONE, shards_directory
from needle.server.ports import NodePorts
from needle.server.replica import HostedReplica

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 2.0
LOOK_SECONDS_MAX: Final = 16.0
CONFIRM_SECONDS: Final = 5.0
ASK_SECONDS: Final = 2.0
SHARDS_AT_ONCE: Final = 64
"""Of one look: more wait for the next one."""
TOLD_MAX: Final = 16
STEP_FILES: Final = 8
STEP_SECONDS: Final = 0.02
"""So many files are deleted at once, and then other work has the disk for so long."""


class Reaching(Protocol):
    """The way to the shards (client.shards.ClusterShards)."""

    def topology(self) -> Topology: ...


class HoldingNode(Protocol):
    """The node whose files they are."""

    node_id: NodeId
    config: RaftConfig
    ports: NodePorts
    host: Host
    groups: dict[GroupId, HostedReplica]
    cluster: ClusterFile
    topology: Topology
    caller: Caller
    beats: Beats

    @property
    def shards(self) -> Reaching: ...
    def now(self) -> float: ...
    async def confirmed(self, timeout: float) -> Topology: ...
    def unmoved(self) -> AbstractAsyncContextManager[None]:
        """Inside it this node opens and closes no replica."""
        ...


class GivenUp:
    """See the module. kept: shards of which this node has files that it does not use, and why these may not, or cannot,
    go; "" for what is about to."""

    def __init__(self, node: HoldingNode) -> None:
        self._node = node
        self.kept: dict[int, str] = {}

    async def run(self) -> None:
        """Until the node stops; less often while nothing can be deleted."""
        node, pause = self._node, LOOK_SECONDS
        while not node.host.stopped:
            await node.beats.next(pause)
            before = self.kept
            try:
                await self.look()
            except (DiskFailed, *SHORTAGES):
                raise
            except NeedleError as error:
                self._note(dict.fromkeys(self.kept, error.message))
            pause = min(2 * pause, LOOK_SECONDS_MAX) if self.kept and self.kept == before else LOOK_SECONDS

    async def look(self) -> None:
        """Delete what may be deleted. Raises NeedleError for what says that this cannot be known now."""
        names = await self._node.ports.file_pool.run(self._names)
        stuck: dict[int, str] = {}
        for name in names:
            if name.endswith(GONE) and name.removesuffix(GONE).isdecimal():  # a crash came in between
                stuck[int(name.removesuffix(GONE))] = await self._delete(name)
        stuck = {shard: why for shard, why in stuck.items() if why}
        held = sorted(int(name) for name in names if name.isdecimal())
        closed = [shard for shard in held if shard not in stuck and not self._is_held(shard)]
        self._note(stuck | {shard: self.kept.get(shard, "") for shard in closed})
        if closed:
            await self._let_go(closed[:SHARDS_AT_ONCE])

    def told(self) -> list[tuple[int, str]]:
        """The first of those that may not go, and why."""
        return sorted((shard, why) for shard, why in self.kept.items() if why)[:TOLD_MAX]

    def _names(self) -> list[str]:
        directory, disk = shards_directory(self._node.config.data_dir), self._node.ports.disk
        return disk.names(directory) if disk.exists(directory) else []

    def _is_held(self, shard: int) -> bool:
        """By what this node knows: open, or about to be."""
        node = self._node
        there = node.topology.shards[shard : shard + 1]
        return shard_group(shard) in node.groups or bool(there and node.node_id in there[0].replicas)

    def _note(self, kept: dict[int, str]) -> None:
        for shard, why in kept.items():
            if why and self.kept.get(shard) != why:
                log.info("node %s keeps the files of shard %d: %s", self._node.node_id, shard, why)
        self.kept = kept

    # --- whether they may go -----------------------------------------------------------------------------------------
    async def _let_go(self, closed: Sequence[int]) -> None:
        node = self._node
        now = await node.confirmed(CONFIRM_SECONDS)
        check_founding(node.node_id, node.topology, now)
        kept = dict(self.kept)
        for shard in closed:
            why = why_kept(now, node.topology.version, node.node_id, node.cluster.incarnation, shard)
            if not why and not now.shards[shard].retired:
                told = await ask_replicas(node.caller, node.shards.topology(), ASK_SECONDS, {shard})
                why = why_not_elsewhere(
                    now.shards[shard], told, node.node_id, node.host.known_commit(shard_group(shard))
                )
            kept[shard] = why or await self._give_up(shard, now.version)
            if not kept[shard]:
                del kept[shard]
        self._note(kept)

    async def _give_up(self, shard: int, version: int) -> str:
        """Why files are left, "" if none is for good. version: of the catalog that was confirmed. What this node has
        heard since counts, too."""
        node, name = self._node, str(shard)
        async with node.unmoved():
            if self._is_held(shard) or node.topology.version < version:
                return ""
            await node.host.forget_state(shard_group(shard))
            await node.ports.file_pool.run(self._rename, name)
        log.info("node %s deletes its files of shard %d, which it has given up", node.node_id, shard)
        return await self._delete(name + GONE)

    # --- files -------------------------------------------------------------------------------------------------------
    def _rename(self, name: str) -> None:
        directory, disk = shards_directory(self._node.config.data_dir), self._node.ports.disk
        disk.rename(os.path.join(directory, name), os.path.join(directory, name + GONE))
        disk.sync(directory)

    async def _delete(self, name: str) -> str:
        """A few files at a time, then the directories. Why that cannot be: it is tried again, and nobody needs them."""
        ports = self._node.ports
        path = os.path.join(shards_directory(self._node.config.data_dir), name)
        try:
            files = await ports.file_pool.run(ports.disk.files, path)
            for first in range(0, len(files), STEP_FILES):
                some = [os.path.join(path, one) for one in files[first : first + STEP_FILES]]
                await ports.file_pool.run(self._remove, some)
                await asyncio.sleep(STEP_SECONDS)
            await ports.file_pool.run(ports.disk.remove_tree, path)
        except DiskFailed as error:
            return f"nobody needs them, but they cannot be deleted: {error.message}"
        return ""

    def _remove(self, paths: Collection[str]) -> None:
        for path in paths:
            self._node.ports.disk.remove(path)


def why_kept(now: Topology, acted_on: int, node: NodeId, incarnation: int, shard: int) -> str:
    """Why a node must keep the files of a shard that is not open there, by a confirmed catalog; "" if it need not.
    acted_on: the version that the node acts on. incarnation: of its directory."""
    me = now.node(node)
    if now.settings is None or now.version < acted_on:
        return "the catalog is older than what this node has heard from it: was it restored from a copy?"
    if me is None or me.incarnation != incarnation:
        return "the catalog does not know this node by its data directory"
    if me.state is NodeState.REMOVED:
        return "this node was removed from the cluster; its directory can be deleted as a whole"
    if shard >= len(now.shards):
        return "the catalog does not know that shard: was it restored from a copy, or made again?"
    return "the catalog says that this node is to hold it" if node in now.shards[shard].replicas else ""


def why_not_elsewhere(info: ShardInfo, told: Sequence[ReplicaStatus], node: NodeId, commit: int) -> str:
    """Why it is not certain that the shard's nodes have all that this one had; "" if it is. told: by its replicas.
    commit: what this node's replica knew to be committed."""
    leaders = [one.status for one in told if one.status is not None and one.status.state == "Leader"]
    leader: RaftStatus | None = max(leaders, key=lambda one: one.current_term, default=None)
    if leader is None:
        return "no leader of it answers on the nodes that hold it now"
    if node in (*leader.voters, *leader.learners) or not set(leader.voters) <= set(info.replicas):
        return "its members are not yet the nodes that the catalog names"
    if leader.commit_index < commit:
        return (
            f"its leader has committed {leader.commit_index} entries, and this node knew of {commit}: was the leader's "
            "directory restored from a copy?"
        )
    return ""
