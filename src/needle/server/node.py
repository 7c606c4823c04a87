"""A node: puts log, Raft host, replicas, keeper, service and listener together, and takes them apart in order.

Start: claim the directory, open the log, open every replica, listen, run Raft, keep segments. Stop: hand leadership
over, stop listening, end background work, stop Raft, close replicas, log and directory. Invariant: after the first
failure of the disk the node stops by itself (`failed`) and acknowledges nothing more. Everything that touches the
outside comes in as `NodePorts`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from needle.base.config import RaftConfig, parse_node
from needle.base.errors import DeadlineExceeded, NeedleError, Unavailable
from needle.base.ids import GroupId, NodeId, group_name, shard_group
from needle.base.model import CollectionSpec, RaftStatus
from needle.multiraft.config import HostConfig
from needle.multiraft.host import Host
from needle.multiraft.log.log_store import LogStore
from needle.protocol import calls
from needle.protocol.calls import AddressBook as AddressBookMessage
from needle.server import files as data_dir
from needle.server.address_book import AddressBook
from needle.server.ports import Listener, NodePorts, Peers
from needle.server.replica import HostedReplica
from needle.server.service.documents import RpcService
from needle.server.upkeep.disk_space import LOOK_SECONDS as SPACE_SECONDS
from needle.server.upkeep.disk_space import DiskSpace
from needle.server.upkeep.lasting import lasting
from needle.server.upkeep.roomier_leaders import RoomierLeaders
from needle.shard.fields.builders import Builders
from needle.shard.state_machine import Replica

log = logging.getLogger("needle.server")

SHARDS = (0,)
HAND_OVER_SECONDS = 1.0
"""A node that stops waits at most so long for another to lead in its place."""
LOOK_SECONDS = 0.01
ASK_SECONDS = 1.0
TELL_SECONDS = 2.0
Observe = Callable[[str, float, "NeedleError | None"], None]


class Node:
    """One node of a cluster. `await start()`, `await stop()`; `failed` resolves when it can no longer go on."""

    leader_method = calls.LEADER
    """What peers are asked about a group's leader."""

    def __init__(self, config: RaftConfig, ports: NodePorts) -> None:
        self.config = config
        self.ports = ports
        self.node_id = config.node_id
        self.failed: asyncio.Future[NeedleError] = asyncio.get_running_loop().create_future()
        self.groups: dict[GroupId, HostedReplica] = {}
        self.host: Host
        self.peers: Peers
        self.service: RpcService
        self.listener: Listener
        self.space: DiskSpace
        self.observer: Observe | None = None
        """Called after each call: method, seconds, error. For metrics."""
        self.book = AddressBook({config.node_id: config.announced}, {}, lambda _: None)
        self._undo: list[Callable[[], Any]] = []
        self._asking: asyncio.Task[None] | None = None
        self._asked_for: NodeId | None = None
        self._stopping = False
        self._running = False

    # --- life --------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Open everything and begin to serve. On an error what was opened is closed again, and the error raised."""
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise

    async def _start(self) -> None:
        config, ports = self.config, self.ports
        self._undo.append(ports.close_pools)
        self._undo.append(ports.claim(config.data_dir, config.node_id, config.cluster_id))
        self._builders = Builders(ports.search_threads)
        self.space = DiskSpace(ports.volume(config.data_dir), config.data_dir, config.disk_reserve_bytes)
        await ports.search_pool.run(self.space.look)
        learned = data_dir.load_addresses(config.data_dir)
        self.book = AddressBook(
            self._configured_addresses(),
            learned,
            lambda new: data_dir.save_addresses(config.data_dir, new),
            data_dir.load_moved(config.data_dir),
            lambda new: data_dir.save_moved(config.data_dir, new),
        )
        store = await ports.file_pool.run(self._open_log)
        self._undo.append(store.close)
        self.peers = ports.peers(self.book.get)
        self._undo.append(self.peers.close)
        self.book.changed = self.peers.update
        self.host = Host(
            config.node_id,
            host_config(config),
            transport=self.peers,
            store=store,
            log_pool=ports.log_pool,
            apply_pool=ports.apply_pool,
            clock=ports.clock,
            rng=ports.rng,
            on_fatal=self._fatal,
            snapshot_dir=data_dir.snapshot_directory(config.data_dir),
            files=ports.files,
            failpoint=ports.failpoint,
        )
        self._undo.append(self._close_replicas)
        await self._open_groups()
        self._undo.append(ports.close_pools)  # after Raft has stopped, before what its threads work on is closed
        await self.host.start()
        self._undo.append(self.host.stop)
        self._undo.append(self._stop_replicas)
        for hosted in self.groups.values():
            hosted.start()
        self.service = self._make_service()
        self.listener = ports.listen(self.service)
        await self.listener.start()
        self._undo.append(self.listener.stop)
        self._watching = asyncio.get_running_loop().create_task(self._watch_space())
        self._undo.append(self._watching.cancel)
        self._leaving = asyncio.get_running_loop().create_task(lasting(RoomierLeaders(self).run))
        self._undo.append(self._leaving.cancel)
        self._running = True
        self._asking = asyncio.get_running_loop().create_task(self._catch_up_on_addresses())
        log.info("node %s of cluster %s listens on %s", self.node_id, config.cluster_id, self.listener.address)

    async def _watch_space(self) -> None:
        while True:
            await asyncio.sleep(SPACE_SECONDS)
            await self.ports.search_pool.run(self.space.look)

    def _open_log(self) -> LogStore:
        config, ports = self.config, self.ports
        store = ports.open_store(data_dir.log_directory(config.data_dir))
        try:
            return LogStore(
                store,
                node_id=config.node_id,
                cluster_id=config.cluster_id,
                draw=lambda: ports.rng.getrandbits(63),
                failpoint=ports.failpoint,
            )
        except BaseException:
            store.close()
            raise

    async def _open_groups(self) -> None:
        """Open what this node holds. One shard on every node of the configuration; ClusterNode knows others."""
        voters = sorted(self.config.founders)
        for shard in SHARDS:
            await self._open_shard(shard, voters)

    def _make_service(self) -> RpcService:
        return RpcService(self)

    async def _open_shard(self, shard: int, voters: Sequence[NodeId]) -> HostedReplica:
        config, ports, group = self.config, self.ports, shard_group(shard)
        replica = await ports.file_pool.run(self._open_replica, data_dir.shard_directory(config.data_dir, shard))
        try:
            self.host.open_group(group, ports.machine(group, replica), voters=voters)
        except BaseException:
            replica.close()
            raise
        hosted = self.groups[group] = HostedReplica(
            group,
            replica,
            host=self.host,
            ports=ports,
            config=config,
            call=self.peers.call,
            fatal=self._fatal,
            space=self.space,
            builders=self._builders,
            first=self._first_collection(),
        )
        return hosted

    def _configured_addresses(self) -> dict[NodeId, str]:
        """Those that win over what others say."""
        reach = dict(parse_node(text, "reach") for text in self.config.reach)
        return {**self.config.founders, **reach, self.node_id: self.config.announced}

    def _first_collection(self) -> CollectionSpec | None:
        return self.config.first_collection

    async def _stop_replicas(self) -> None:
        for hosted in list(self.groups.values()):
            await hosted.stop()

    def _close_replicas(self) -> None:
        for hosted in self.groups.values():
            hosted.replica.close()

    def _open_replica(self, directory: str) -> Replica:
        ports, config = self.ports, self.config
        return Replica(
            directory, limits=config.limits, segments=config.segments, disk=ports.disk, failpoint=ports.failpoint
        )

    async def stop(self, *, hand_over: bool = True) -> None:
        """Stop serving and close everything. hand_over: first give leadership away, so that nobody waits for an
        election. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        if self._running and hand_over and not self.host.stopped:
            self.host.set_maintenance(True)
            await self._led_elsewhere(min(4 * self.config.election_timeout, HAND_OVER_SECONDS))
        await self._close()

    async def _close(self) -> None:
        self._running = False
        if self._asking is not None:
            self._asking.cancel()
        first: Exception | None = None
        while self._undo:
            undo = self._undo.pop()
            try:
                result = undo()
                if isinstance(result, Awaitable):
                    await result
            except Exception as error:
                log.error("closing failed", exc_info=error)
                first = first or error
        if first is not None:
            raise first

    def _fatal(self, error: NeedleError) -> None:
        log.critical("node %s stops: %s", self.node_id, error)
        if not self.failed.done():
            self.failed.set_result(error)

    # --- state -------------------------------------------------------------------------------------------------------
    @property
    def address(self) -> str:
        """Where the node listens."""
        return self.listener.address

    def alive(self) -> bool:
        """Whether the node still does its work; False means it should be restarted."""
        return self._running and not self.failed.done() and not self.host.stopped

    def not_ready(self) -> str:
        """Why the node should get no traffic now; "" when it should."""
        if not self.alive():
            return "stopped"
        if self.host.lost:
            return f"node {self.node_id} does not go on: {self.host.lost}"
        if self.host.maintenance:
            return "in maintenance"
        for group, hosted in self.groups.items():
            if lost := self.host.lost_replica(group):
                return f"{group_name(group)} does not go on: {lost}"
            if hosted.replica.damage is not None:
                return f"the replica of {group_name(group)} is damaged and fetches its data again"
            if self.host.leader(group) is None:
                return f"{group_name(group)} has no leader"
            if not hosted.caught_up:
                return f"{group_name(group)} has not caught up since the start"
        return ""

    def hosted(self, group: GroupId) -> HostedReplica:
        """The replica of a group on this node. Raises Unavailable if there is none."""
        found = self.groups.get(group)
        if found is None:
            raise Unavailable(f"{group_name(group)} has no replica on node {self.node_id}", group=group)
        return found

    def status(self, group: GroupId, digest: bool = False) -> RaftStatus:
        """This node's view of a group, with addresses and the number of documents. Blocking with a digest, which reads
        every row. Raises ReplicaDamaged then."""
        status, replica = self.host.status(group), self.hosted(group).replica
        peers = [msgspec.structs.replace(peer, address=self.book.get(peer.id) or "") for peer in status.peers]
        return msgspec.structs.replace(
            status,
            peers=peers,
            documents=replica.count(),
            live_bytes=replica.live_bytes,
            digest=replica.stored_digest()[1] if digest else "",
        )

    # --- what the service needs --------------------------------------------------------------------------------------
    def address_of(self, node: NodeId) -> str | None:
        return self.book.get(node)

    def addresses(self) -> dict[NodeId, str]:
        """Where the members listen, as far as it is known here. The book also knows nodes that were removed: they may
        speak to this one and be answered, but nobody is to be sent to them."""
        known, members = self.book.all(), {self.node_id}
        for group in self.groups:
            now = self.host.members(group)
            if not now:
                return known  # waits to be added: it cannot tell yet
            members.update(now)
        return {node: at for node, at in known.items() if node in members}

    def now(self) -> float:
        return self.ports.clock.monotonic()

    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]:
        return self.ports.search_pool.run

    def observe(self, what: str, seconds: float, error: NeedleError | None) -> None:
        if self.observer is not None:
            self.observer(what, seconds, error)

    async def learn_addresses(self, addresses: dict[NodeId, str], timeout: float) -> None:
        """Remember where nodes listen; with a timeout, also tell all nodes (those that do not answer ask when they
        first hear from a node they do not know)."""
        self.book.learn(addresses)
        if timeout:
            await self._exchange_addresses(timeout, addresses)

    def heard_from(self, node: NodeId) -> None:
        """A node speaks to this one. If this node does not know where it listens (it was down when that one joined),
        it could never answer: then the others are asked."""
        if self.book.get(node) is None and (self._asking is None or self._asking.done()):
            self._asking = asyncio.get_running_loop().create_task(self._ask_addresses(node))

    async def _ask_addresses(self, node: NodeId) -> None:
        level = logging.DEBUG if node == self._asked_for else logging.INFO  # it speaks on, and is asked for each second
        self._asked_for = node
        log.log(level, "node %s speaks to this node, which does not know its address: asking the others", node)
        try:
            await self._exchange_addresses(ASK_SECONDS, level=level)
        except NeedleError as error:
            log.warning("the address of node %s could not be learned: %s", node, error)
        await asyncio.sleep(ASK_SECONDS)  # if nobody knew it, the next frame asks again, not every frame

    async def _exchange_addresses(
        self, timeout: float, new: Mapping[NodeId, str] = MappingProxyType({}), *, level: int = logging.INFO
    ) -> None:
        """Tell all members, and nodes that are about to be (new), what this one knows, and learn of them where others
        are that it does not know."""
        body = calls.encode(AddressBookMessage({**self._to_tell(), **new}, self.book.moved()))
        others = [node for node in {**self.addresses(), **new} if node != self.node_id]
        answers = await asyncio.gather(
            *(self.peers.call(node, calls.ADDRESSES, body, timeout) for node in others), return_exceptions=True
        )
        for node, answer in zip(others, answers, strict=True):
            if isinstance(answer, NeedleError):
                log.log(level, "node %s was not told where nodes are: %s", node, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                heard = calls.decode(answer, AddressBookMessage)
                self.book.learn_missing(heard.addresses)
                self.book.move(heard.moved)

    async def _catch_up_on_addresses(self) -> None:
        """At the start: members may have moved while this node was away, or while those were with which it knew it."""
        try:
            await self._exchange_addresses(ASK_SECONDS)
        except NeedleError as error:
            log.warning("addresses could not be exchanged with the other nodes: %s", error)

    def _to_tell(self) -> dict[NodeId, str]:
        """What other nodes are told about addresses."""
        return self.addresses()

    async def move_members(self, group: GroupId, addresses: dict[NodeId, str], timeout: float) -> None:
        """Members listen elsewhere from now on: note it, and tell all others; those that do not answer hear of it when
        they start. This node leads the group, so that commands are numbered in their order."""
        index, known = await self.host.read_index(group, timeout), self.book.moved()
        last = {node: known.get(node, (0, "")) for node in addresses}
        new = {node: at for node, at in addresses.items() if at != last[node][1]}
        self.book.move({node: (max(index, last[node][0] + 1), at) for node, at in new.items()})
        await self._exchange_addresses(min(timeout, TELL_SECONDS))

    async def set_maintenance(self, on: bool, timeout: float) -> None:
        """On: give leadership away and take none, drain eventual reads; returns when both are done. Off: returns when
        this node has caught up. Raises DeadlineExceeded; the mode stays as it was set."""
        self.host.set_maintenance(on)
        if on:
            if not await self._led_elsewhere(timeout):
                raise DeadlineExceeded(
                    f"node {self.node_id} still leads after {timeout:g} s: nobody else can take over"
                )
            if not await self.until(lambda: self.service.reads.reading == 0, timeout):
                raise DeadlineExceeded(f"reads did not drain from node {self.node_id} within {timeout:g} s")
            return
        for group, hosted in self.groups.items():
            await self.host.wait_applied(group, await self._leader_index(hosted, timeout), timeout)

    async def _leader_index(self, hosted: HostedReplica, timeout: float) -> int:
        await self.until(lambda: self.host.leader(hosted.group) is not None, timeout)
        return await hosted.leader_index(timeout)

    async def _led_elsewhere(self, timeout: float) -> bool:
        """Whether other nodes lead every group that has another voter."""

        def elsewhere() -> bool:
            return not any(
                self.host.is_leader(group) and len(self.host.status(group).voters) > 1 for group in self.groups
            )

        return await self.until(elsewhere, timeout)

    async def until(self, holds: Callable[[], bool], timeout: float) -> bool:
        """Wait until `holds()`; False if it does not within `timeout` seconds."""
        deadline = self.now() + timeout
        while not holds():
            if self.now() >= deadline or self.host.stopped:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True


def host_config(config: RaftConfig) -> HostConfig:
    """The Raft host's settings in a node's configuration."""
    return HostConfig(
        election_timeout=config.election_timeout,
        heartbeat_interval=config.heartbeat_interval,
        lease_timeout=config.lease_timeout,
        clock_error_max=config.clock_error_max,
        snapshot_threshold=config.snapshot_threshold,
        log_bytes_max=config.log_bytes_max,
        uncommitted_bytes_max=config.limits.uncommitted_bytes_max,
        append_bytes_max=config.limits.append_bytes_max,
    )
