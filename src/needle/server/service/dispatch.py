"""Dispatch of inbound calls: decodes, has a part of the service answer, encodes. The only way from the wire to a node.

Invariants: whatever a caller sends, it gets one answer or one NeedleError, and nothing else happens. Calls about
documents that name the epoch of a shard map are a shard's; the others mean the whole cluster, and this node routes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from needle.base.access import ADMIN, NODE, Identity
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import (
    DiskFull,
    InvalidArgument,
    NeedleError,
    TooManyRequests,
    Unauthenticated,
    UnknownMethod,
    invalid,
)
from needle.base.parts import Body, Payload, Pieces
from needle.base.rates import Meter
from needle.base.versions import KNOWN
from needle.multiraft.inbound import CALL_METHODS
from needle.protocol import calls
from needle.protocol.archive_calls import (
    BACKED_UP,
    IMAGE,
    IMAGE_CHUNK,
    LOG,
    BackedUpCall,
    ImageCall,
    ImageChunkCall,
    LogCall,
)
from needle.protocol.bounds import bound_call
from needle.protocol.calls import (
    AddressBook,
    CollectionsCall,
    CountCall,
    FacetCall,
    GetCall,
    GroupCall,
    MaintenanceCall,
    ScanCall,
    SearchCall,
    SearchManyCall,
    StatusCall,
    StepDownCall,
    WriteCall,
)
from needle.protocol.change_calls import CHANGES, ChangesCall
from needle.protocol.command_bounds import check_lists, prepare
from needle.protocol.commands import Bound
from needle.protocol.node_calls import READ_SHARDS, SEARCH_SHARDS, ReadShardsCall, SearchShardsCall
from needle.protocol.peer_calls import (
    CATALOG,
    FOUND,
    INDEX_ROOM,
    MOVE,
    SHARD_LEADER,
    SYNC,
    TOPOLOGY,
    WHO,
    CatalogCall,
    FoundCall,
    IndexRoomCall,
    MoveCall,
    SyncCall,
    TopologyCall,
    WhoCall,
)
from needle.protocol.probe_calls import CLOCK, LOAD, PROBE, ClockCall, LoadCall, ProbeCall
from needle.server.access import refusal
from needle.server.chores.comparing import DIGEST_AT
from needle.server.chores.field_upkeep import FILTERED_FIELDS
from needle.server.ports import LOCAL, PeerLike
from needle.server.replica import READ_INDEX, SEGMENT_BUILDING, SEGMENT_CHUNK, SEGMENT_PUBLISH, SEGMENT_STAGED
from needle.server.service import bulk_loads, index_files, rebalancing
from needle.server.service.archiving import Archiving
from needle.server.service.audited import Audited
from needle.server.service.bulk_loads import BulkLoads
from needle.server.service.catalog import CatalogCalls
from needle.server.service.documents import Run, ShardDocuments
from needle.server.service.early import EarlySearches
from needle.server.service.former_clients import TELLS
from needle.server.service.index_files import IndexFiles
from needle.server.service.methods import NEEDS, OPENLY, documents_of, judge_call, numbers_its_own, told
from needle.server.service.node_reads import NodeReads
from needle.server.service.node_searches import NodeSearches
from needle.server.service.operations import Operations
from needle.server.service.probing import Probing
from needle.server.service.proxy import Proxy
from needle.server.service.reads import Reads
from needle.server.service.served import JUDGED_BYTES_MAX, ServedNode, add_address, encoded, judge, with_command
from needle.server.service.watched import Watch
from needle.shard.joined_calls import JoinedCalls
from needle.tracing import spans

ROUTED = frozenset({
    calls.WRITE, calls.SEARCH, calls.SEARCH_MANY, calls.GET, calls.COLLECTIONS, calls.COUNT, calls.FACET, calls.SCAN
})  # fmt: skip
"""Calls about documents: they may name the epoch of a shard map."""
COUNTED = ROUTED | {SEARCH_SHARDS, READ_SHARDS, CHANGES}
"""What a key's rates bound."""
DROPPABLE = frozenset({*COUNTED - {calls.WRITE}, READ_INDEX, SEGMENT_CHUNK})
"""What is cancelled when its caller's connection ends."""
DECODED_BYTES_MAX = 1024 * 1024
"""A larger body is copied out of its frame in a thread."""
_ENCODED = bytes, Pieces
HOST_CALL_BYTES_MAX = 4 * 1024 * 1024
"""What nodes ask each other is smaller: some bytes a group."""


