"""Shards in memory, on virtual time, with maps that change, replicas that are slow, dead or behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import numpy as np

from catalog.catalog_util import spec, topology
from needle.base.config import Limits
from needle.base.errors import CollectionNotFound, ConnectionLost, NoQuorum, StaleEpoch, VersionMismatch
from needle.base.filters.builder import Filter
from needle.base.model import HitBatch, SearchRequest, WriteResult
from needle.client.router.router import Router
from needle.protocol import calls, catalog_commands
from needle.protocol.calls import CollectionsAnswer, CollectionsCall, DocumentBatch, GetCall, SearchCall
from needle.protocol.commands import NO_SESSION, ChangeWhere, Command, Delete, Insert, Patch, Session, UpdateVectors
from needle.protocol.peer_calls import ShardAnswer
from needle.routing.ranges import KeySet, contains
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import CONSISTENT_HASH, ShardStrategy, routing_key
from needle.routing.topology import CollectionInfo, Ownership, Topology
from needle.shard.apply.patching import changed
from needle.shard.apply.validation import check_command
from proof.sim.event_loop import SimLoop

KINDS = {calls.SEARCH: SearchCall, calls.GET: GetCall, calls.COLLECTIONS: CollectionsCall}


class FakeShards:
    """`client.router.routes.Shards`: `real` is what the nodes know, `known` what the router was told."""

    def __init__(self, shards: int = 4, strategy: ShardStrategy = CONSISTENT_HASH) -> None:
        made = CollectionInfo(id=7, spec=spec("default", 2))
        self.real = msgspec.structs.replace(topology(shards=shards, strategy=strategy), collections=(made,))
        self.known = self.real
        self.data: dict[int, dict[str, tuple[int, bytes, bytes]]] = {s: {} for s in range(shards)}
        self.dead: set[int] = set()
        self.delay: dict[str, float] = {}
        self.asked: list[tuple[int, str]] = []
        self.log: dict[int, int] = dict.fromkeys(range(shards), 0)
        self.refreshed = 0
        self.catalog_dead = self.cut_off = False
        self.behind = 0
        """How often shards still say that they do not have the collection."""
        self.without: dict[int, int] = {}
        """How often a shard still refuses a write for want of the collection."""
        self.limits: Limits | None = None
        """What commands are checked with, as by a node; None: not at all."""
        self.lies: dict[int, int] = {}
        """Shards that answer with another fingerprint."""
        self.before_answer: Callable[[int], None] = lambda _: None

    def group(self, shard: int) -> FakeGroup:
        return FakeGroup(self, shard)

    def topology(self) -> Topology:
        return self.known

    async def refresh(self, version: int, timeout: float) -> Topology:
        self.refreshed += 1
        await asyncio.sleep(min(timeout, 0.003))
        if not self.cut_off:
            self.known = self.real
        return self.known

    async def confirmed(self, timeout: float) -> Topology:
        if self.catalog_dead:
            await asyncio.sleep(timeout)
            raise NoQuorum("the catalog is dead")
        return await self.refresh(0, timeout)

    async def command(self, command: catalog_commands.CatalogCommand, timeout: float) -> WriteResult:
        raise NotImplementedError

    async def sync(self, shard: int, version: int, timeout: float) -> None:
        raise NotImplementedError

    def move(self, moved: KeyRange, shard: int) -> None:
        """The range changes its owner, with its documents, at once; routers are not told."""
        assert self.real.map is not None
        new = self.real.map.with_owner(moved, shard)
        everything = [(s, name, row) for s, held in self.data.items() for name, row in held.items()]
        for held in self.data.values():
            held.clear()
        for _, name, row in everything:
            self.data[new.owner(self.key(name, row[2]))][name] = row
        self.real = msgspec.structs.replace(self.real, map=new, version=self.real.version + 1)

    def key(self, name: str, metadata: bytes) -> bytes:
        """A document's routing key."""
        now = self.real.map
        assert now is not None
        return routing_key(now.strategy, now.shard_count, name, msgspec.json.decode(metadata) if metadata else None)

    def owned(self) -> Ownership:
        assert self.real.map is not None
        return Ownership(self.real.map)


