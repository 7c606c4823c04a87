"""Three nodes with one shard or several, without a network: what each answers is written down beforehand."""

from __future__ import annotations

import asyncio
import random

import msgspec

from harness.connected import Connected
from needle.base.errors import ConnectionLost, DeadlineExceeded, NeedleError, NotLeader
from needle.base.model import CollectionSpec, HitBatch, WriteResult
from needle.client import Client
from needle.client.directory import Caller
from needle.client.group import GroupClient
from needle.client.known_topology import AskedTopology
from needle.client.router.router import Router
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer, SearchCall, WriteCall
from needle.protocol.commands import Insert, OpenSession, decode
from needle.protocol.peer_calls import SHARD_LEADER, TOPOLOGY, WHO, TopologyAnswer, TopologyCall, WhoAnswer
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import ClusterSettings, CollectionInfo, NodeInfo, Ownership, ShardInfo, Topology

ADDRESSES = {"n1": "h:1", "n2": "h:2", "n3": "h:3"}
VECTOR = [1.0, 0.0]


def one_shard(version: int = 1, **changes: str) -> Topology:
    """A cluster of one shard on the three nodes, with the collection `default`. changes: other addresses."""
    nodes = tuple(NodeInfo(id=node, address=at, incarnation=1) for node, at in {**ADDRESSES, **changes}.items())
    names = tuple(ADDRESSES)
    return Topology(
        version=version,
        settings=ClusterSettings(shard_count=1, replication_factor=3),
        map=initial_map(CONSISTENT_HASH, 1),
        nodes=nodes,
        catalog=names,
        shards=(ShardInfo(shard=0, replicas=names, founders=names),),
        collections=(CollectionInfo(id=1, spec=CollectionSpec(name="default", dimensions=2)),),
    )


def some_shards(count: int) -> Topology:
    """As `one_shard`, of so many, each of them on all three nodes."""
    names = tuple(ADDRESSES)
    return msgspec.structs.replace(
        one_shard(),
        settings=ClusterSettings(shard_count=count, replication_factor=3),
        map=initial_map(CONSISTENT_HASH, count),
        shards=tuple(ShardInfo(shard=shard, replicas=names, founders=names) for shard in range(count)),
    )


def client_of(network: Caller, now: Topology | None = None, *, batch_bytes_max: int = 1 << 20) -> Client:
    """A client of them. now: what it knows of the cluster."""
    known = AskedTopology(network, ADDRESSES.values(), one_shard() if now is None else now)
    shards = ClusterShards(network, known, rng=random.Random(1))
    return Client(network, shards, Router(shards, batch_bytes_max=batch_bytes_max))


def group_of(client: Client) -> GroupClient:
    """A client's calls to the one shard."""
    return client._shards.group(0)


def answered(found: object) -> bytes:
    """What the shard answers to a read."""
    owned = Ownership(initial_map(CONSISTENT_HASH, 1))
    body = calls.encode(found)
    return bytes(calls.encode_body((owned.epoch, owned.fingerprint(0), body), body))


class Network(Connected):
    """Three nodes; `leader` leads. answers: for each write in turn an error to raise, None to execute it."""

    def __init__(self) -> None:
        self.now = one_shard()
        self.is_at = {address: node for node, address in ADDRESSES.items()}
        self.leader: str | None = "n1"
        self.down: set[str] = set()
        self.hinders: dict[str, str] = {}
        self.script: list[NeedleError | None] = []
        self.writes: list[tuple[str, Insert]] = []
        self.calls: list[tuple[str, str]] = []
        self.sessions = 0
        self.fresh: list[int] = []
        """Of each search the index that it must have seen."""
        self.stale_hint: str | None = None
        self.term = 1
        self.waits = True
        self.waiting: list[GroupCall] = []
        self.elected = asyncio.Event()

    def elect(self, node: str) -> None:
        self.leader, self.term, self.waiting = node, self.term + 1, []
        self.elected.set()
        self.elected = asyncio.Event()

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        self.calls.append((address, method))
        await asyncio.sleep(0)
        node = self.is_at[address]
        if node in self.down:
            raise ConnectionLost(f"cannot connect to {address}", address=address)
        if method == TOPOLOGY:
            newer = self.now.version > calls.decode(body, TopologyCall).version
            return calls.encode(TopologyAnswer(node, self.now if newer else None))
        if method == WHO:
            return calls.encode(WhoAnswer(node, address, 1, "", 1.0, 1, self.now.version, []))
        if method in (SHARD_LEADER, calls.LEADER):
            asked = calls.decode(body, GroupCall)
            if self.waits and asked.after_term >= self.term:
                self.waiting.append(asked)
                try:
                    await asyncio.wait_for(self.elected.wait(), timeout)
                except TimeoutError:
                    raise DeadlineExceeded("no answer in time") from None
            leader, hinders = self.stale_hint or self.leader, self.hinders.get(node, "")
            return calls.encode(LeaderAnswer(node, leader, self.term, ADDRESSES, hinders=hinders))
        if method == calls.SEARCH:
            self.fresh.append(calls.decode(body, SearchCall).freshness.min_index)
            return answered(HitBatch([], [], [], [], b"", 7))
        if node != self.leader:
            raise NotLeader("not here", leader=self.leader, leader_address=ADDRESSES.get(self.leader or ""))
        command = decode(calls.decode(body, WriteCall).command)
        if isinstance(command, OpenSession):
            self.sessions += 1
            return calls.encode(WriteResult(version=0, index=100 * self.sessions))
        assert isinstance(command, Insert)
        self.writes.append((node, command))
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        return calls.encode(WriteResult(version=9, index=len(self.writes)))


def numbers(network: Network) -> list[tuple[int, int]]:
    return [(command.session.id, command.session.seq) for _, command in network.writes]
