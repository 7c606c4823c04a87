"""Somebody who loads collections in bulk, by the command's own code, while everything fails and moves.

Over and over: a new collection; files for each shard, handed in while it is read; the same once more; ordinary writes;
then it is dropped. Files are made again, of other documents, when the map of before is refused. Some parts of files are
damaged on their way, and some replicas get none. Invariants checked, by strong searches: of the documents that a load
has for a shard all are there or none, with one version and with their own vectors; all of them, once that was
acknowledged, from then on; a shard takes one load; the same one again is answered as done, and changes nothing. That
they are in the shard that owns them, and the same on all replicas, is checked where it is for all documents: they are
in the model of the log, too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from needle.base.errors import (
    ClusterTooOld,
    CollectionNotFound,
    DiskFull,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    StaleEpoch,
    StorageError,
)
from needle.base.model import IndexKind, IndexParams
from needle.cli.bulk.building import build
from needle.cli.bulk.handing import Part as Sent
from needle.cli.bulk.handing import command_of, hand_in, part_of, propose
from needle.cli.bulk.job import Job, ShardFiles, ShardJob, Work, once
from needle.cli.bulk.loading import begun_of, job_of
from needle.cli.bulk.partitioning import Parts, as_leaders_have
from needle.cli.bulk.pieces import Piece
from needle.client.client import Client
from needle.protocol.commands import Insert
from needle.shard.bulk.rows_file import read_rows
from proof.checkers.violation import Violation
from proof.sim.databases import CALL_TIMEOUT
from proof.sim.machine import stream
from proof.sim.shards.profile import metadata_of
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage

NAME: Final = "loading"
RULE: Final = "a bulk load is there whole, once"
REST_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.3
ATTEMPTS, WRITES_MAX, FOUND_MAX = 8, 6, 1000
SPOILT_SHARE, LEFT_OUT_SHARE, STAYS_OUT_SHARE, AGAIN_SHARE = 0.15, 0.4, 0.3, 0.5
LEFT_OUT: Final = 3
"""Which replica it is, of those that are sent a file: the leader comes first, and without it nothing is loaded. Some
stay left out when they are asked again what they lack: then they have to get the file from the others."""


class Portion(msgspec.Struct, kw_only=True):
    """What a shard is to get of a load. rows: the vector of each document. version: that all of them have, once it was
    seen. sure: an acknowledgement came."""

    stored: str
    mine: ShardJob
    files: ShardFiles
    directory: Path
    rows: dict[str, Any]
    version: int = 0
    sure: bool = False


class Loading:
    """See the module. broken: the violation it found. whole, judged: loads that were done, and answers that were looked
    at."""

    def __init__(self, stage: Stage, client: Client, truth: Truth) -> None:
        self._stage, self._client, self._truth = stage, client, truth
        self._rng = stream(stage.spec.seed, NAME)
        self._number = self._collections = 0
        self._name = ""
        self._portions: list[Portion] = []
        """Of the collection of now: what was handed in, also what was refused."""
        self._written: dict[str, int] = {}
        """Documents that were written afterwards: the version of each, 0 for none."""
        self._doubtful: set[str] = set()
        self._moved = self.whole = self.judged = self.spoilt = 0
        self._step, self._spoils = 1 << 20, False
        self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Until `stopping`."""
        while not self.stopping and self.broken is None:
            await self._rest(REST_SECONDS)
            await self._collection()
        self._stage.trace.tell(f"bulk loads: {self.whole} were done, {self.judged} answers judged")

    async def _collection(self) -> None:
        self._collections += 1
        self._name = f"{NAME}-{self._collections}"
        self._portions, self._written, self._doubtful = [], {}, set()
        self._moved = self._truth.moved()
        profile = self._stage.profile
        index = IndexParams(kind=self._rng.choice([IndexKind.FLAT, IndexKind.HNSW, profile.index]))
        made: dict[str, Any] = {"dimensions": profile.dimensions, "metric": profile.metric, "index": index}
        create, drop = self._client.create_collection, self._client.drop_collection
        await self._until_done(lambda: create(self._name, if_absent=True, timeout=CALL_TIMEOUT, **made))
        if await self._load():
            self.whole += 1
            await self._write_and_look()
        await self._rest(REST_SECONDS)
        await self._done(self._look())
        await self._until_done(lambda: drop(self._name, timeout=CALL_TIMEOUT))

    async def _write_and_look(self) -> None:
        """And have a portion loaded again."""
        await self._done(self._look())
        for _ in range(self._rng.randrange(WRITES_MAX)):
            if self._portions and self._rng.random() < AGAIN_SHARE:
                await self._done(self._again(self._rng.choice([one for one in self._portions if one.sure])))
            await self._done(self._write())
            await self._done(self._look())

    async def _rest(self, seconds: float) -> None:
        await asyncio.sleep(self._rng.expovariate(1 / seconds))

    async def _until_done(self, ask: Callable[[], Awaitable[object]]) -> None:
        while not self.stopping and not await self._done(ask()):
            await self._rest(LOOK_SECONDS)

    async def _done(self, work: Awaitable[object]) -> bool:
        """Whether it was; what stands against it may pass."""
        try:
            await work
        except NeedleError as error:
            self._judge_error(error)
            return False
        except Violation as violation:
            self.broken = self.broken or violation
        return True

    def _judge_error(self, error: NeedleError) -> None:
        self._stage.trace.note(f"loading: {error.code}: {error.message}")
        passing = StorageError | DiskFull | CollectionNotFound | ClusterTooOld | OutcomeUnknown | StaleEpoch
        if not error.retryable and not isinstance(error, passing):
            self.broken = self.broken or Violation("expected errors", f"{self._name}: {error!r}: {error}")

    # --- the load ----------------------------------------------------------------------------------------------------
    async def _load(self) -> bool:
        """Whether all shards have their portions. If some have, and others refuse theirs, the collection is of no use
        any more."""
        portions: list[Portion] = []
        for _ in range(ATTEMPTS):
            if self.stopping:
                break
            if not portions and not await self._done(self._prepare(portions)):
                await self._rest(REST_SECONDS)
                continue
            refused = await self._hand_in_all([one for one in portions if not one.sure])
            if all(one.sure for one in portions):
                return True
            if refused and any(one.sure for one in portions):
                return False
            if refused:
                portions = []
            await self._rest(REST_SECONDS)
        return False

    async def _hand_in_all(self, portions: list[Portion]) -> bool:
        """Whether one was refused. Somebody reads meanwhile."""
        if self._rng.random() < AGAIN_SHARE:  # key ranges may begin to move
            await self._rest(2 * REST_SECONDS)
        self._step, self._spoils = self._rng.choice([1500, 1 << 20]), self._rng.random() < SPOILT_SHARE
        work = [asyncio.ensure_future(self._hand_in(one)) for one in portions]
        while not all(one.done() for one in work):
            await self._done(self._look())
            await self._rest(LOOK_SECONDS)
        return any([one.result() for one in work])  # noqa: C419  # each is asked what it raised

    async def _prepare(self, portions: list[Portion]) -> None:
        """Files of other documents than before. Raises what the cluster refuses."""
        now = await self._client._shards.confirmed(CALL_TIMEOUT)
        info = now.collection(self._name)
        if info is None:
            raise CollectionNotFound(f"there is no collection {self._name}")
        try:
            begun = await begun_of(self._client, info, now, CALL_TIMEOUT)
        except InvalidArgument as error:
            raise self._excused(error, None) from error
        self._number += 1
        keys = [f"k{n % 5}.l{self._number}-{n}" for n in range(self._rng.choice([1, 5, 30, 80]))]
        piece = Piece("made here", 0, len(keys), 0, str(self._number))
        job = job_of(info, now, begun, [piece])
        job = msgspec.structs.replace(job, scanned_max=self._rng.choice([2, 10]))
        portions += self._stage.loop.excused(self._made, job, keys)
        self._portions += portions

    def _made(self, job: Job, keys: list[str]) -> list[Portion]:
        """What workers leave, and what of it is in the log's model once the entry is committed."""
        work = Work(os.path.join(self._stage.scratch, NAME, str(self._number)))
        work.begin(job)
        numbers = np.random.default_rng(self._rng.getrandbits(32))
        block = numbers.standard_normal((len(keys), job.spec.dimensions)).astype("<f4").tobytes()
        metadata = [msgspec.json.encode({"load": self._number} | metadata_of(key)) for key in keys]

        def divided(into: Path) -> dict[str, int]:
            with ExitStack() as opened:
                parts = Parts(job, into, opened)
                parts.add(as_leaders_have(job, Insert(job.stored, keys, block, metadata)))
                return parts.end()

        once(work.piece(0), dict[str, int], divided, lambda *_: True)
        found = []
        for mine in job.shards:
            files = build(job, mine.shard, str(work.root))
            if files is not None:
                rows = list(read_rows(str(work.shard(mine.shard) / files.names[0])))
                vectors = {
                    key: vector
                    for some in rows
                    for key, vector in zip(
                        some.ids, np.frombuffer(some.vectors, "<f4").reshape(len(some.ids), -1), strict=True
                    )
                }
                self._truth.prepared(files.checksum, job.stored, rows)
                where = work.shard(mine.shard)
                found.append(Portion(stored=job.stored, mine=mine, files=files, directory=where, rows=vectors))
        return found

    async def _hand_in(self, one: Portion) -> bool:
        """Whether it was refused; an answer that never came leaves that open."""
        timeout = self._rng.choice([4.0, 12.0, 25.0])
        try:
            done = await hand_in(
                self._client, one.stored, one.mine, one.files, self._reading(one), timeout, lambda _: None
            )
        except NeedleError as error:
            self._judge_error(self._excused(error, one))
            return isinstance(error, InvalidArgument | StaleEpoch)
        if done.documents != len(one.rows):
            self._break(f"{done.documents} of {len(one.rows)} documents are said to be loaded")
        one.sure = True
        return False

    def _excused(self, error: NeedleError, one: Portion | None) -> NeedleError:
        """The same, or what may pass: a shard that took another load, or got documents by a move, takes no more."""
        if not isinstance(error, InvalidArgument):
            return error
        others = [other for other in self._portions if one is None or other.mine.shard == one.mine.shard]
        moved = self._truth.moved() != self._moved or bool(self._truth.now.moves)
        if (one is None or not one.sure) and (len(others) > 1 or moved):
            return StaleEpoch(f"{error.message}, as it may")
        return error

    def _reading(self, one: Portion) -> Any:
        drawn, begun = self._rng.random(), 0
        left_out, stays = LEFT_OUT if drawn < LEFT_OUT_SHARE else 0, drawn < STAYS_OUT_SHARE

        async def read(name: str, at: int) -> Sent:
            nonlocal begun
            first = name == one.files.names[0] and at == 0
            begun += first
            if left_out and (begun == left_out or (stays and first and begun > left_out)):
                begun += 1
                raise StorageError("this replica gets no files from here")
            size, at, data = part_of(one.directory, name, at)
            data = data[: self._step]
            if self._spoils:
                self._spoils = False
                self.spoilt += 1
                place = self._rng.randrange(len(data))
                data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            return size, at, data

        return read

    async def _again(self, one: Portion) -> None:
        """As somebody does who has not heard the answer."""
        done = await propose(self._client, one.mine.shard, command_of(one.mine, one.files), CALL_TIMEOUT)
        if not done.existed:
            self._break(f"the load of shard {one.mine.shard} is said to be done twice")

    # --- writes and reads --------------------------------------------------------------------------------------------
    async def _write(self) -> None:
        """Of a document that was loaded: a newer one takes its place, or it goes."""
        keys = [key for one in self._portions if one.sure for key in one.rows if key not in self._doubtful]
        if not keys:
            return
        key = self._rng.choice(keys)
        before = self._written.get(key)
        self._doubtful.add(key)  # until it is answered
        try:
            if self._rng.random() < 0.5:
                done = await self._client.delete(key, collection=self._name, timeout=CALL_TIMEOUT)
                if done.count != (before != 0):
                    self._break(f"{key} has version {before}, and a delete finds {done.count} of it")
                self._written[key] = 0
            else:
                vector = np.array([self._rng.gauss(0, 1) for _ in range(self._stage.profile.dimensions)], np.float32)
                how: Any = {"collection": self._name, "timeout": CALL_TIMEOUT}
                self._written[key] = (await self._client.insert(key, vector, metadata_of(key), **how)).version
        except OutcomeUnknown:
            raise
        except NeedleError:  # of everything else it is known that nothing was done
            self._doubtful.discard(key)
            raise
        self._doubtful.discard(key)

    async def _look(self) -> None:
        acknowledged = [one for one in self._portions if one.sure]
        query = np.array([self._rng.gauss(0, 1) for _ in range(self._stage.profile.dimensions)], np.float32)
        hits = await self._client.search(
            query, FOUND_MAX, exact=self._rng.random() < 0.5, with_vectors=True, collection=self._name,
            timeout=CALL_TIMEOUT,
        )  # fmt: skip
        found = {hit.id: hit for hit in hits}
        if len(found) < len(hits):
            self._break("a search finds a document twice")
        took: set[int] = set()
        for one in self._portions:
            if self._judged(one, found):
                if one.mine.shard in took:
                    self._break(f"shard {one.mine.shard} took two loads")
                took.add(one.mine.shard)
            elif one in acknowledged:
                self._break(f"the load of shard {one.mine.shard} was acknowledged, and none of it is there")
        for key, version in self._written.items():
            there = found[key].version if key in found else 0
            if key not in self._doubtful and there != version:
                self._break(f"{key} was written as version {version}, and a strong search tells {there}")
        if others := found.keys() - {key for one in self._portions for key in one.rows}:
            self._break(f"{min(others)} is found, and was never loaded")
        self.judged += 1

    def _judged(self, one: Portion, found: dict[str, Any]) -> bool:
        """Whether it is there."""
        keys = [key for key in one.rows if key not in self._doubtful and key not in self._written]
        here = [found[key] for key in keys if key in found]
        if not here:
            return not keys
        if len(here) < len(keys):
            self._break(f"of the load of shard {one.mine.shard} {len(here)} of {len(keys)} documents are there")
        for hit in here:
            one.version = one.version or hit.version
            if hit.version != one.version:
                self._break(f"{hit.id} has version {hit.version}, and others of its load {one.version}")
            if not np.array_equal(hit.vector, one.rows[hit.id]):
                self._break(f"{hit.id} has another vector than was loaded")
        return True

    def _break(self, why: str) -> None:
        self.broken = self.broken or Violation(RULE, f"{self._name}: {why}")
