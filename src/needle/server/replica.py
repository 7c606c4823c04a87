"""One replica that this node hosts: its state machine, its segment keeper, its searches, and how fresh it is.

Invariant: an eventual read with `max_staleness` is served only from a state that contains everything acknowledged
before (now - max_staleness), proven by a leader's confirmed read index, not by its heartbeats alone. It must not know
the wire.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from math import inf
from typing import Any

from needle.base.config import RaftConfig
from needle.base.errors import NeedleError, ReplicaDamaged, StorageError, TooStale, Unavailable, in_seconds, invalid
from needle.base.file_errors import SHORTAGES
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.model import HitBatch, IndexParams, SearchRequest
from needle.base.parts import Payload, as_bytes
from needle.base.runtime import Clock, micros_of
from needle.multiraft.background import Background
from needle.multiraft.host import Host
from needle.protocol import calls, commands
from needle.protocol.calls import GroupCall
from needle.routing.collection_names import collection_of
from needle.routing.stored_collections import StoredCollections
from needle.routing.topology import CollectionInfo, Topology
from needle.routing.topology_changes import differing
from needle.server.beats import Beats
from needle.server.call_rates import CallRates
from needle.server.chores.bulk_files import BulkFiles
from needle.server.chores.comparing import Comparing, ShardCompared
from needle.server.chores.context import ChoreContext, others_of
from needle.server.chores.expiry import Expiry
from needle.server.chores.field_upkeep import FieldUpkeep
from needle.server.chores.pinned_scans import PinnedScans
from needle.server.chores.recall import Recall
from needle.server.known_parts import KnownParts
from needle.server.lasting import lasting
from needle.server.machine.space import Space
from needle.server.ports import NodePorts
from needle.shard.caretaker import Caretaker
from needle.shard.fields.builders import Builders, SearchAnswer
from needle.shard.joined_calls import JoinedCalls
from needle.shard.search_batcher import SearchBatcher, SearchMany, Wanted
from needle.shard.segments.builds import Progress
from needle.shard.segments.keeper import SegmentKeeper
from needle.shard.several_searches import SeveralSearches
from needle.shard.state_machine import Replica

log = logging.getLogger("needle.server")

READ_INDEX = "raft.read_index"
SEGMENT_CHUNK = "shard.segment_chunk"
SEGMENT_PUBLISH = "shard.segment_publish"
SEGMENT_BUILDING = "shard.segment_building"
SEGMENT_STAGED = "shard.segment_staged"
ASK_SECONDS = 1.0
LOOK_SECONDS = 0.1
CATCH_UP_SECONDS = 1.0
PROPOSE_SECONDS = 30.0
CHUNK_SECONDS = 10.0


class HostedReplica:
    """One group's replica on this node."""

    def __init__(
        self,
        group: GroupId,
        replica: Replica,
        *,
        host: Host,
        ports: NodePorts,
        config: RaftConfig,
        call: Callable[[NodeId, str, bytes, float], Awaitable[Payload]],
        fatal: Callable[[NeedleError], None],
        space: Space,
        builders: Builders,
        searching: JoinedCalls,
        several: SeveralSearches,
        topology: Callable[[], Topology],
        reading: Callable[[], int],
        beats: Beats,
    ) -> None:
        """call: asks another node. fatal: stops this node. space: of the node. builders, searching: of all replicas'
        searches; several: those that search other replicas, too. topology: the newest that the node has. reading: how
        many searches and gets it answers now."""
        self.group = group
        self.space = space
        self.replica = replica
        self.builders = builders
        search_many = _searching(replica, builders, ports.clock, config.log.slow_request_seconds)
        threads_max = ports.search_threads
        self.batcher: SearchBatcher[SearchRequest, HitBatch]
        self.batcher = SearchBatcher(
            search_many, searching, in_flight_max=threads_max, short=self._is_short, spent=ports.spent
        )
        self._several, self.stopping = several, False
        self.calls, self.parts = CallRates(), KnownParts()
        self.collections = StoredCollections()
        self.caught_up = False
        """Whether this replica has had, since the start, all that was committed when it found a leader."""
        self._host, self._config = host, config
        self._clock: Clock = ports.clock
        self._file_pool = ports.file_pool
        self._call = call
        self._fatal = fatal
        self._topology = topology
        self._background = Background(self._background_failed)
        self._fresh_at, self._fresh_index = float("-inf"), 0
        self._asking: asyncio.Task[None] | None = None
        self._judged_term = 0
        self._seen: tuple[int, NodeId] | None = None
        self._known: tuple[CollectionInfo, ...] = ()
        self._cut: list[str] = []
        self._beats = beats
        at = ChoreContext(group, replica, host, ports.clock, ports.file_pool, topology, beats)
        self.recall = Recall(at, ports.rng, config, lambda: reading() > 0)
        self.keeper = self._keeping(ports)
        self.caretaker = Caretaker(
            replica, ports.file_pool, ports.clock, config.segments.scrub_interval, lambda: space.disk.low
        )
        self._expiry, self._bulk = Expiry(at), BulkFiles(at, call)
        self._pinned = PinnedScans(at, config.limits, lambda: space.disk.low)
        self.comparing = Comparing(ShardCompared(at), self._others, call)
        self._fields = FieldUpkeep(at, call, space)

    def _keeping(self, ports: NodePorts) -> SegmentKeeper:
        host, space, group = self._host, self.space, self.group
        return SegmentKeeper(
            self.replica.held,
            is_leader=lambda: not host.stopped and not space.disk.low and host.is_leader(group),
            publish=self._publish,
            ask_building=self._ask_building,
            ask_staged=self._ask_staged,
            fetch_chunk=self._fetch_chunk,
            peers=self._others,
            build_pool=ports.build_pool, file_pool=ports.file_pool, clock=ports.clock, disk=ports.disk,
            name=group_name(group), wish=self._wished, queries=self.recall.recorded,
            saving=lambda: space.memory.tight,
        )  # fmt: skip

    def start(self) -> None:
        """Begin to keep segments, to check their files, and to watch the leader."""
        fields = self._fields.run
        watching = (self._scrub, self._watch, self._expiry.run, self._pinned.run, self.comparing.run, self.recall.run)
        works = (self.keeper.run, fields, self.caretaker.run, self._bulk.run, *watching)
        for work in works:
            self._background.spawn(lasting(partial(self._while_whole, work)))

    async def stop(self) -> None:
        """End the background work; searches that run finish."""
        self.stopping = True
        asked = [self._asking] if self._asking is not None else []
        for task in asked:
            task.cancel()
        await asyncio.gather(self._background.end(), *asked, return_exceptions=True)
        await self.batcher.close()
        await self._several.passed()

    async def _while_whole(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Background work ends when it meets damage, and begins again when the replica has its data back."""
        while True:
            try:
                return await work()
            except StorageError:
                if self.replica.damage is None:
                    raise
            except ReplicaDamaged as error:
                log.debug("%s: background work waits: %s", group_name(self.group), error)
            while self.replica.damage is not None:  # noqa: ASYNC110 - damage is rare; nobody waits for this
                await asyncio.sleep(LOOK_SECONDS)
            self.keeper.kick()

    def _background_failed(self, error: BaseException) -> None:
        if not self._host.stopped:
            log.error("background work of %s failed", group_name(self.group), exc_info=error)
            self._fatal(error if isinstance(error, NeedleError) else StorageError(f"background work failed: {error!r}"))

    def _is_short(self, request: SearchRequest) -> bool:
        """Whether a search takes less than to hand it to a thread and back."""
        try:
            return self.replica.reads().is_short(request)
        except NeedleError:  # the search itself tells why nothing can be answered
            return False

    def _others(self) -> Sequence[NodeId]:
        """The other replicas' nodes, leader first."""
        return others_of(self._host.status(self.group))

    async def _publish(self, data: bytes) -> object:
        """Have one of INDEX_COMMANDS proposed by whoever leads: this node may have led when it began to build."""
        leader = self._host.leader(self.group)
        if self._host.is_leader(self.group):
            entry = commands.entry(commands.decode(data), self._topology(), micros_of(self._clock))
            return await self._host.propose(self.group, entry, PROPOSE_SECONDS)
        if leader is None:
            raise Unavailable(f"no leader of {group_name(self.group)} is known", group=self.group)
        return await self._call(leader, SEGMENT_PUBLISH, calls.encode((self.group, data)), PROPOSE_SECONDS)

    async def _ask_building(self, peer: NodeId, collection_id: int) -> Progress | None:
        answer = await self._call(peer, SEGMENT_BUILDING, calls.encode((self.group, collection_id)), ASK_SECONDS)
        found = calls.decode(answer, list[Progress])  # none or one
        return found[0] if found else None

    async def _ask_staged(self, peer: NodeId, collection_id: int) -> list[str]:
        body = calls.encode((self.group, collection_id))
        return calls.decode(await self._call(peer, SEGMENT_STAGED, body, ASK_SECONDS), list[str])

    def _wished(self, stored: str) -> IndexParams | None:
        """The index that the catalog names for a collection in the shard."""
        info = self.collections.find(self._topology(), collection_of(stored) or stored)
        return None if info is None else info.index_of(stored)

    async def _fetch_chunk(self, peer: NodeId, name: str, offset: int, length: int) -> bytes:
        body = calls.encode((self.group, name, offset, length))
        return as_bytes(await self._call(peer, SEGMENT_CHUNK, body, CHUNK_SECONDS))

    # --- watching ----------------------------------------------------------------------------------------------------
    async def _watch(self) -> None:
        """Tell the keeper what changed; have what was applied committed when no more comes; catch up once."""
        host = self._host
        while not host.stopped:
            if (collections := self._topology().collections) is not self._known:
                self._look_at_altered(self._known, collections)
                self._known = collections
            now = host.standing(self.group)
            if now != self._seen:
                self._seen = now
                self.keeper.kick()
            elif self.replica.waits:
                await self._save()
            cut, self._cut = self._cut + self.replica.take_cut_files(), []
            if cut:
                await self.keeper.scrub(cut)
            if not self.caught_up and now[1]:
                await self._catch_up()
            await self._beats.next(LOOK_SECONDS, self._rests)

    def _rests(self) -> bool:
        """Whether nothing has changed since it was looked at, and nothing waits."""
        replica, now = self.replica, self._host.standing(self.group)
        self._cut += replica.take_cut_files()
        waits = self._cut or replica.waits or (now[1] and not self.caught_up)
        return not waits and now == self._seen and self._topology().collections is self._known

    def _look_at_altered(self, before: tuple[CollectionInfo, ...], now: tuple[CollectionInfo, ...]) -> None:
        """The catalog's collections changed."""
        _, came = differing(before, now)
        altered = [name for info in came for name in info.altered]
        here = self.replica.view.collections
        self.keeper.look_again([here[name].record.id for name in altered if name in here])

    async def _save(self) -> None:
        try:
            await self._file_pool.run(self.replica.save)
        except SHORTAGES as error:
            log.error("%s: %s", group_name(self.group), error)
            await asyncio.sleep(CATCH_UP_SECONDS)

    async def _scrub(self) -> None:
        """Read the index files from time to time: damage to one that is in use shows nowhere else."""
        while not self._host.stopped:
            await asyncio.sleep(self._config.segments.scrub_interval)
            await self.keeper.scrub()

    async def _catch_up(self) -> None:
        try:
            index = await self.leader_index(CATCH_UP_SECONDS)
            await self._host.wait_applied(self.group, index, CATCH_UP_SECONDS)
        except NeedleError as error:  # also one that the leader has with itself, or an answer that cannot be read
            log.debug("%s has not caught up yet: %s", group_name(self.group), error)
        else:
            self.caught_up = True

    async def be_up_to_date(self, timeout: float) -> None:
        """On a leader, before it judges a write: all that earlier leaders committed is applied here, so that it does
        not judge by an old state. Once a term. Raises what Host.read_index does."""
        term = self._host.term(self.group)
        if term != self._judged_term:
            await self._host.read_index(self.group, timeout)
            self._judged_term = term

    @property
    def may_judge(self) -> bool:
        """Whether this node leads the group, and `be_up_to_date` would return at once."""
        return self._host.leads_in(self.group, self._judged_term)

    # --- freshness ---------------------------------------------------------------------------------------------------
    async def leader_index(self, timeout: float) -> int:
        """An index confirmed by the leader: everything acknowledged before this call is at or below it."""
        leader = self._host.leader(self.group)
        if self._host.is_leader(self.group):
            return await self._host.read_index(self.group, timeout)
        if leader is None:
            raise Unavailable(f"no leader of {group_name(self.group)} is known", group=self.group)
        body = calls.encode(GroupCall(self.group, timeout))
        return calls.decode(await self._call(leader, READ_INDEX, body, timeout), int)

    async def be_fresh(self, max_staleness: float, timeout: float) -> None:
        """Wait until this replica is at most `max_staleness` seconds behind. Raises TooStale; Unavailable when it is
        closed meanwhile; InvalidArgument for what is no age: nothing is as fresh as that, or everything."""
        if not max_staleness > 0.0:
            raise invalid("max_staleness", max_staleness, "seconds, more than 0; or 0 for a state of any age")
        deadline = self._clock.monotonic() + timeout
        while self._clock.monotonic() - self._fresh_at > max_staleness:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise TooStale(f"no leader confirmed within {in_seconds(timeout)} how fresh this replica is")
            if self._asking is None:
                self._asking = asyncio.get_running_loop().create_task(self._ask(left))
                self._asking.add_done_callback(self._asked)
            asking = self._asking
            await asyncio.wait((asking,), timeout=left)
            if asking.cancelled():  # by `stop`: nobody has cancelled who waits here
                raise Unavailable(f"this replica of {group_name(self.group)} is closed", group=self.group)
            if asking.done() and (error := asking.exception()) is not None:
                raise TooStale(f"no leader confirms how fresh this replica is: {error}") from error
        left = max(0.0, deadline - self._clock.monotonic())
        try:
            await self._host.wait_applied(self.group, self._fresh_index, left)
        except Unavailable as error:
            applied = self._host.applied_index(self.group)
            raise TooStale(
                f"this replica has applied index {applied}, not yet {self._fresh_index}",
                applied=applied,
                wanted=self._fresh_index,
            ) from error

    async def _ask(self, timeout: float) -> None:
        asked_at = self._clock.monotonic()
        index = await self.leader_index(timeout)
        self._fresh_at, self._fresh_index = asked_at, index

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # whoever waits raises it; when nobody does any more, it counts as seen


def _searching(replica: Replica, builders: Builders, clock: Clock, slow: float) -> SearchMany[SearchRequest, HitBatch]:
    """slow: from so many seconds on a request is told of, 0 for none. That one was is known when it was searched; where
    its search took less than a tenth of that, this was not why."""
    figures = slow / 10 or inf

    def search_many(requests: list[SearchRequest], wanted: Wanted) -> list[SearchAnswer]:
        return replica.reads().search_many(requests, wanted, builders, clock.monotonic, figures)

    return search_many
