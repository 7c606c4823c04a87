"""A cluster of one shard in this process, as an archiver sees it: its leader is a replica that is fed entries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import xxhash

from needle.backup.archiving import Archiver
from needle.backup.around import Around
from needle.backup.instant import Making
from needle.backup.keeping import read_manifest, read_piece
from needle.backup.store import Store
from needle.base.errors import ConnectionLost
from needle.base.versions import KNOWN
from needle.multiraft.ports import Applied
from needle.protocol import calls, commands
from needle.protocol.archive_calls import (
    IMAGE,
    LOG,
    ImageAnswer,
    ImageCall,
    ImageChunkCall,
    ImageFile,
    LogAnswer,
    LogCall,
    LoggedEntry,
)
from needle.routing.shard_map import initial_map
from needle.routing.strategy import RANGE
from needle.routing.topology import CollectionInfo, ShardInfo, Topology
from needle.server.service.archiving import refused_loads
from shard.replica_util import open_replica, put, spec

SECOND = 1_000_000
BEGAN = 1_800_000_000 * SECOND
BOOKS = CollectionInfo(id=5, spec=spec("books", 2))


class Shard:
    """One shard's leader: a replica, its log, and a clock that is one second further at each entry."""

    def __init__(self, directory: Path) -> None:
        self.replica = open_replica(directory / "leader")
        self.first = self.term = 1
        self.log: list[Applied] = []
        self.digests = {0: self.replica.digest()}
        self.contents: list[dict[str, bytes]] = [{}]
        self._images = directory / "images"
        self._images.mkdir()

    def add(self, command: commands.Command, at: int) -> None:
        data = commands.entry(command, Topology(cluster_version=KNOWN), at)
        self.log.append(Applied(index=len(self.log) + 1, term=self.term, data=data, conf=None))
        self.replica.apply(self.log[-1:])
        self.digests[len(self.log)] = self.replica.digest()
        view = self.replica.view
        rows = view.store.scan(view.collection("books@5").record.id, "") if "books@5" in view.collections else ()
        self.contents.append({seen.id: seen.document.metadata for seen in rows if seen.document is not None})

    def logged(self, call: LogCall, now: int) -> LogAnswer:
        upto = len(self.log)
        found = None
        if call.after >= self.first - 1:
            found = [LoggedEntry(one.index, one.term, one.data) for one in self.log[call.after : call.after + 7]]
        term = self.log[call.after - 1].term if self.first - 1 <= call.after <= upto and call.after else 0
        refused = refused_loads(self.replica.held, found)
        return LogAnswer(upto, now, found, upto, self.digests[upto], term, refused)

    def image(self, now: int) -> ImageAnswer:
        directory = self._images / str(len(self.log))
        directory.mkdir(exist_ok=True)
        if not any(directory.iterdir()):
            self.replica.export_snapshot(str(directory))
        index, files = len(self.log), sorted(directory.iterdir())
        told = [ImageFile(one.name, one.stat().st_size, xxhash.xxh3_128_hexdigest(one.read_bytes())) for one in files]
        return ImageAnswer(str(index), index, self.log[-1].term, now, told)

    def chunk(self, call: ImageChunkCall) -> bytes:
        return (self._images / call.snapshot / call.name).read_bytes()[
            call.offset : call.offset + min(call.length, 9999)
        ]


class World:
    """A cluster of one shard, as an archiver sees it. now: its leader's clock. down: followers that do not answer."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.now, self.machine_behind = BEGAN, 0
        self.shard = Shard(directory)
        self.topology = Topology(
            version=1, founding=7, map=initial_map(RANGE, 1), collections=(BOOKS,),
            shards=(ShardInfo(shard=0, replicas=("a",), founders=("a",)),), cluster_version=KNOWN,
        )  # fmt: skip
        self.followers: list[Shard] = []
        self.down: set[str] = set()
        group = SimpleNamespace(
            ask_leader=self.ask, ask_replica=self.ask_replica,
            replicas=lambda: ["leader", *map(str, range(len(self.followers)))], leads_at=lambda: "leader",
        )  # fmt: skip
        self.client: Any = SimpleNamespace(
            refresh_topology=self.refresh, _shards=SimpleNamespace(group=lambda shard: group)
        )
        clock: Any = SimpleNamespace(
            wall=lambda: (self.now - self.machine_behind) / SECOND, monotonic=lambda: self.now / SECOND
        )
        self.around = Around(clock=clock, rest=self.rest, rng=random.Random(3))

    async def rest(self, seconds: float) -> None:
        await asyncio.sleep(0)

    async def refresh(self, **_: Any) -> Topology:
        return self.topology

    async def ask(self, method: str, body: Callable[[float], bytes], timeout: float, final: Any = ()) -> bytes:
        if method == LOG:
            return calls.encode(self.shard.logged(calls.decode(body(1.0), LogCall), self.now))
        if method == IMAGE:
            calls.decode(body(1.0), ImageCall)
            return calls.encode(self.shard.image(self.now))
        return self.shard.chunk(calls.decode(body(1.0), ImageChunkCall))

    async def ask_replica(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        assert method == LOG
        if address in self.down:
            raise ConnectionLost(f"cannot connect to {address}")
        call = calls.decode(body, LogCall)
        answer = (self.shard if address == "leader" else self.followers[int(address)]).logged(call, self.now)
        return calls.encode(answer if address == "leader" else msgspec.structs.replace(answer, until=0))

    def write(self, *entries: commands.Command) -> None:
        for one in entries:
            self.now += SECOND
            self.shard.add(one, self.now)

    def fill(self, count: int) -> None:
        """The nth document has number n; every third write takes one away."""
        if not self.shard.log:
            self.write(commands.CreateCollection(BOOKS.stored_spec))
        for n in range(len(self.shard.log), len(self.shard.log) + count):
            if n % 3:
                self.write(put([f"d{n % 11}"], [[n, 1.0]], [{"n": n}], collection="books@5"))
            else:
                self.write(commands.Delete("books@5", [f"d{(n - 1) % 11}"]))

    def archiver(self, store: Store, **options: float) -> Archiver:
        return Archiver(self.client, store, around=self.around, **options)


def restored(store: Store, directory: Path, at: int | None = None, index: int | None = None) -> dict[str, bytes]:
    directory.mkdir()
    making = Making(store, directory)
    backup = making.run(at, {} if index is None else {0: index}, None)
    found = {}
    for collection in read_manifest(making.local, backup).collections:
        for ref in collection.pieces:
            piece = read_piece(making.local, ref)
            found |= dict(zip(piece.ids, piece.metadata, strict=True))
    return found
