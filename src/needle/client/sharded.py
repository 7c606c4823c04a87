"""The client of a sharded cluster: `Client`'s methods, routed straight to the shards' leaders.

Values become bytes here as in `Client`; where they go is the router's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from needle.base.errors import CollectionNotFound, InvalidArgument, NeedleError, TransferFailed, Unavailable, invalid
from needle.base.ids import NodeId, shard_group
from needle.base.model import (
    CollectionSpec,
    Hit,
    IndexParams,
    Metric,
    RaftStatus,
    ReadMode,
    SearchRequest,
    WriteResult,
)
from needle.base.runtime import Rng
from needle.client import values
from needle.client.client import Client, FilterLike, _request
from needle.client.collections import DEFAULT_COLLECTION
from needle.client.directory import Caller
from needle.client.health import ClusterHealth, ReplicaStatus, judge
from needle.client.operations import TIMEOUT
from needle.client.replicas import ask_replicas
from needle.client.router.router import Found, Router
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.calls import DigestAnswer, Freshness, GroupCall, StatusCall
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall, no_members
from needle.routing.shard_map import KeyRange
from needle.routing.topology import ShardInfo, Topology

STATUS_SECONDS = 2.0


class PartialHits(msgspec.Struct, frozen=True, kw_only=True):
    """Hits of the shards that answered. missing: why other shards did not, by number. gaps: the ranges of routing keys
    that were not searched, [start, end) with end None for the end of the key space. complete: nothing is missing."""

    hits: list[Hit]
    missing: dict[int, str]
    gaps: list[KeyRange]

    @property
    def complete(self) -> bool:
        return not self.missing


class ShardedClient(Client):
    """A client of one sharded cluster. Made by `needle.connect`, which recognises one."""

    def __init__(self, caller: Caller, addresses: Iterable[str], shards: ClusterShards, router: Router, rng: Rng):
        super().__init__(caller, addresses, rng=rng)
        self._shards = shards
        self._router = router

    def topology(self) -> Topology:
        """What this client knows of the cluster: settings, nodes, shards, map, collections."""
        return self._shards.topology()

    # --- writes ------------------------------------------------------------------------------------------------------
    async def _put(
        self, id: str, vector: Any, metadata: Any, expected: int | None, collection: str, timeout: float
    ) -> WriteResult:
        name, data = values.check_id(id), values.vector_bytes(vector)
        json = values.metadata_bytes(metadata)
        collection, seconds = values.check_name(collection), values.check_timeout(timeout)
        return await self._router.insert(collection, name, data, json, expected, seconds)

    async def insert_batch(
        self,
        documents: Iterable[Sequence[Any]] | None = None,
        *,
        ids: Iterable[str] | None = None,
        vectors: Any = None,
        metadatas: Sequence[Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> list[WriteResult]:
        """As Client.insert_batch, grouped by shard: one WriteResult a log entry. `insert_each` tells each id's fate."""
        outcomes = await self.insert_each(
            documents, ids=ids, vectors=vectors, metadatas=metadatas, collection=collection, timeout=timeout
        )
        entries: list[WriteResult] = []
        failure: NeedleError | None = None
        for outcome in outcomes.values():
            if isinstance(outcome, NeedleError):
                failure = failure or outcome
            elif not any(outcome is entry for entry in entries[-64:]):
                entries.append(outcome)
        if failure is not None:
            failure.details["documents_written"] = sum(isinstance(o, WriteResult) for o in outcomes.values())
            raise failure
        return entries

    async def insert_each(
        self,
        documents: Iterable[Sequence[Any]] | None = None,
        *,
        ids: Iterable[str] | None = None,
        vectors: Any = None,
        metadatas: Sequence[Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> dict[str, WriteResult | NeedleError]:
        """insert_batch that tells the fate of every id instead of raising: the result of the log entry that carries it,
        or why it was not written. All ids of one log entry share one result object (`count` documents)."""
        batch = values.columns(documents, ids, vectors, metadatas)
        if not batch.ids:
            return {}
        rows = memoryview(batch.vectors.tobytes())
        outcomes = await self._router.insert_batch(
            values.check_name(collection), batch.ids, rows, batch.metadata, values.check_timeout(timeout)
        )
        return dict(zip(batch.ids, outcomes, strict=True))

    async def delete(
        self, ids: str | Iterable[str], *, collection: str = DEFAULT_COLLECTION, timeout: float = TIMEOUT
    ) -> WriteResult:
        """As Client.delete; all or nothing in each shard."""
        names = values.different_ids(ids)
        return await self._router.delete(values.check_name(collection), names, values.check_timeout(timeout))

    # --- reads -------------------------------------------------------------------------------------------------------
    async def get(
        self,
        ids: str | Iterable[str],
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_vectors: bool = True,
        session: bool = False,
        max_staleness: float | None = None,
        timeout: float = TIMEOUT,
    ) -> Any:
        """As Client.get."""
        names = [values.check_id(ids, "ids")] if isinstance(ids, str) else values.check_ids(ids)
        fresh = self._freshness(mode, session, max_staleness)
        batch = await self._router.get(
            values.check_name(collection),
            names,
            values.check_flag(with_vectors, "with_vectors"),
            fresh.mode,
            values.check_timeout(timeout),
            max_staleness=fresh.max_staleness,
            session=session,
        )
        found = await self._beside(calls.batch_bytes(batch), values.documents, batch)
        if isinstance(ids, str):
            return found[0] if found else None
        return found

    def _freshness(self, mode: ReadMode | str, session: bool, max_staleness: float | None) -> Freshness:
        """min_index is a flag here: each shard has its own indexes, which the router knows."""
        wanted = values.choose(mode, ReadMode, "mode")
        session = values.check_flag(session, "session")
        if wanted is not ReadMode.EVENTUAL and (session or max_staleness is not None):
            name = "session" if session else "max_staleness"
            raise InvalidArgument(f"{name} is for eventual reads; {wanted.value} reads are fresh anyway", field=name)
        stale = 0.0 if max_staleness is None else values.check_timeout(max_staleness, "max_staleness")
        return Freshness(wanted, int(session), stale, 0.0)

    async def _search(self, request: SearchRequest, freshness: Freshness, timeout: float) -> list[Hit]:
        found = await self._find(request, freshness, timeout, False)
        return await self._hits(found)

    async def _hits(self, found: Found) -> list[Hit]:
        return await self._beside(calls.batch_bytes(found.batch), values.hits, found.batch)

    async def _find(self, request: SearchRequest, fresh: Freshness, timeout: float, partial: bool) -> Found:
        return await self._router.search(
            request,
            fresh.mode,
            values.check_timeout(timeout),
            max_staleness=fresh.max_staleness,
            session=bool(fresh.min_index),
            partial=partial,
        )

    async def search_partial(
        self,
        query: Any,
        k: int = 10,
        filter: FilterLike = None,
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        ef_search: int = 0,
        timeout: float = TIMEOUT,
    ) -> PartialHits:
        """`search` that answers after `timeout` seconds without the shards that cannot, and says which."""
        request = _request(query, k, filter, collection, with_metadata, with_vectors, exact, ef_search)
        found = await self._find(request, self._freshness(mode, False, None), timeout, True)
        missing = {shard: error.message for shard, error in found.missing.items()}
        return PartialHits(hits=await self._hits(found), missing=missing, gaps=found.gaps)

    # --- collections -------------------------------------------------------------------------------------------------
    async def create_collection(
        self,
        name: str,
        *,
        dimensions: int,
        metric: Metric | str = Metric.COSINE,
        index: IndexParams | None = None,
        if_absent: bool = False,
        timeout: float = TIMEOUT,
    ) -> WriteResult:
        """As Client.create_collection: in the catalog, then in every shard."""
        spec = CollectionSpec(
            name=values.check_name(name, "name"),
            dimensions=values.check_count(dimensions, "dimensions"),
            metric=values.choose(metric, Metric, "metric"),
            index=values.check_index(index),
        )
        nonce = self._rng.getrandbits(63)
        return await self._router.create_collection(
            spec, values.check_flag(if_absent, "if_absent"), nonce, values.check_timeout(timeout)
        )

    async def drop_collection(self, name: str, *, timeout: float = TIMEOUT) -> WriteResult:
        """As Client.drop_collection; OutcomeUnknown names the shards that have not confirmed it (docs/sharding.md)."""
        return await self._router.drop_collection(values.check_name(name, "name"), values.check_timeout(timeout))

    async def collections(
        self, *, mode: ReadMode | str = ReadMode.STRONG, timeout: float = TIMEOUT
    ) -> list[CollectionSpec]:
        """All collections, by name, as this client's topology has them after asking a node for a newer one."""
        now = self._shards.topology()
        newest = await self._shards.refresh(now.version + 1, 0.2)
        return [info.spec for info in newest.collections]

    async def count(
        self, *, collection: str = DEFAULT_COLLECTION, mode: ReadMode | str = ReadMode.STRONG, timeout: float = TIMEOUT
    ) -> int:
        """How many documents a collection holds, all shards together. Raises CollectionNotFound."""
        return sum((await self.counts(collection=collection, mode=mode, timeout=timeout)).values())

    async def counts(
        self, *, collection: str = DEFAULT_COLLECTION, mode: ReadMode | str = ReadMode.STRONG, timeout: float = TIMEOUT
    ) -> dict[int, int]:
        """How many documents of a collection each shard holds."""
        wanted, collection = values.choose(mode, ReadMode, "mode"), values.check_name(collection)
        counts = await self._router.counts(wanted, values.check_timeout(timeout))
        if collection not in counts:
            raise CollectionNotFound(f"there is no collection {collection!r}", collection=collection)
        return counts[collection]

    # --- the nodes ---------------------------------------------------------------------------------------------------
    async def probe(self, timeout: float = 1.0) -> NodeId | None:
        """The node that leads the catalog; None if none says so in time."""
        group = self._shards.group(-1)
        address = await group._directory.find_leader(group.group, timeout)
        by_address = {there: node for node, there in self.topology().addresses().items()}
        return by_address.get(address or "")

    async def leader(self) -> NodeId | None:
        """The node that leads the catalog, or None if no node names one now; for the shards see `health_check`."""
        self._shards.group(-1)._directory.set_leader(0, None)
        return await self.probe()

    def nodes(self) -> dict[NodeId, str]:
        """The nodes of the cluster and their addresses."""
        return self.topology().addresses()

    async def _is_elsewhere(self, node: NodeId, address: str) -> bool:
        """Whether another node answers at `address`; one that is silent now will fail the call that follows."""
        try:
            answer = await self._caller.call(address, WHO, calls.encode(WhoCall()), 1.0)
        except NeedleError:
            return False
        return calls.decode(answer, WhoAnswer).node_id != node

    async def _where(self, node: str) -> str:
        known = self.nodes()
        if node in known:
            # Asked first who it is: what concerns one node must not reach another that has its address now.
            if not await self._is_elsewhere(node, known[node]):
                return known[node]
            known = (await self._shards.refresh(self.topology().version + 1, 1.0)).addresses()
            if node in known and not await self._is_elsewhere(node, known[node]):
                return known[node]
            raise Unavailable(f"node {node} is not where the catalog has it: another one answers there", node=node)
        if ":" in node:
            return node
        raise invalid("node", node, f"one of {', '.join(known)}")

    async def status(self, *, timeout: float = TIMEOUT) -> RaftStatus:
        """The catalog's group as its leader sees it. `cluster_status` has the shards."""
        data = calls.encode(StatusCall(0))
        answer = await self._shards.group(-1).ask_leader(calls.STATUS, lambda _: data, values.check_timeout(timeout))
        return calls.decode(answer, RaftStatus)

    def _shard(self, shard: int | None) -> ShardInfo:
        """The shard that an operator's call is about: a cluster of several has no default. Raises InvalidArgument."""
        shards = self.topology().shards
        if shard is None and len(shards) == 1:
            return shards[0]
        if not shards:
            raise Unavailable("this cluster has no shards yet: `needle cluster create` makes them")
        if shard is None:
            raise InvalidArgument(
                f"which shard is meant? This cluster has {len(shards)}: name one, from 0 to {len(shards) - 1}",
                field="shard",
            )
        if not 0 <= values.check_count(shard, "shard", 0) < len(shards):
            raise invalid("shard", shard, f"the number of a shard, from 0 to {len(shards) - 1}")
        return shards[shard]

    async def shard_leader(self, shard: int | None = None, *, timeout: float = 1.0) -> NodeId | None:
        """The node that leads a shard; None if its replicas name none in time. shard: may be left out if there is only
        one."""
        group = self._shards.group(self._shard(shard).shard)
        group._directory.set_leader(group.group, None)
        address = await group._directory.find_leader(group.group, values.check_timeout(timeout))
        return next((node for node, there in self.nodes().items() if there == address), None)

    async def node_status(
        self, node: str, *, digest: bool = False, shard: int | None = None, timeout: float = TIMEOUT
    ) -> RaftStatus:
        """As Client.node_status: its view of a shard of which it holds a replica. shard: may be left out if there is
        only one."""
        body = calls.encode(StatusCall(shard_group(self._shard(shard).shard), digest))
        answer = await self._caller.call(await self._where(node), calls.STATUS, body, values.check_timeout(timeout))
        return calls.decode(answer, RaftStatus)

    async def force_new_election(
        self, node: str | None = None, *, shard: int | None = None, timeout: float = TIMEOUT
    ) -> None:
        """As Client.force_new_election, of a shard; node: one of its replicas. shard: may be left out if there is only
        one."""
        info = self._shard(shard)
        if node is None:
            leader = await self.shard_leader(info.shard)
            node = next((one for one in info.replicas if one != leader), info.replicas[0])
        if node not in info.replicas:
            raise invalid("node", node, f"one with a replica of shard {info.shard}: {', '.join(info.replicas)}")
        body = calls.encode(GroupCall(shard_group(info.shard), timeout))
        await self._caller.call(await self._where(node), calls.FORCE_ELECTION, body, values.check_timeout(timeout))
        group = self._shards.group(info.shard)
        group._directory.set_leader(group.group, None)

    async def change_membership(
        self,
        voters: Iterable[NodeId],
        learners: Iterable[NodeId] = (),
        *,
        addresses: Mapping[NodeId, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Raises InvalidArgument: which nodes hold a shard, or the catalog, is for the catalog to say."""
        raise no_members()

    async def step_down(
        self, to: NodeId | None = None, *, shard: int | None = None, timeout: float = TIMEOUT
    ) -> NodeId:
        """Hand the leadership of a shard to `to`, or to its most caught-up voter. The cluster gives it back to the
        preferred leader after a while. shard: may be left out if there is only one."""
        number = self._shard(shard).shard
        group = self._shards.group(number)
        answer = await group.ask_leader(
            calls.STEP_DOWN,
            lambda left: calls.encode(calls.StepDownCall(shard_group(number), to, left)),
            values.check_timeout(timeout),
            (TransferFailed,),
        )
        group._directory.set_leader(group.group, None)
        return calls.decode(answer, calls.LeaderAnswer).leader or ""

    async def cluster_status(self, *, timeout: float = STATUS_SECONDS) -> list[ReplicaStatus]:
        """Every replica of every shard as its own node sees it, in order; `status` is None where none answered."""
        topology = await self._shards.refresh(self.topology().version + 1, min(0.2, timeout / 4))
        return await ask_replicas(self._caller, topology, values.check_timeout(timeout))

    async def health_check(self, *, timeout: float = STATUS_SECONDS) -> ClusterHealth:
        """Whether every shard has a leader and all its replicas, and what is not redundant."""
        replicas = await self.cluster_status(timeout=timeout)
        return judge(self.topology(), replicas)

    async def digests(self, *, timeout: float = TIMEOUT) -> dict[NodeId, DigestAnswer]:
        """As Client.digests, of each replica that the topology names: keys are "node/shard"."""
        seconds = values.check_timeout(timeout)

        async def one(shard: int, node: NodeId) -> DigestAnswer:
            body = calls.encode(GroupCall(shard_group(shard), seconds))
            data = await self._caller.call(await self._where(node), calls.DIGEST, body, seconds)
            return calls.decode(data, DigestAnswer)

        pairs = [(info.shard, node) for info in self.topology().shards for node in info.replicas]
        answers = await asyncio.gather(*(one(shard, node) for shard, node in pairs))
        return {f"{node}/{shard}": answer for (shard, node), answer in zip(pairs, answers, strict=True)}