class Service:
    """The methods of protocol.calls and protocol.peer_calls, and those that replicas ask each other."""

    def __init__(self, node: ServedNode) -> None:
        self._node, self._host, self._engine = node, node.host, node.host.engine
        prepare(node.config.limits.batch_documents_max)
        self.reads = Reads(node, JoinedCalls(node.ports.search_pool, node.ports.spent, lambda: len(node.groups) < 2))
        self.documents = ShardDocuments(node, self.reads)
        served = node, self.documents, self.reads
        self.node_searches, self.node_reads = NodeSearches(*served), NodeReads(*served)
        self.proxy = proxy = Proxy(node, node.ports.rng, self._judge)
        self._early = EarlySearches(*served, lambda call: self._serve(calls.SEARCH, proxy.search, call))
        operations, archiving, self._catalog = Operations(node), Archiving(node), CatalogCalls(node)
        self.probing = probing = Probing(node)
        self._methods: dict[str, tuple[Any, Run]] = {
            calls.WRITE: (WriteCall, proxy.write),
            calls.SEARCH: (SearchCall, proxy.search),
            calls.SEARCH_MANY: (SearchManyCall, proxy.search_many),
            SEARCH_SHARDS: (SearchShardsCall, self.node_searches.search),
            READ_SHARDS: (ReadShardsCall, self.node_reads.read),
            calls.GET: (GetCall, proxy.get),
            calls.COLLECTIONS: (CollectionsCall, proxy.collections),
            calls.COUNT: (CountCall, proxy.count),
            calls.FACET: (FacetCall, proxy.facet),
            calls.SCAN: (ScanCall, proxy.scan),
            CHANGES: (ChangesCall, self.documents.changes),
            calls.LEADER: (GroupCall, operations.itself),
            calls.STATUS: (StatusCall, operations.status),
            calls.DIGEST: (GroupCall, operations.digest),
            calls.STEP_DOWN: (StepDownCall, operations.step_down),
            calls.FORCE_ELECTION: (GroupCall, operations.force_election),
            calls.MAINTENANCE: (MaintenanceCall, operations.maintenance),
            calls.ADDRESSES: (AddressBook, operations.addresses),
            READ_INDEX: (GroupCall, operations.read_index),
            FILTERED_FIELDS: (GroupCall, operations.filtered_fields),
            SEGMENT_CHUNK: (tuple[int, str, int, int], operations.segment_chunk),
            SEGMENT_PUBLISH: (tuple[int, bytes], operations.segment_publish),
            SEGMENT_BUILDING: (tuple[int, int], operations.segment_building),
            SEGMENT_STAGED: (tuple[int, int], operations.segment_staged),
            DIGEST_AT: (tuple[int, int], operations.digest_at),
            SHARD_LEADER: (GroupCall, operations.leader),
            TOPOLOGY: (TopologyCall, self._catalog.topology),
            CATALOG: (CatalogCall, self._catalog.catalog),
            SYNC: (SyncCall, self._catalog.sync),
            INDEX_ROOM: (IndexRoomCall, operations.index_room),
            MOVE: (MoveCall, self.documents.move),
            FOUND: (FoundCall, self._catalog.found),
            WHO: (WhoCall, self._catalog.who),
            CLOCK: (ClockCall, probing.clock),
            PROBE: (ProbeCall, probing.probe),
            LOAD: (LoadCall, probing.load),
            BACKED_UP: (BackedUpCall, self._catalog.backed_up),
            LOG: (LogCall, archiving.log),
            IMAGE: (ImageCall, archiving.image),
            IMAGE_CHUNK: (ImageChunkCall, archiving.image_chunk),
            **index_files.methods(IndexFiles(node)),
            **bulk_loads.methods(BulkLoads(node)),
            **rebalancing.methods(node.coordinator),
        }
        ports = node.ports
        self.documents.watch = self.watch = Watch(node, node.config.log.slow_request_seconds, spans())
        self._audited = Audited(ports.audit, ports.clock, ports.rng, self._begin) if ports.audit is not None else None
        self._decoders = {name: msgspec.msgpack.Decoder(kind) for name, (kind, _) in self._methods.items()}

    # --- rpc.handler.Handler -----------------------------------------------------------------------------------------
    def on_oneway(self, peer: PeerLike, body: Payload) -> None:
        """Raft messages of another node."""
        if peer.node_id and peer.identity.rank == NODE:
            self._node.heard_from(peer.node_id)
            self._engine.on_raft(peer.node_id, body)

    def on_gone(self, peer: PeerLike) -> None:
        """A connection ended. That of a node whose process was killed ends at once."""
        if peer.node_id:
            self._host.disconnected(peer.node_id)

    def is_droppable(self, method: str) -> bool:
        """Reads are of no use to anybody else."""
        return method in DROPPABLE

    def admit(self, node_id: str, key: str, proven: bool, remote: str) -> Identity:
        """See Access.admit: the same for both doors."""
        try:
            return self._node.access.admit(node_id, key, proven)
        except Unauthenticated as error:
            if (audit := self._node.ports.audit) is not None:
                audit.note("binary", "hello", error, remote=remote, about=node_id)
            raise

    def on_request(self, peer: PeerLike, method: str, body: Any) -> Body | Awaitable[Body]:
        """One call of a client or a node."""
        if self._audited is None or peer.node_id or peer.within or peer.remote == LOCAL:
            return self._begin(peer, method, body)
        return self._audited.on_request(peer, method, body)

    def _begin(self, peer: PeerLike, method: str, body: Any) -> Body | Awaitable[Body]:
        caller, needs = peer.identity, NEEDS.get(method)
        if needs is None:
            raise unknown_method(method)
        if caller.rank < needs.rank:
            raise refusal(caller, needs.rank, method)
        if method == SEGMENT_PUBLISH and not peer.node_id:
            raise InvalidArgument("segments are published by nodes only", field="method")
        if method in CALL_METHODS:
            if len(body) > HOST_CALL_BYTES_MAX:
                raise invalid("body", f"{len(body)} bytes", f"at most {HOST_CALL_BYTES_MAX} bytes for {method!r}")
            return self._engine.on_call(peer.node_id, method, bytes(body))
        found = self._methods.get(method)
        if found is None:
            raise unknown_method(method)
        metered = caller.meter is not None and method in COUNTED
        if caller.meter is not None and metered:
            self._admit(caller.meter, method, len(body))
        large = len(body) > DECODED_BYTES_MAX
        some = caller.rank < ADMIN and (not caller.is_for_all or method not in OPENLY)
        former = method in TELLS and peer.knows < KNOWN
        looked_at = metered or some or former or method == CHANGES  # its key may be revoked while that one waits
        if method == calls.WRITE and not large:
            return self._write(caller, found[1], body, looked_at)
        if looked_at:
            return self._serve_judged(caller, method, found[1], body, knows=peer.knows)
        if large:
            return self._serve_large(method, found[1], body, caller.name)
        call = self._decoded(method, body)
        if method == calls.SEARCH and call.epoch and (early := self._early.begin(call, caller.name)) is not None:
            return early
        return self._serve(method, found[1], call, key=caller.name)

    def _write(self, caller: Identity, run: Run, body: Any, looked_at: bool) -> Body | Awaitable[Body]:
        """A shard's small write goes without a task, whoever its caller is. looked_at: of whom is to be thought."""
        if looked_at and len(body) > JUDGED_BYTES_MAX:
            return self._serve_judged(caller, calls.WRITE, run, body)
        call = self._decoded(calls.WRITE, body)
        if looked_at and not call.epoch:
            return self._serve_judged(caller, calls.WRITE, run, body, call)
        if call.epoch and not caller.is_for_all:  # with an epoch it is a shard's, which makes and drops no collections
            call = self._judged(caller, calls.WRITE, body, call)
        now = self.documents.at_once(call, caller.name, caller.meter) if call.epoch else None
        if now is not None:
            return now
        return self._serve(calls.WRITE, run, call, caller if looked_at else None, caller.name)

    def _admit(self, meter: Meter, method: str, size: int) -> None:
        """Of a caller who may not ask for as much as it likes. Raises TooManyRequests."""
        try:
            meter.admit(self._node.now())
        except TooManyRequests as error:
            self._node.observe(method, 0.0, error)
            raise
        meter.pay(0, size)

    def _decoded(self, method: str, body: Any) -> Any:
        try:
            call = self._decoders[method].decode(body)
        except DECODE_ERRORS as error:
            raise InvalidArgument(f"the body of {method!r} is malformed: {error}", field="body") from None
        if isinstance(call, WriteCall):
            check_lists(call.command, self._node.config.limits.batch_documents_max)
        return call

    async def _serve_large(self, method: str, run: Callable[[Any], Awaitable[Any]], body: Any, key: str) -> Body:
        return await self._serve(method, run, await self._node.blocking(self._decoded, method, body), key=key)

    async def _serve_judged(
        self, caller: Identity, method: str, run: Run, body: Any, call: Any = None, knows: int = KNOWN
    ) -> Body:
        """For a caller who may not say, or hear, everything that this method can, or could not read it. call: of the
        body, where it is decoded. knows: see Hello."""
        call = await judge(self._node, len(body), self._judged, caller, method, body, call)
        if caller.filter and method in ROUTED:
            run = getattr(self.proxy.bound_to(caller), method)
        return await self._serve(method, run, call, caller, caller.name, knows)

    def _judged(self, caller: Identity, method: str, body: Any, call: Any) -> Any:
        """The call, within what this caller may reach; a write with its command decoded. call: None if the body is yet
        to be decoded. May run in any thread."""
        call = self._decoded(method, body) if call is None else call
        if isinstance(call, WriteCall):
            call = with_command(call)
        call = judge_call(caller, method, call, self._node.topology)
        if caller.filter or numbers_its_own(caller, method, call, self._node.topology):
            return bound_call(method, call, Bound(caller.filter, caller.since))
        return call

    async def _judge(self, size: int, fn: Callable[..., Any], *arguments: object) -> Any:
        return await judge(self._node, size, fn, *arguments)

    def _road(self, method: str, run: Run, call: Any, key: str) -> tuple[Run, str]:
        """What answers a call, and under which name it is observed: what a shard's replica answers is told apart from
        what is routed."""
        if method in ROUTED and call.epoch:
            return self.documents.methods[method], f"shard_{method}"
        if method == SEARCH_SHARDS:
            return partial(self.node_searches.search, key=key), method
        if method == READ_SHARDS:
            return partial(self.node_reads.read, key=key), method
        return run, method

    async def _serve(
        self, method: str, run: Run, call: Any, caller: Identity | None = None, key: str = "", knows: int = KNOWN
    ) -> Body:
        """caller: of whom is to be thought in what the answer tells. key: the name of its API key. knows: what it can
        read."""
        run, observed = self._road(method, run, call, key)
        watched = self.watch.begin(observed, call, key) if method in ROUTED else None  # others wait on purpose
        start = self._node.now()
        failure: NeedleError | None = None
        try:
            try:
                answer = await run(call)
            except DiskFull:
                if method not in DROPPABLE:
                    raise
                # What is applied could not be committed for the read: the reserve is there for that.
                await self._node.blocking(self._node.space.look)
                answer = await run(call)
            meter = caller.meter if caller is not None and method in COUNTED else None
            documents = documents_of(method, call, answer) if meter is not None else 0
            if caller is not None:
                answer = told(caller, method, call, answer, knows)
            if method == TOPOLOGY:
                answer = self._catalog.shortened(call, answer)
            body = answer if isinstance(answer, _ENCODED) else await encoded(self._node, answer)
            if meter is not None:
                meter.pay(documents, len(body) if isinstance(body, bytes) else sum(map(len, body)))
            return body
        except NeedleError as error:
            failure = error
            add_address(error, self._node)
            raise
        finally:
            self._node.observe(observed, self._node.now() - start, failure)
            if watched is not None:
                watched.end(failure)
            failure = None  # it has this frame in its traceback: a cycle would keep the request until Python looks


def unknown_method(method: str) -> UnknownMethod:
    """For a call that this node does not have."""
    return UnknownMethod(
        f"this node has no call {method[:80]!r}: the caller, or this node, is of another release",
        field="method",
    )