class FakeGroup:
    """One shard with replicas "0/a", "0/b", "0/c"."""

    def __init__(self, shards: FakeShards, shard: int) -> None:
        self.all = shards
        self.shard = shard

    def leads_at(self) -> str | None:
        """Each is asked alone."""
        return None

    def _check(self, epoch: int) -> None:
        owned = self.all.owned()
        if epoch != owned.epoch:
            raise StaleEpoch("other map", version=self.all.real.version, epoch=owned.epoch)

    async def write(self, make: Callable[[Session], Command], timeout: float) -> WriteResult:
        shards = self.all
        assert shards.known.map is not None
        epoch = shards.known.map.epoch
        await asyncio.sleep(shards.delay.get(f"{self.shard}/a", 0.001))
        if self.shard in shards.dead:
            await asyncio.sleep(timeout)
            raise NoQuorum(f"shard {self.shard} is dead")
        self._check(epoch)
        command = make(NO_SESSION)
        assert isinstance(command, Insert | Delete | Patch | UpdateVectors | ChangeWhere)
        shards.without[self.shard] = missing = shards.without.get(self.shard, 0) - 1
        if command.collection != "default@7" or missing >= 0:
            raise CollectionNotFound(f"no {command.collection}")
        if shards.limits is not None:
            check_command(command, lambda _: spec("default", 2), shards.limits)
        held = shards.data[self.shard]
        shards.log[self.shard] = index = shards.log[self.shard] + 1
        if isinstance(command, ChangeWhere):
            return self._change_where(command, held, index)
        if isinstance(command, Patch):
            here = [name for name in command.ids if name in held]
            for name in here:
                version, vector, metadata = held[name]
                if command.expected not in (None, version):
                    raise VersionMismatch(f"{name} has version {version}", actual=version)
                held[name] = (index, vector, changed(name, metadata, command.change))
            return WriteResult(version=index, index=index, existed=bool(here), count=len(here))
        if isinstance(command, UpdateVectors):
            size, here = len(command.vectors) // len(command.ids), [name for name in command.ids if name in held]
            for name in here:
                at = command.ids.index(name)
                held[name] = (index, command.vectors[at * size : (at + 1) * size], held[name][2])
            return WriteResult(version=index, index=index, existed=bool(here), count=len(here))
        if isinstance(command, Delete):
            keys = KeySet(command.within or shards.owned().ranges(self.shard))
            doomed = [name for name in command.ids if name in held and shards.key(name, held[name][2]) in keys]
            for name in doomed:
                del held[name]
            there = len(doomed)
            return WriteResult(version=index, index=index, existed=there > 0, count=there)
        there = sum(name in held for name in command.ids)
        size = len(command.vectors) // len(command.ids)
        for at, name in enumerate(command.ids):
            held[name] = (index, command.vectors[at * size : (at + 1) * size], command.metadata[at])
        return WriteResult(version=index, index=index, existed=there > 0, count=len(command.ids))

    def _change_where(self, command: ChangeWhere, held: dict[str, tuple[int, bytes, bytes]], index: int) -> WriteResult:
        """Ids are doc-000, doc-001, ...: their numbers are their ordinals here."""
        shards, keys = self.all, KeySet(command.within or self.all.owned().ranges(self.shard))
        if command.within and not contains(shards.owned().ranges(self.shard), command.within):
            raise StaleEpoch("not all mine", version=shards.real.version, epoch=shards.owned().epoch)
        wanted = Filter.from_json(command.filter or b"{}")
        behind = sorted(name for name in held if int(name[4:]) > command.after)
        found = [
            name
            for name in behind
            if shards.key(name, held[name][2]) in keys and wanted.matches(msgspec.json.decode(held[name][2]))
        ]
        taken = found[: command.limit]
        for name in taken:
            if command.change is None:
                del held[name]
            else:
                held[name] = (index, held[name][1], changed(name, held[name][2], command.change))
        last = len(taken) == len(found)
        return WriteResult(
            version=index,
            index=index,
            existed=bool(taken),
            count=len(taken),
            ids=taken if command.return_ids else [],
            reached=-1 if last else int(taken[-1][4:]),
            upto=10**6,
        )

    async def ask_leader(self, method: str, make_body: Callable[[float], bytes], timeout: float) -> bytes:
        if self.shard in self.all.dead:
            await asyncio.sleep(timeout)
            raise NoQuorum(f"shard {self.shard} is dead")
        return await self.ask_replica(f"{self.shard}/a", method, make_body(timeout), timeout)

    async def ask_replica(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        shards = self.all
        shards.asked.append((self.shard, address))
        await asyncio.sleep(shards.delay.get(address, 0.001))
        if self.shard in shards.dead or shards.delay.get(address, 0.0) < 0:
            raise ConnectionLost(f"{address} is dead")
        shards.before_answer(self.shard)
        call: Any = calls.decode(body, KINDS[method])
        self._check(call.epoch)
        answer = self._answer(call)
        owned = shards.owned()
        fingerprint = owned.fingerprint(self.shard) + shards.lies.get(self.shard, 0)
        return calls.encode(ShardAnswer(owned.epoch, fingerprint, calls.encode(answer)))

    def _answer(self, call: Any) -> object:
        held, index = self.all.data[self.shard], self.all.log[self.shard]
        if isinstance(call, CollectionsCall):
            return CollectionsAnswer([self.all.real.collections[0].stored_spec], [len(held)], index)
        collection = call.request.collection if isinstance(call, SearchCall) else call.collection
        self.all.behind -= 1
        if collection != "default@7" or self.all.behind >= 0:
            raise CollectionNotFound(f"no {collection}")
        if isinstance(call, GetCall):
            found = [(name, *held[name]) for name in call.ids if name in held]
            return DocumentBatch(
                [row[0] for row in found], [row[1] for row in found], [row[3] for row in found],
                b"".join(row[2] for row in found), index,
            )  # fmt: skip
        return _search(call.request, held, index)

    def replicas(self) -> list[str]:
        return [f"{self.shard}/{name}" for name in "abc"]

    def holders(self) -> list[str]:
        return self.replicas()

    def suspect(self, address: str) -> None:
        return None


def _search(request: SearchRequest, held: dict[str, tuple[int, bytes, bytes]], index: int) -> HitBatch:
    query = np.frombuffer(request.vector, "<f4")
    wanted = Filter.from_json(request.filter) if request.filter else None
    rows = sorted(
        (float(np.sum((np.frombuffer(vector, "<f4") - query) ** 2)), name, version, metadata)
        for name, (version, vector, metadata) in held.items()
        if wanted is None or wanted.matches(msgspec.json.decode(metadata))
    )
    if request.group_by:
        return _by_groups(request, rows, index)
    rows = rows[: request.k]
    vectors = b"".join(held[r[1]][1] for r in rows) if request.with_vectors else b""
    columns = [r[1] for r in rows], [r[0] for r in rows], [r[2] for r in rows], [r[3] for r in rows]
    return HitBatch(*columns, vectors, index)


def _by_groups(request: SearchRequest, rows: list[tuple[float, str, int, bytes]], index: int) -> HitBatch:
    """Each document has one value."""
    groups: dict[Any, list[tuple[float, str, int, bytes]]] = {}
    for row in rows:
        groups.setdefault(msgspec.json.decode(row[3])[request.group_by], []).append(row)
    nearest = sorted(groups, key=lambda value: groups[value][0])[: request.k]
    named = msgspec.json.decode(request.groups) if request.groups else []
    shown = sorted({*nearest, *named} & groups.keys(), key=lambda value: groups[value][0])
    listed = [(value, row) for value in shown for row in groups[value][: request.group_size]]
    columns = zip(*[(row[1], row[0], row[2], row[3], value) for value, row in listed], strict=True)
    ids, distances, versions, metadata, values = map(list, columns) if listed else ([], [], [], [], [])
    return HitBatch(ids, distances, versions, metadata, b"", index, groups=values)


def vector(n: float) -> bytes:
    return np.array([n, 0], "<f4").tobytes()


def ask(n: float, k: int = 5, filter: Filter | None = None) -> SearchRequest:
    return SearchRequest(
        collection="default", vector=vector(n), k=k, filter=b"" if filter is None else filter.to_json()
    )


async def fill(router: Router, count: int = 60, metadata: bytes = b"{}") -> None:
    ids = [f"doc-{n:03}" for n in range(count)]
    rows = memoryview(b"".join(vector(n) for n in range(count)))
    outcomes = await router.insert_batch("default", ids, rows, [metadata] * count, 5)
    assert all(isinstance(part.outcome, WriteResult) for part in outcomes)
    assert sorted(at for part in outcomes for at in part.rows) == list(range(count))


def virtually(work: Coroutine[Any, Any, Any]) -> Any:
    """Run on virtual time. What the work began and left running is cancelled, and has ended before this returns."""
    loop = SimLoop(random.Random(1))
    try:
        return loop.run_until_complete(work)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.close()


class VirtualTime(asyncio.DefaultEventLoopPolicy):
    """For modules whose tests run on virtual time, by a fixture `event_loop_policy`: what takes a tenth of a second
    there takes no time, and no machine is too busy for it."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return SimLoop(random.Random(1))
